//! Log output on standard output, one line per event, in the two forms that log collectors parse.
//!
//! Text: `<time> <thread id>(<thread name>) <L> <LOGGER>: <message>, key: value, … [file:line:function()]`. JSON: an object with the keys `ts`,
//! `thread_id`, `thread_name`, `level`, `logger`, `msg`, then the event's own, then `caller`. Times are UTC. Who logs is told by the module: what
//! requests cause is logged by `grpc`, what packet threads do by `graph`, everything else by `service`. Of the caller only the module is known;
//! it stands in the function's place.

use crate::args::{Args, Color, LogFormat};
use std::fmt::{self, Write};
use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How events become lines.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// JSON or text.
    pub format: LogFormat,
    /// Colour the level of text lines.
    pub is_coloured: bool,
    /// Where the time comes from.
    pub now: fn() -> SystemTime,
}

/// A level or filters, as they are. A misspelt level alone would be taken for the name of a part, and nothing else be logged.
pub(crate) fn level(text: &str) -> Result<String, String> {
    let mut parts = text.split(',').map(str::trim);
    let is_known = |part: &str| {
        part.contains(['=', '[']) || (!part.is_empty() && part.parse::<LevelFilter>().is_ok())
    };
    match parts.find(|part| !is_known(part)) {
        Some(part) => Err(format!("\"{part}\" is not a level")),
        None => match EnvFilter::try_new(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Installs the process-wide subscriber.
///
/// # Errors
/// If a subscriber is installed already.
pub fn init(args: &Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log_level)?;
    let is_coloured = match args.color {
        Color::Never => false,
        Color::Always => true,
        Color::Auto => std::io::stdout().is_terminal(),
    };
    let format = Format {
        format: args.log_format,
        is_coloured: is_coloured && args.log_format == LogFormat::Text,
        now: SystemTime::now,
    };
    let installed = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .event_format(format)
        .try_init();
    installed.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Who logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logger {
    Service,
    Graph,
    Grpc,
}

impl Logger {
    fn of(target: &str) -> Logger {
        let is_under = |module: &str| {
            let rest = target.strip_prefix(module);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        if is_under("dpservice::grpc") || is_under("dpservice::inspection") {
            Logger::Grpc
        } else if is_under("dpservice::worker") || is_under("dataplane") {
            Logger::Graph
        } else {
            Logger::Service
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Logger::Service => "service",
            Logger::Graph => "graph",
            Logger::Grpc => "grpc",
        }
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "Error",
        Level::WARN => "Warning",
        Level::INFO => "Info",
        _ => "Debug",
    }
}

/// The thread's role: requests are logged under `grpc` although the control thread answers them.
fn thread_name(logger: Logger) -> String {
    let current = std::thread::current();
    match (logger, current.name()) {
        (Logger::Grpc, _) => "grpc".to_owned(),
        (_, Some("main")) => "control".to_owned(),
        (_, Some(name)) => name.to_owned(),
        (_, None) => "thread".to_owned(),
    }
}

/// A value of an event.
enum Value {
    Number(String),
    Text(String),
}

/// Message and values of an event, in their order.
#[derive(Default)]
struct Values {
    message: String,
    values: Vec<(&'static str, Value)>,
}

impl Values {
    fn add_text(&mut self, field: &Field, text: String) {
        match field.name() {
            "message" => self.message = text,
            // `error` is a number wherever it is read; texts have a key of their own.
            "error" => self.values.push(("errmsg", Value::Text(text))),
            name => self.values.push((name, Value::Text(text))),
        }
    }

    fn add_number(&mut self, field: &Field, number: impl ToString) {
        let value = Value::Number(number.to_string());
        self.values.push((field.name(), value));
    }
}

impl Visit for Values {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add_text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add_text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add_number(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add_number(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add_number(field, u8::from(value));
    }
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut values = Values::default();
        event.record(&mut values);
        let metadata = event.metadata();
        let logger = Logger::of(metadata.target());
        let line = Line {
            time: timestamp((self.now)()),
            thread_id: nix::unistd::gettid().as_raw(),
            thread_name: thread_name(logger),
            level: *metadata.level(),
            logger,
            values,
            caller: caller(metadata),
        };
        match self.format {
            LogFormat::Text => line.write_text(&mut writer, self.is_coloured),
            LogFormat::Json => line.write_json(&mut writer),
        }
    }
}

/// Everything about one event.
struct Line {
    time: String,
    thread_id: i32,
    thread_name: String,
    level: Level,
    logger: Logger,
    values: Values,
    caller: String,
}

impl Line {
    fn write_text(&self, writer: &mut Writer<'_>, is_coloured: bool) -> fmt::Result {
        let letter = level_name(self.level).get(..1).unwrap_or_default();
        let (start, end) = if is_coloured {
            (colour(self.level), "\u{1b}[0m")
        } else {
            ("", "")
        };
        write!(
            writer,
            "{} {}({}) {start}{letter}{end} {}: {}",
            self.time,
            self.thread_id,
            self.thread_name,
            self.logger.name().to_uppercase(),
            self.values.message,
        )?;
        for (key, value) in &self.values.values {
            match value {
                Value::Number(text) | Value::Text(text) => write!(writer, ", {key}: {text}")?,
            }
        }
        writeln!(writer, " [{}]", self.caller)
    }

    fn write_json(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(
            writer,
            "{{ \"ts\": \"{}\", \"thread_id\": {}, \"thread_name\": {}, \"level\": \"{}\", \"logger\": \"{}\", \"msg\": {}",
            self.time,
            self.thread_id,
            quoted(&self.thread_name),
            level_name(self.level),
            self.logger.name(),
            quoted(&self.values.message),
        )?;
        for (key, value) in &self.values.values {
            match value {
                Value::Number(number) => write!(writer, ", {}: {number}", quoted(key))?,
                Value::Text(text) => write!(writer, ", {}: {}", quoted(key), quoted(text))?,
            }
        }
        writeln!(writer, ", \"caller\": {} }}", quoted(&self.caller))
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        _ => "\u{1b}[34m",
    }
}

/// `file:line:function()`, the file without its folders.
fn caller(metadata: &tracing::Metadata<'_>) -> String {
    let file = metadata.file().unwrap_or_default();
    let file = file.rsplit('/').next().unwrap_or_default();
    let module = metadata.module_path().unwrap_or_default();
    let module = module.rsplit("::").next().unwrap_or_default();
    let line = metadata.line().unwrap_or_default();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{file}:{line}:{module}()");
    text
}

/// `YYYY-MM-DD HH:MM:SS.mmm` in UTC; times before 1970 are shown as its beginning.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar. Years are counted from March here, so that the leap
/// day is the last one (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

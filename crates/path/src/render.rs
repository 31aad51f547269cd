//! A path for people: one line per hop with place, what happens and why; findings below it; the verdict and the next step last.

use std::fmt::Write as _;

use serde_json::{Value, json as object};

use crate::model::{Finding, Hop, Level, Outcome, Path, Verdict};

/// Widest place and action that the columns make room for; what is wider shifts its own line only.
const COLUMN_MAX: usize = 44;

/// The documented JSON: an object with one path per direction.
pub fn json(paths: &[Path]) -> Value {
    object!({ "paths": paths })
}

/// Paths as tables, one below the other.
pub fn table(paths: &[Path]) -> String {
    let all: Vec<String> = paths.iter().map(one).collect();
    all.join("\n")
}

fn one(path: &Path) -> String {
    let Path {
        from,
        to,
        packet,
        hops,
        verdict: _,
        summary,
        next,
        asked,
        not_asked,
    } = path;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "from     {from}\nto       {to}");
    if let Some(packet) = packet {
        let _ = writeln!(text, "packet   {packet}");
    }
    let width = |of: fn(&Hop) -> &str, head: &str| {
        let widest = hops.iter().map(|hop| of(hop).chars().count());
        let widest = widest.filter(|width| *width <= COLUMN_MAX).max();
        widest.unwrap_or_default().max(head.len())
    };
    let place = width(|hop| &hop.place, "WHERE");
    let happens = width(|hop| &hop.happens, "WHAT HAPPENS");
    let _ = writeln!(
        text,
        "\n      {:<place$}  {:<happens$}  WHY",
        "WHERE", "WHAT HAPPENS"
    );
    for (index, hop) in hops.iter().enumerate() {
        let mark = match hop.outcome {
            Outcome::Passes => "ok",
            Outcome::Unknown => "? ",
            Outcome::Ends => "NO",
            Outcome::NotReached => "--",
        };
        let line = format!(
            "{:>2} {mark} {:<place$}  {:<happens$}  {}",
            index + 1,
            hop.place,
            hop.happens,
            hop.because
        );
        let _ = writeln!(text, "{}", line.trim_end());
        for Finding { level, message, .. } in &hop.findings {
            let word = match level {
                Level::Note => "note",
                Level::Warning => "warning",
                Level::Unknown => "unknown",
                Level::Broken => "BROKEN",
            };
            let _ = writeln!(text, "      {:<place$}  - {word}: {message}", "");
        }
    }
    text.push('\n');
    if !asked.is_empty() {
        let _ = writeln!(text, "asked    {}", asked.join(", "));
    }
    for missing in not_asked {
        let _ = writeln!(text, "not      {missing}");
    }
    let _ = writeln!(text, "verdict  {}", headline(path.verdict, summary));
    if let Some(next) = next {
        let _ = writeln!(text, "next     {next}");
    }
    text
}

/// The sentence, with the word that matters in capitals.
fn headline(verdict: Verdict, summary: &str) -> String {
    let (small, large) = match verdict {
        Verdict::Arrives => ("arrives", "ARRIVES"),
        Verdict::DoesNotArrive => ("does not arrive", "DOES NOT ARRIVE"),
        Verdict::AnswerIsLost => (
            "arrives, but the answer is lost",
            "ARRIVES, BUT THE ANSWER IS LOST",
        ),
        Verdict::Unknown => ("unknown", "UNKNOWN"),
    };
    let rest = summary.strip_prefix(small).unwrap_or(summary);
    format!("{large}{rest}")
}

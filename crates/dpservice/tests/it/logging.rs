//! Log lines, byte by byte: other programs parse them.

use dpservice::args::LogFormat;
use dpservice::logging::{Format, timestamp};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_208_000_007)
}

/// What is logged by `events` on a thread of this name; thread id and line number replaced by `T` and `N`.
fn logged(
    format: LogFormat,
    is_coloured: bool,
    name: &str,
    events: impl FnOnce() + Send,
) -> String {
    let lines = Lines::default();
    let format = Format {
        format,
        is_coloured,
        now: noon,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .event_format(format)
        .with_writer(lines.clone())
        .finish();
    let id = std::thread::scope(|scope| {
        let body = || {
            tracing::subscriber::with_default(subscriber, events);
            nix::unistd::gettid().to_string()
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn_scoped(scope, body).unwrap().join().unwrap()
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let text = text.replacen(&id, "T", 1);
    let mut parts = text.split("logging.rs:");
    let mut without = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        without.push_str("logging.rs:N");
        without.push_str(rest);
    }
    without
}

#[test]
fn text() {
    let failed = || {
        tracing::warn!(
            target: "dpservice::grpc::server",
            grpc_request = "GetVip",
            grpc_error = 205,
            grpc_message = "NO_VM",
            "Failed request"
        );
    };
    assert_eq!(
        logged(LogFormat::Text, false, "main", failed),
        "2024-02-29 12:00:00.007 T(grpc) W GRPC: Failed request, grpc_request: GetVip, \
         grpc_error: 205, grpc_message: NO_VM [logging.rs:N:logging()]\n"
    );
    let lost = || {
        tracing::error!(target: "dpservice::worker::lane", port_id = 2_u16, interface_name = "tap0", "Device disappeared");
    };
    assert_eq!(
        logged(LogFormat::Text, false, "worker", lost),
        "2024-02-29 12:00:00.007 T(worker) E GRAPH: Device disappeared, port_id: 2, \
         interface_name: tap0 [logging.rs:N:logging()]\n"
    );
    let started = || tracing::info!(target: "dpservice::service", error = %"no such file", "x");
    assert_eq!(
        logged(LogFormat::Text, true, "main", started),
        "2024-02-29 12:00:00.007 T(control) \u{1b}[32mI\u{1b}[0m SERVICE: x, \
         errmsg: no such file [logging.rs:N:logging()]\n"
    );
}

#[test]
fn json() {
    let ready = || {
        tracing::info!(target: "dpservice::grpc", grpc_server_address = "[::]:1337", "Server started and listening");
    };
    assert_eq!(
        logged(LogFormat::Json, false, "main", ready),
        "{ \"ts\": \"2024-02-29 12:00:00.007\", \"thread_id\": T, \"thread_name\": \"grpc\", \
         \"level\": \"Info\", \"logger\": \"grpc\", \"msg\": \"Server started and listening\", \
         \"grpc_server_address\": \"[::]:1337\", \"caller\": \"logging.rs:N:logging()\" }\n"
    );
    let levels = || {
        tracing::error!(target: "x", error = -19, "a \"quoted\" \\ text\nof two lines");
        tracing::debug!(target: "dpservice", vni = 100_u32, is_up = true, "b");
        tracing::trace!(target: "dpservice", "c");
    };
    let text = logged(LogFormat::Json, false, "standby", levels);
    let lines: Vec<serde_json::Value> = text
        .replacen("\"thread_id\": T", "\"thread_id\": 1", 1)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [first, second, third] = &lines[..] else {
        panic!("three lines")
    };
    assert_eq!(first["msg"], "a \"quoted\" \\ text\nof two lines");
    assert_eq!(
        (&first["level"], &first["error"]),
        (&"Error".into(), &(-19).into())
    );
    assert_eq!(
        (&first["logger"], &first["thread_name"]),
        (&"service".into(), &"standby".into())
    );
    assert_eq!(
        (&second["level"], &second["vni"]),
        (&"Debug".into(), &100.into())
    );
    assert_eq!(second["is_up"], 1);
    assert_eq!(third["level"], "Debug");
}

#[test]
fn times() {
    for (seconds, expected) in [
        (0, "1970-01-01 00:00:00.000"),
        (951_782_399, "2000-02-28 23:59:59.000"),
        (951_782_400, "2000-02-29 00:00:00.000"),
        (951_868_800, "2000-03-01 00:00:00.000"),
        (1_798_761_599, "2026-12-31 23:59:59.000"),
        (4_107_542_400, "2100-03-01 00:00:00.000"),
    ] {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(timestamp(time), expected);
    }
}

/// Keys that log collectors know. An event of ours has no other.
const KEYS: &str = "error errmsg value min max path name port_id peer_port_id queue_id socket_id interface_name lcore_id \
    rte_group link_state ipv4 ipv6 src_ipv4 dst_ipv4 src_ipv6 dst_ipv6 src_ip dst_ip port src_port dst_port protocol \
    vnf_type vni vni_type minport maxport flow_error meter_total meter_public grpc_error grpc_message grpc_request \
    interface_id interface_index interface_type t_vni pci pxe_server pxe_path hostname underlay lb_id prefix prefix_len \
    fw_rule fw_priority fw_direction fw_action fw_src fw_srclen fw_dst fw_dstlen fw_proto fw_sport_from fw_sport_to \
    fw_dport_from fw_dport_to fw_icmp_type fw_icmp_code proto_ver client_name client_ver node telemetry_cmd \
    netlink_msg grpc_server_address mac eal_msg";

fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn every_key_is_known() {
    let known: Vec<&str> = KEYS.split_whitespace().collect();
    let mut files = Vec::new();
    sources(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let mut events = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let macros = ["error", "warn", "info", "debug"].map(|level| format!("tracing::{level}!("));
        for start in macros
            .iter()
            .flat_map(|name| text.match_indices(name.as_str()))
        {
            let rest = &text[start.0 + start.1.len()..];
            // Keys stand before the message, which is the first text that begins an argument.
            let arguments = rest.split(',').map(str::trim);
            let keys = arguments.take_while(|one| !one.starts_with('"'));
            for key in keys {
                let key = key
                    .split(" = ")
                    .next()
                    .unwrap()
                    .trim_start_matches(['%', '?']);
                assert!(known.contains(&key), "{}: {key}", file.display());
            }
            events += 1;
        }
    }
    assert!(events > 10);
}

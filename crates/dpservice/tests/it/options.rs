//! Every option that scripts and configuration files of the reference use: names, short forms, defaults, limits.

use crate::harness::{DEADLINE, Server, interface, outcome};
use crate::services::OK;
use clap::CommandFactory;
use dataplane::{Limits, MssClamp, PortId, VirtualServiceSpec};
use dpservice::args::{Color, LogFormat, NicType};
use dpservice::worker::Settings;
use dpservice::{Args, standby};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// An option: its names, its default, values that are accepted and values that are not. `None` instead of values: it takes none.
struct Known {
    long: &'static str,
    short: Option<char>,
    default: &'static str,
    accepted: Option<&'static [&'static str]>,
    refused: &'static [&'static str],
}

const NAME_15: &str = "abcdefghijklmno";
const NAME_16: &str = "abcdefghijklmnop";

const fn known(
    long: &'static str,
    default: &'static str,
    accepted: &'static [&'static str],
    refused: &'static [&'static str],
) -> Known {
    Known {
        long,
        short: None,
        default,
        accepted: Some(accepted),
        refused,
    }
}

const fn flag(long: &'static str, short: Option<char>) -> Known {
    Known {
        long,
        short,
        default: "",
        accepted: None,
        refused: &[],
    }
}

const SERVICE: &str = "1.2.3.4,53,fd00::1,5353";

const OPTIONS: &[Known] = &[
    flag("help", Some('h')),
    flag("version", Some('v')),
    known("pf0", "", &["eth0", NAME_15], &["", NAME_16]),
    known("pf1", "", &["eth0", NAME_15], &["", NAME_16]),
    known("ipv6", "::", &["fc00:1::1", "::"], &["1.2.3.4", "x", ""]),
    known("vf-pattern", "", &["vf", NAME_15], &["", NAME_16]),
    known("dhcp-mtu", "1500", &["68", "1500"], &["67", "1501", "x"]),
    known("dhcp-dns", "", &["8.8.8.8"], &["fd00::1", "x"]),
    known("dhcpv6-dns", "", &["fd00::1"], &["8.8.8.8", "x"]),
    known(
        "udp-virtsvc",
        "",
        &[SERVICE, "1.2.3.4,1,::1,65535"],
        &[
            "1.2.3.4,0,::1,1",
            "1.2.3.4,1,::1,65536",
            "1.2.3.4,1,::1",
            "::1,1,::1,1",
        ],
    ),
    known(
        "tcp-virtsvc",
        "",
        &[SERVICE, "1.2.3.4,1,::1,65535"],
        &[
            "1.2.3.4,0,::1,1",
            "1.2.3.4,1,::1,65536",
            "1.2.3.4,1,1.2.3.4,1",
            "x",
        ],
    ),
    known("wcmp", "100", &["0", "100"], &["101", "-1"]),
    known(
        "nic-type",
        "mellanox",
        &["mellanox", "tap", "bluefield2"],
        &["hw", "TAP"],
    ),
    flag("no-stats", None),
    flag("enable-ipv6-overlay", None),
    flag("no-offload", None),
    known("graphtrace-loglevel", "0", &["0", "2"], &["3", "-1"]),
    known("color", "never", &["never", "always", "auto"], &["no"]),
    known("log-format", "text", &["text", "json"], &["xml"]),
    known(
        "log-level",
        "info",
        &[
            "error",
            "trace",
            "off",
            "info,h2=warn",
            "dpservice::sync=debug",
        ],
        &["", "inof", "info,", "info,h2", "h2=loud"],
    ),
    known("grpc-port", "1337", &["1024", "65535"], &["1023", "65536"]),
    known("flow-timeout", "30", &["1", "300"], &["0", "301"]),
    flag("multiport-eswitch", None),
    known("active-lockfile", "", &["/run/lock"], &[""]),
    known("sync-tap", "", &["tap0", NAME_15], &["", NAME_16]),
    flag("debug-coredumps", None),
];

fn load(arguments: &[&str]) -> Result<Args, String> {
    let all = ["dpservice"].iter().chain(arguments);
    Args::load(all.map(OsString::from).collect(), Some(OsString::new()))
        .map_err(|error| format!("{error:#}"))
}

#[test]
fn names_defaults_and_limits() {
    let command = Args::command();
    for option in OPTIONS {
        let name = option.long;
        if name != "help" {
            let mut arguments = command.get_arguments();
            let found = arguments.find(|argument| argument.get_long() == Some(name));
            let found = found.unwrap_or_else(|| panic!("--{name} is missing"));
            assert_eq!(found.get_short(), option.short, "--{name}");
            let defaults = found.get_default_values();
            let default: Vec<_> = defaults
                .iter()
                .map(|value| value.to_str().unwrap())
                .collect();
            // What takes no value is off.
            let default = if option.accepted.is_some() {
                default.concat()
            } else {
                String::new()
            };
            assert_eq!(default, option.default, "--{name}");
            assert!(!found.is_hide_set(), "--{name} is not in --help");
        }
        for value in option.accepted.unwrap_or_default() {
            load(&[&format!("--{name}"), value]).unwrap();
            load(&[&format!("--{name}={value}")]).unwrap();
        }
        for value in option.refused {
            let text = load(&[&format!("--{name}={value}")]).unwrap_err();
            assert!(text.contains(&format!("--{name}")), "{text}");
        }
        if option.accepted.is_none() && !["help", "version"].contains(&name) {
            load(&[&format!("--{name}")]).unwrap();
            load(&[&format!("--{name}=1")]).unwrap_err();
        }
    }
    let path = "x".repeat(256);
    load(&["--active-lockfile", &path[..255]]).unwrap();
    load(&["--active-lockfile", &path]).unwrap_err();
    let names: BTreeSet<_> = OPTIONS.iter().map(|option| option.long).collect();
    assert_eq!(names.len(), 26);
}

#[test]
fn values_arrive() {
    let args = load(&[]).unwrap();
    assert_eq!(
        (args.nic_type, args.color, args.log_format),
        (NicType::Mellanox, Color::Never, LogFormat::Text)
    );
    let args = load(&[
        "--tcp-virtsvc",
        "1.1.1.1,80,fd00::1,8080",
        "--udp-virtsvc",
        SERVICE,
        "--tcp-virtsvc",
        "1.1.1.2,80,fd00::2,8080",
    ])
    .unwrap();
    let spec = |protocol, address: &str, port, service: &str, service_port| VirtualServiceSpec {
        protocol,
        address: address.parse().unwrap(),
        port,
        service: service.parse().unwrap(),
        service_port,
    };
    assert_eq!(
        args.virtual_services,
        [
            spec(6, "1.1.1.1", 80, "fd00::1", 8080),
            spec(17, "1.2.3.4", 53, "fd00::1", 5353),
            spec(6, "1.1.1.2", 80, "fd00::2", 8080),
        ],
        "in the order of the command line"
    );
}

/// Options of our own.
#[test]
fn segment_sizes_and_hops() {
    let args = load(&[]).unwrap();
    assert_eq!(
        (args.mss_clamp, args.decrement_hops),
        (MssClamp::Off, false)
    );
    for (text, clamp) in [
        ("off", MssClamp::Off),
        ("auto", MssClamp::Tunnel),
        ("536", MssClamp::At(536)),
        ("1400", MssClamp::At(1_400)),
        ("65535", MssClamp::At(u16::MAX)),
    ] {
        assert_eq!(load(&["--mss-clamp", text]).unwrap().mss_clamp, clamp);
    }
    for text in ["", "on", "535", "65536", "-1", "1400.0", "0x600"] {
        let error = load(&[&format!("--mss-clamp={text}")]).unwrap_err();
        assert!(error.contains("--mss-clamp"), "{error}");
    }
    assert!(load(&["--decrement-hops"]).unwrap().decrement_hops);
    load(&["--decrement-hops=yes"]).unwrap_err();
}

#[test]
fn combinations_that_end_the_program() {
    let check = |arguments: &[&str]| {
        let base = ["--pf0", "a", "--pf1", "b", "--ipv6", "fc00:1::1"];
        let all: Vec<_> = base.iter().chain(arguments).copied().collect();
        load(&all)
            .unwrap()
            .validate()
            .map_err(|error| error.to_string())
    };
    assert_eq!(check(&[]), Ok(()));
    assert_eq!(check(&["--multiport-eswitch", "--no-offload"]), Ok(()));
    assert_eq!(
        check(&["--multiport-eswitch"]).unwrap_err(),
        "--multiport-eswitch needs --no-offload"
    );
    let twice = [
        "--udp-virtsvc",
        SERVICE,
        "--udp-virtsvc",
        "1.2.3.4,53,fd00::2,5353",
    ];
    assert_eq!(
        check(&twice).unwrap_err(),
        "--udp-virtsvc: 1.2.3.4:53 is given twice"
    );
    let twice = [
        "--tcp-virtsvc",
        SERVICE,
        "--tcp-virtsvc",
        "1.2.3.4,54,fd00::1,5353",
    ];
    assert_eq!(
        check(&twice).unwrap_err(),
        "--tcp-virtsvc: [fd00::1]:5353 is given twice"
    );
    let both = ["--udp-virtsvc", SERVICE, "--tcp-virtsvc", SERVICE];
    assert_eq!(check(&both), Ok(()), "the protocols do not meet");
    let many: Vec<String> = (1..=257)
        .flat_map(|port| {
            [
                "--udp-virtsvc".to_owned(),
                format!("1.2.3.4,{port},fd00::1,{port}"),
            ]
        })
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(check(&many[..512]), Ok(()));
    assert_eq!(check(&many).unwrap_err(), "more than 256 virtual services");
    let dns: Vec<&str> = ["--dhcp-dns", "1.1.1.1"].repeat(64);
    assert_eq!(check(&dns[..126]), Ok(()));
    assert!(
        check(&dns)
            .unwrap_err()
            .starts_with("--dhcp-dns: at most 63")
    );
    let dns: Vec<&str> = ["--dhcpv6-dns", "::1"].repeat(16);
    assert_eq!(check(&dns[..30]), Ok(()));
    assert!(
        check(&dns)
            .unwrap_err()
            .starts_with("--dhcpv6-dns: at most 15")
    );
    let ignored = [
        "--sync-tap",
        "t0",
        "--graphtrace-loglevel",
        "1",
        "--no-stats",
    ];
    let ignored = load(&ignored).unwrap().without_effect();
    let ignored: Vec<_> = ignored.into_iter().map(|(name, _)| name).collect();
    assert_eq!(ignored, ["--graphtrace-loglevel"]);
}

#[test]
fn limits_of_tables() {
    let names = [
        (
            "flows-max",
            "425000",
            ["1024", "16777216"],
            ["1023", "16777217"],
        ),
        (
            "nat-flows-max",
            "450000",
            ["1", "16777216"],
            ["0", "16777217"],
        ),
        (
            "tunnels-max",
            "65536",
            ["16", "16777216"],
            ["15", "16777217"],
        ),
        ("vnis-max", "512", ["1", "65534"], ["0", "65535"]),
        (
            "routes-max",
            "1048576",
            ["1", "16777216"],
            ["0", "16777217"],
        ),
        (
            "underlay-addresses-max",
            "1000",
            ["1", "16384"],
            ["0", "16385"],
        ),
        (
            "load-balancers-max",
            "4096",
            ["1", "16777216"],
            ["0", "16777217"],
        ),
        (
            "neighbor-nats-max",
            "65536",
            ["1", "16777216"],
            ["0", "16777217"],
        ),
        ("tap-count", "126", ["1", "1024"], ["0", "1025"]),
    ];
    let command = Args::command();
    for (name, default, accepted, refused) in names {
        let mut arguments = command.get_arguments();
        let found = arguments.find(|argument| argument.get_long() == Some(name));
        let found = found.unwrap_or_else(|| panic!("--{name} is missing"));
        assert_eq!(found.get_default_values(), [default], "--{name}");
        for value in accepted {
            load(&[&format!("--{name}"), value]).unwrap();
        }
        for value in refused {
            let error = load(&[&format!("--{name}"), value]).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
    assert_eq!(load(&[]).unwrap().limits.limits(), Limits::default());
    let values = names.map(|(name, ..)| name);
    let some: Vec<String> = (2000..)
        .zip(values)
        .map(|(value, name)| format!("--{name}={}", if name == "tap-count" { 9 } else { value }))
        .collect();
    let some: Vec<&str> = some.iter().map(String::as_str).collect();
    let expected = Limits {
        flows_max: 2000,
        nat_max: 2001,
        adjacencies_max: 2002,
        vnis_max: 2003,
        routes_per_vni_max: 2004,
        underlay_max: 2005,
        load_balancers_max: 2006,
        neighbor_nats_max: 2007,
    };
    assert_eq!(load(&some).unwrap().limits.limits(), expected);
}

/// The files that the reference's host preparation writes, in both of its modes.
#[test]
fn prepared_hosts() {
    let normal = "no-stats\npf0 ens1f0np0\npf1 ens1f1np1\nvf-pattern ens1f0\nipv6 fd00:1::\n\
                  a-pf0 0000:3b:00.0,class=rxq_cqe_comp_en=0,rx_vec_en=1,representor=pf[0]vf[0-125]\n\
                  a-pf1 0000:3b:00.1,class=rxq_cqe_comp_en=0,rx_vec_en=1\n";
    let multiport = "no-stats\npf0 ens1f0np0\npf1 ens1f1np1\nvf-pattern ens1f0\nipv6 fd00:1::\n\
                     a-pf0 0000:3b:00.0,dv_flow_en=2,dv_esw_en=1,fdb_def_rule_en=2,representor=pf[0-1]vf[0-124]\n\
                     multiport-eswitch\n";
    for (text, devices) in [(normal, 2), (multiport, 1)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let arguments = ["dpservice-bin", "-l", "0,1", "--", "--no-offload"];
        let arguments = arguments.iter().map(OsString::from).collect();
        let args = Args::load(arguments, Some(file.path().into())).unwrap();
        assert_eq!(args.eal[..2], ["-l", "0,1"]);
        assert_eq!(
            args.eal.iter().filter(|text| *text == "-a").count(),
            devices
        );
        assert!(args.no_stats && args.no_offload);
        assert_eq!(args.pf1.as_deref(), Some("ens1f1np1"));
        if cfg!(feature = "dpdk") {
            args.validate().unwrap();
        }
    }
}

#[tokio::test]
async fn an_instance_in_standby_serves_requests_and_no_packets() {
    let settings = Settings {
        standby: true,
        ..Settings::default()
    };
    let server = Server::start_with(true, settings).await;
    let mut client = server.initialized().await;
    let created = client.create_interface(interface("vm1", "net_tap2", "10.0.0.1", "::"));
    assert_eq!(outcome!(created), OK);
    let machine = server.machine(0);
    // Asks for the gateway's address.
    let request = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 9],
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 169, 254, 0, 1],
    ]
    .concat();
    assert!(machine.send(&request));
    let discarded = async {
        while server.worker.counters().await.unwrap().standby == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, discarded).await.unwrap();
    server.worker.activate();
    assert!(machine.send(&request));
    let is_answer = |frame: &[u8]| frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
    let answered = async {
        while machine.receive().is_none_or(|frame| !is_answer(&frame)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.unwrap();
    assert_eq!(server.worker.counters().await.unwrap().standby, 1);
}

/// It may live a little longer than it works.
#[tokio::test]
async fn an_instance_that_gives_the_lock_back_handles_no_more_packets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("active");
    let settings = Settings {
        standby: true,
        ..Settings::default()
    };
    let server = Server::start_with(true, settings).await;
    let mut client = server.initialized().await;
    let created = client.create_interface(interface("vm1", "net_tap2", "10.0.0.1", "::"));
    assert_eq!(outcome!(created), OK);
    let shutdown = CancellationToken::new();
    let lock = standby::request(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(standby::hold(
        lock,
        server.worker.clone(),
        None,
        shutdown.clone(),
    ));
    let machine = server.machine(0);
    // No packet that anybody would answer, but one that is counted.
    let frame = [0xff; 60];
    let counted = async || {
        let counters = server.worker.inspect(|inspection| {
            let received = inspection.worker.counters().port(PortId(1)).rx_packets;
            (received, inspection.counters.standby)
        });
        counters.await.unwrap().remove(0)
    };
    let works = async {
        while counted().await.0 == 0 {
            assert!(machine.send(&frame));
        }
    };
    tokio::time::timeout(DEADLINE, works).await.unwrap();
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    let next = standby::request(&path).unwrap();
    tokio::time::timeout(DEADLINE, next).await.unwrap().unwrap();
    let (handled, discarded) = counted().await;
    assert!(machine.send(&frame));
    let rests = async {
        while counted().await.1 == discarded {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, rests).await.unwrap();
    assert_eq!(counted().await.0, handled);
}

#[tokio::test]
async fn the_lock_goes_from_one_instance_to_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("active");
    let first = standby::request(&path).unwrap();
    let first = tokio::time::timeout(DEADLINE, first)
        .await
        .unwrap()
        .unwrap();
    let mut second = standby::request(&path).unwrap();
    tokio::time::timeout(Duration::from_millis(50), &mut second)
        .await
        .expect_err("the first one has it");
    drop(first);
    tokio::time::timeout(DEADLINE, second)
        .await
        .unwrap()
        .unwrap();
    let missing = standby::request(&folder.path().join("no/file")).unwrap_err();
    assert!(format!("{missing:#}").starts_with("cannot open the lock file "));
}

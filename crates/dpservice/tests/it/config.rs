//! Options and the configuration file.

use dpservice::Args;
use std::ffi::OsString;
use std::io::Write;

fn load(file: Option<&str>, arguments: &[&str]) -> Result<Args, String> {
    let mut conf = tempfile::NamedTempFile::new().unwrap();
    let path = match file {
        Some(text) => {
            conf.write_all(text.as_bytes()).unwrap();
            conf.path().as_os_str().to_owned()
        }
        None => OsString::new(),
    };
    let arguments = ["dpservice"]
        .iter()
        .chain(arguments)
        .map(OsString::from)
        .collect();
    Args::load(arguments, Some(path.clone()))
        .map_err(|error| format!("{error:#}").replace(path.to_str().unwrap(), "FILE"))
}

#[test]
fn defaults() {
    let args = load(None, &["--pf0", "pf0", "--ipv6", "fc00::1"]).unwrap();
    args.validate().unwrap();
    assert_eq!(
        (args.grpc_port, args.dhcp_mtu, args.wcmp, args.tap_count),
        (1337, 1500, 100, 126)
    );
    assert_eq!(args.grpc_bind.to_string(), "::");
    assert!(!args.enable_ipv6_overlay && args.list_ipv6_routes);
}

#[test]
fn command_line_wins_and_lists_are_joined() {
    let file = "# comment\npf0 eth0\n\nipv6\tfc00:1::1\ndhcp-mtu 1400\nenable-ipv6-overlay\n\
                dhcp-dns 1.1.1.1\na-pf0 0000:01:00.0,class=x\nno-stats\n";
    let args = load(Some(file), &["--dhcp-mtu", "1300", "--dhcp-dns", "8.8.8.8"]).unwrap();
    assert_eq!(args.pf0.as_deref(), Some("eth0"));
    assert_eq!(args.dhcp_mtu, 1300);
    assert!(args.enable_ipv6_overlay);
    let dns: Vec<String> = args.dhcp_dns.iter().map(ToString::to_string).collect();
    assert_eq!(dns, ["1.1.1.1", "8.8.8.8"]);
}

#[test]
fn what_stands_before_the_dashes_is_for_dpdk() {
    let options = [
        "-l",
        "0,1",
        "--",
        "--no-offload",
        "--pf0",
        "pf0",
        "--ipv6",
        "fc00:1::1",
    ];
    let file = "a-pf0 0000:01:00.0,class=x\n";
    let args = load(Some(file), &options).unwrap();
    assert_eq!(args.pf0.as_deref(), Some("pf0"));
    assert_eq!(args.eal, ["-l", "0,1", "-a", "0000:01:00.0,class=x"]);
    let native = load(None, &["--pf0", "pf0"]).unwrap();
    assert!(native.eal.is_empty());
    if cfg!(not(feature = "dpdk")) {
        let message = args.validate().unwrap_err().to_string();
        assert!(message.contains("--features dpdk"), "{message}");
    }
}

#[test]
fn mistakes_are_named_with_file_and_line() {
    for (file, message) in [
        ("pf0 eth0\nbogus 1\n", "FILE:2: bogus: unknown key"),
        ("\n\nversion\n", "FILE:3: version: unknown key"),
        ("no-stats yes\n", "FILE:1: no-stats: takes no value"),
        (
            "a-pf0\n",
            "FILE:1: a-pf0: a device of 1 to 127 characters is needed",
        ),
        (
            "dhcp-mtu 9\n",
            "FILE:1: dhcp-mtu: invalid value '9' for '--dhcp-mtu <N>': 9 is not in 68..=1500",
        ),
        (
            "pf0 averylongdevicename\n",
            "FILE:1: pf0: invalid value 'averylongdevicename' for '--pf0 <IF>': \
             a device name has 1 to 15 characters",
        ),
    ] {
        assert_eq!(load(Some(file), &[]).unwrap_err(), message);
    }
    let missing = Args::load(vec!["dpservice".into()], Some("/nonexistent/file".into()));
    let text = format!("{:#}", missing.unwrap_err());
    assert!(
        text.starts_with("cannot read configuration file /nonexistent/file: "),
        "{text}"
    );
}

#[test]
fn what_is_missing_is_named() {
    let check = |arguments: &[&str]| load(None, arguments).unwrap().validate().unwrap_err();
    assert!(check(&[]).to_string().starts_with("--pf0 is missing"));
    assert!(
        check(&["--pf0", "a"])
            .to_string()
            .starts_with("--ipv6 is missing")
    );
    let same = check(&["--pf0", "a", "--pf1", "a", "--ipv6", "fc00::1"]);
    assert!(same.to_string().starts_with("--pf0 and --pf1 are the same"));
}

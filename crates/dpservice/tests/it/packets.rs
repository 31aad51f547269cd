//! The executable as operators start it, with six TAP devices, against packets of a stack of its own: scapy. The scenario, the same for every
//! driver, is `tests/clients/packets.py`; it configures by `dpservice-cli -o json`.

use crate::fabric::{Namespace, Process, enter_private_namespace};
use std::process::Command;

/// What both configuration files hold: the reference's keys.
const CONFIG: &str = "# written by a host's set-up
no-stats
no-offload
nic-type tap
ipv6 fc00:1::1
enable-ipv6-overlay
dhcp-mtu 1337
dhcp-dns 8.8.4.4
dhcp-dns 8.8.8.8
dhcpv6-dns 2001:4860:4860::6464
dhcpv6-dns 2001:4860:4860::64
";

/// Starts dpservice with a configuration file and plays the scenario. `devices`: kernel names of the uplinks and of the machines' devices.
fn play(config: &str, arguments: &str, devices: &[&str]) {
    enter_private_namespace();
    let namespace = Namespace::own();
    namespace.run("ip link set lo up");
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("dpservice.conf");
    std::fs::write(&file, config).expect("write configuration");
    let service = Process::start(
        &namespace,
        &format!(
            "env DP_CONF={} {} {arguments}",
            file.display(),
            env!("CARGO_BIN_EXE_dpservice-bin")
        ),
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/packets.py");
    let output = Command::new("/usr/bin/python3")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_dpservice-cli"))
        .args(devices)
        .output()
        .expect("Debian's python3 with python3-scapy: cargo xtask setup");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(service.terminate().success());
}

#[test]
fn scapy_finds_the_native_taps_as_documented() {
    play(
        &format!("{CONFIG}pf0 pf0\npf1 pf1\ntap-count 4\nuplink-driver tap\n"),
        "--log-level warn",
        &["pf0", "pf1", "dtapvf_0", "dtapvf_1", "dtapvf_2", "dtapvf_3"],
    );
}

#[cfg(feature = "dpdk")]
#[test]
fn scapy_finds_dpdks_taps_as_documented() {
    let vdevs: Vec<String> = (0..6)
        .map(|number| match number {
            0 | 1 => {
                format!("--vdev=net_tap{number},iface=dtap{number},mac=22:22:22:22:22:0{number}")
            }
            _ => format!(
                "--vdev=net_tap{number},iface=dtap{number},mac=66:66:66:66:66:0{}",
                number - 2
            ),
        })
        .collect();
    let prefix = format!("okm-scapy-{}", std::process::id());
    play(
        &format!("{CONFIG}pf0 dtap0\npf1 dtap1\nvf-pattern dtap\n"),
        &format!(
            "-l 0,1 --no-huge --no-pci -m 256 --file-prefix {prefix} --log-level=error {} -- --log-level warn",
            vdevs.join(" ")
        ),
        &["dtap0", "dtap1", "dtap2", "dtap3", "dtap4", "dtap5"],
    );
    let _ = std::fs::remove_dir_all(format!("/var/run/dpdk/{prefix}"));
}

//! Names of devices: what claims, dpservice and status call them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use metalnet::device::{Function, PciAddress, PciNaming, discover, pci, taps};
use metalnet::model::DeviceStatus;

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

#[test]
fn tap_names() {
    let taps = taps(3);
    let names: Vec<_> = taps
        .iter()
        .map(|(claim, device)| (claim.as_str(), device.name.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("dtapvf_0", "net_tap2"),
            ("dtapvf_1", "net_tap3"),
            ("dtapvf_2", "net_tap4")
        ]
    );
    assert_eq!(
        taps[2].1.status,
        DeviceStatus::Tap {
            name: "dtapvf_2".to_owned()
        }
    );
}

#[test]
fn pci_addresses_parse_as_claims_write_them() {
    assert_eq!(address("0000:03:00.2").to_string(), "0000:03:00.2");
    assert_eq!(address("3B:1F.7").to_string(), "0000:3b:1f.7");
    for wrong in [
        "",
        "03:00",
        "03:00.8",
        "03:20.0",
        "0000:003:00.1",
        "123456789:03:00.1",
        "03:00.",
        "dtapvf_0",
    ] {
        assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
    }
}

fn physical(devices: &Path, name: &str, functions: &[&str], offset: &str) {
    let path = devices.join(name);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("vendor"), "0x15b3\n").unwrap();
    fs::write(path.join("class"), "0x020000\n").unwrap();
    fs::write(path.join("sriov_numvfs"), format!("{}\n", functions.len())).unwrap();
    fs::write(path.join("sriov_offset"), offset).unwrap();
    for (n, function) in functions.iter().enumerate() {
        symlink(format!("../{function}"), path.join(format!("virtfn{n}"))).unwrap();
    }
}

#[test]
fn virtual_functions_are_found_in_sysfs() {
    let root = tempfile::tempdir().unwrap();
    let devices = root.path().join("bus/pci/devices");
    physical(
        &devices,
        "0000:3b:00.0",
        &["0000:3b:00.2", "0000:3b:00.3", "0000:3b:01.2"],
        "2\n",
    );
    physical(&devices, "0000:3b:00.1", &[], "2\n");
    fs::create_dir_all(devices.join("0000:00:1f.0")).unwrap();
    fs::write(devices.join("0000:00:1f.0/vendor"), "0x8086\n").unwrap();
    let found = discover(root.path(), address("0000:03:00.0"));
    let naming = PciNaming::new("node-1", false);
    let names: Vec<_> = found
        .iter()
        .map(|f| pci(*f, &naming))
        .map(|(claim, d)| (claim, d.name))
        .collect();
    let want = |claim: &str, name: &str| (claim.to_owned(), name.to_owned());
    assert_eq!(
        names,
        [
            want("0000:3b:00.2", "0000:3b:00.0_representor_vf0"),
            want("0000:3b:00.3", "0000:3b:00.0_representor_vf1"),
            want("0000:3b:01.2", "0000:3b:00.0_representor_vf8"),
        ]
    );
}

#[test]
fn without_sysfs_the_functions_follow_the_base_address() {
    let root = tempfile::tempdir().unwrap();
    let found = discover(root.path(), address("0000:03:00.0"));
    assert_eq!(found.len(), 126);
    assert_eq!(found[0].address, address("0000:03:00.3"));
    assert_eq!(found[125].address, address("0000:03:10.0"));
    let (_, device) = pci(found[125], &PciNaming::new("n", true));
    assert_eq!(device.name, "0000:03:00.0_representor_c0pf0vf125");
}

#[test]
fn a_dpu_shows_the_host_s_bus() {
    let function = Function {
        address: address("0000:03:00.5"),
        parent: None,
    };
    for (node, bus) in [
        ("rack1-bluefield2", "06"),
        ("rack1-blfd2", "06"),
        ("rack1", "03"),
    ] {
        let (claim, device) = pci(function, &PciNaming::new(node, false));
        assert_eq!(claim, "0000:03:00.5");
        let status = DeviceStatus::Pci {
            domain: "0000".to_owned(),
            bus: bus.to_owned(),
            slot: "00".to_owned(),
            function: "5".to_owned(),
        };
        assert_eq!(device.status, status);
    }
}

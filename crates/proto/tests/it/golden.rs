//! Messages whose bytes were computed by hand: tag = field number × 8 + wire type (0 varint, 2 length-delimited).

use prost::Message;
use proto::{dpdk, event, machine, meta};

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(message: M, bytes: &[u8]) {
    assert_eq!(message.encode_to_vec(), bytes);
    assert_eq!(M::decode(bytes).expect("decodes"), message);
}

#[test]
fn status_of_a_failure() {
    // 08 = field 1 varint; 205 = cd 01; 12 = field 2 bytes
    check(
        dpdk::GetVipResponse {
            status: Some(dpdk::Status {
                code: 205,
                message: "NO_VM".into(),
            }),
            ..Default::default()
        },
        b"\x0a\x0a\x08\xcd\x01\x12\x05NO_VM",
    );
}

#[test]
fn create_interface() {
    check(
        dpdk::CreateInterfaceRequest {
            interface_type: dpdk::InterfaceType::Baremetal.into(),
            interface_id: b"vm1".to_vec(),
            vni: 100,
            ipv4_config: Some(dpdk::IpConfig {
                primary_address: b"10.0.0.1".to_vec(),
            }),
            ipv6_config: Some(dpdk::IpConfig {
                primary_address: b"::".to_vec(),
            }),
            pxe_config: Some(dpdk::PxeConfig {
                next_server: "n".into(),
                boot_filename: "f".into(),
            }),
            device_name: "net_tap2".into(),
            metering_parameters: Some(dpdk::MeteringParams {
                total_rate: 300,
                public_rate: 1,
            }),
            preferred_underlay_route: b"fc00::1".to_vec(),
            hostname: "h".into(),
            ..Default::default()
        },
        b"\x08\x01\
          \x12\x03vm1\
          \x18\x64\
          \x22\x0a\x0a\x0810.0.0.1\
          \x2a\x04\x0a\x02::\
          \x32\x06\x0a\x01n\x12\x01f\
          \x3a\x08net_tap2\
          \x42\x05\x08\xac\x02\x10\x01\
          \x4a\x07fc00::1\
          \x52\x01h",
    );
    check(
        dpdk::CreateInterfaceResponse {
            status: None,
            underlay_route: b"fc00::2".to_vec(),
            vf: Some(dpdk::VirtualFunction {
                name: "dtapvf_0".into(),
                ..Default::default()
            }),
            ..Default::default()
        },
        b"\x12\x07fc00::2\x1a\x0a\x0a\x08dtapvf_0",
    );
}

#[test]
fn listed_interface() {
    check(
        dpdk::Interface {
            id: b"a".to_vec(),
            vni: 1,
            primary_ipv4: b"b".to_vec(),
            primary_ipv6: b"c".to_vec(),
            underlay_route: b"d".to_vec(),
            pci_name: "e".into(),
            metering_params: Some(dpdk::MeteringParams {
                total_rate: 0,
                public_rate: 2,
            }),
            hostname: "f".into(),
        },
        b"\x0a\x01a\x10\x01\x1a\x01b\x22\x01c\x2a\x01d\x32\x01e\x3a\x02\x10\x02\x42\x01f",
    );
}

#[test]
fn route() {
    check(
        dpdk::CreateRouteRequest {
            vni: 100,
            replace: false,
            route: Some(dpdk::Route {
                prefix: Some(dpdk::Prefix {
                    ip: Some(dpdk::IpAddress {
                        ipver: dpdk::IpVersion::Ipv6.into(),
                        address: b"::".to_vec(),
                    }),
                    length: 64,
                    underlay_route: Vec::new(),
                }),
                nexthop_vni: 5,
                nexthop_address: Some(dpdk::IpAddress {
                    ipver: dpdk::IpVersion::Ipv6.into(),
                    address: b"fc00::1".to_vec(),
                }),
                weight: 100,
            }),
        },
        b"\x08\x64\
          \x12\x1d\
            \x0a\x0a\x0a\x06\x08\x01\x12\x02::\x10\x40\
            \x10\x05\
            \x1a\x0b\x08\x01\x12\x07fc00::1\
            \x20\x64",
    );
}

#[test]
fn nat_and_neighbor_nat() {
    let ip = Some(dpdk::IpAddress {
        ipver: 0,
        address: b"1.2.3.4".to_vec(),
    });
    check(
        dpdk::CreateNatRequest {
            interface_id: b"i".to_vec(),
            nat_ip: ip.clone(),
            min_port: 1024,
            max_port: 65535,
            preferred_underlay_route: b"::".to_vec(),
        },
        b"\x0a\x01i\x12\x09\x12\x071.2.3.4\x18\x80\x08\x20\xff\xff\x03\x2a\x02::",
    );
    check(
        dpdk::CreateNeighborNatRequest {
            nat_ip: ip,
            vni: 7,
            min_port: 1,
            max_port: 2,
            underlay_route: b"::1".to_vec(),
        },
        b"\x0a\x09\x12\x071.2.3.4\x10\x07\x18\x01\x20\x02\x2a\x03::1",
    );
}

#[test]
fn firewall_rule_with_any_port() {
    // -1 as int32 is ten bytes: ff ×9, 01.
    check(
        dpdk::FirewallRule {
            id: b"r".to_vec(),
            direction: dpdk::TrafficDirection::Egress.into(),
            action: dpdk::FirewallAction::Accept.into(),
            priority: 1000,
            source_prefix: None,
            destination_prefix: None,
            protocol_filter: Some(dpdk::ProtocolFilter {
                filter: Some(dpdk::protocol_filter::Filter::Udp(dpdk::UdpFilter {
                    src_port_lower: -1,
                    src_port_upper: 0,
                    dst_port_lower: 53,
                    dst_port_upper: 53,
                })),
            }),
        },
        b"\x0a\x01r\x10\x01\x18\x01\x20\xe8\x07\
          \x3a\x11\x1a\x0f\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x18\x35\x20\x35",
    );
}

#[test]
fn capture() {
    check(
        dpdk::CaptureConfig {
            sink_node_ip: None,
            udp_src_port: 1,
            udp_dst_port: 2,
            interfaces: vec![
                dpdk::CapturedInterface {
                    interface_type: dpdk::CaptureInterfaceType::SingleVf.into(),
                    filter: Vec::new(),
                    spec: Some(dpdk::captured_interface::Spec::VfName(b"v".to_vec())),
                },
                dpdk::CapturedInterface {
                    interface_type: dpdk::CaptureInterfaceType::SinglePf.into(),
                    filter: Vec::new(),
                    spec: Some(dpdk::captured_interface::Spec::PfIndex(1)),
                },
            ],
        },
        b"\x10\x01\x18\x02\x22\x05\x08\x01\x1a\x01v\x22\x02\x20\x01",
    );
}

#[test]
fn machine() {
    check(
        machine::Machine {
            metadata: Some(meta::ObjectMetadata {
                id: "m".into(),
                generation: 3,
                created_at: 1,
                deleted_at: 2,
                labels: [("k".to_string(), "v".to_string())].into(),
                ..Default::default()
            }),
            spec: Some(machine::MachineSpec {
                power: machine::Power::Off.into(),
                class: "c".into(),
                network_interfaces: vec![machine::NetworkInterface {
                    name: "n".into(),
                    network_id: "w".into(),
                    ips: vec!["::1".into()],
                    ..Default::default()
                }],
                ..Default::default()
            }),
            status: Some(machine::MachineStatus {
                observed_generation: 3,
                state: machine::MachineState::MachineRunning.into(),
                network_interfaces: vec![machine::NetworkInterfaceStatus {
                    name: "n".into(),
                    handle: "h".into(),
                    state: machine::NetworkInterfaceState::NetworkInterfaceAttached.into(),
                }],
                ..Default::default()
            }),
        },
        b"\x0a\x11\x0a\x01m\x1a\x06\x0a\x01k\x12\x01v\x20\x03\x28\x01\x30\x02\
          \x12\x12\x08\x01\x12\x01c\x2a\x0b\x0a\x01n\x12\x01w\x1a\x03::1\
          \x1a\x0e\x08\x03\x10\x01\x2a\x08\x0a\x01n\x12\x01h\x18\x01",
    );
}

#[test]
fn event() {
    check(
        event::Event {
            spec: Some(event::EventSpec {
                involved_object_meta: None,
                reason: "r".into(),
                message: "m".into(),
                r#type: "t".into(),
                event_time: 9,
                action: "a".into(),
            }),
        },
        b"\x12\x0e\x12\x01r\x1a\x01m\x22\x01t\x28\x09\x32\x01a",
    );
}

#[test]
fn service_paths() {
    assert_eq!(
        dpdk::dpd_kironcore_server::SERVICE_NAME,
        "dpdkironcore.v1.DPDKironcore"
    );
    assert_eq!(
        machine::machine_runtime_server::SERVICE_NAME,
        "machine.v1alpha1.MachineRuntime"
    );
}

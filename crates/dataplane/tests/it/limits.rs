//! As much as a host may be configured for.

use crate::bed::*;
use crate::build;
use dataplane::{
    EngineConfig, LbPort, Limits, LoadBalancerSpec, PortConfig, PortId, PortKind, Verdict,
};
use net::{Mac, Vni};

const MACHINES: u16 = 1_024;
const NETWORKS: u32 = 10_000;

/// A machine on every port that there can be, in networks of their own, and load balancers in all others.
#[test]
fn a_thousand_interfaces_and_ten_thousand_networks() {
    let mut config = config();
    let more = (config.ports.len() as u16..MACHINES + 2).map(|number| PortConfig {
        name: format!("net_tap{number}"),
        kind: PortKind::Machine,
        mac: Mac([2, 0, 0, 1, (number >> 8) as u8, number as u8]),
    });
    config.ports.extend(more);
    assert_eq!(config.ports.len(), EngineConfig::PORTS_MAX);
    config.limits = Limits {
        vnis_max: NETWORKS as u16,
        underlay_max: Limits::UNDERLAY_MAX,
        load_balancers_max: NETWORKS,
        flows_max: 10_000,
        nat_max: 1_000,
        ..Limits::default()
    };
    let mut bed = Bed::empty(config);
    let vni = |number: u32| Vni::new(number).unwrap();
    for number in 0..MACHINES {
        // Two in each network.
        let network = vni(1 + u32::from(number / 2));
        let address = format!("10.0.0.{}", 1 + number % 2);
        let port = PortId(number + 2);
        bed.attach(spec(&format!("vm{number}"), port, network, &address, ""));
    }
    let networks = u32::from(MACHINES / 2);
    for number in networks..NETWORKS {
        let balancer = LoadBalancerSpec {
            id: format!("lb{number}"),
            vni: vni(1 + number),
            address: build::address("172.22.0.1"),
            ports: vec![LbPort {
                protocol: 6,
                port: 80,
            }],
            preferred_underlay: None,
        };
        bed.engine.create_load_balancer(balancer).unwrap();
    }
    // One more network, or machine, is one too many.
    let refused = spec(
        "more",
        PortId(MACHINES + 2),
        vni(NETWORKS + 1),
        "10.0.0.1",
        "",
    );
    bed.engine.create_interface(refused).unwrap_err();
    for number in (0..MACHINES).step_by(2) {
        let (from, to) = (PortId(number + 2), PortId(number + 3));
        let packet = build::udp(("10.0.0.1", 5), ("10.0.0.2", 6), b"x");
        for _ in 0..2 {
            let (verdict, frame) = bed.send(from, &from_guest(&packet));
            assert_eq!(
                (verdict, hex(&frame[14..])),
                (Verdict::Transmit(to), hex(&packet))
            );
        }
    }
    // And by the fabric, to the last one.
    let last = bed.underlay(&format!("vm{}", MACHINES - 1));
    let packet = build::udp(("10.0.9.9", 5), ("10.0.0.2", 6), b"x");
    let (verdict, _) = bed.send(PF0, &from_fabric(last, &packet));
    assert_eq!(verdict, Verdict::Transmit(PortId(MACHINES + 1)));
}

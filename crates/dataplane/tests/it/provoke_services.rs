//! Provoking the drop reasons of services.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use dataplane::{
    DropReason, FirewallAction, FirewallRule, LbPort, LoadBalancerSpec, Metering, PortId,
    RuleDirection, RuleFilter, RulePrefix, VirtualServiceSpec,
};
use net::Mac;

const VM: &str = "10.100.1.1";
const LB: &str = "172.22.2.1";

/// A host, a port and a frame that is dropped there for `reason`, if it is the reason of a service.
pub fn provoke(reason: DropReason) -> Option<(Bed, PortId, Vec<u8>)> {
    let mut bed = Bed::public();
    let out = from_guest(&build::udp((VM, 1), (PUBLIC, 2), b"x"));
    let found = match reason {
        DropReason::FirewallEgress => (VM1, filtered(&mut bed, RuleDirection::Egress, out)),
        DropReason::FirewallIngress => {
            let frame = from_fabric(bed.underlay("vm1"), &build::udp((PUBLIC, 1), (VM, 2), b""));
            (PF0, filtered(&mut bed, RuleDirection::Ingress, frame))
        }
        DropReason::LbUnserved => (PF0, balanced(&mut bed, 81)),
        DropReason::LbNoTarget => (PF0, balanced(&mut bed, 80)),
        DropReason::NatUnsolicited => {
            let underlay = nat(&mut bed);
            let packet = build::udp((PUBLIC, 2), (NAT, 100), b"x");
            (PF0, from_fabric(underlay, &packet))
        }
        DropReason::NatExhausted => {
            nat(&mut bed);
            bed.guest(VM1, &build::udp((VM, 7), (PUBLIC, 2), b"x"));
            (VM1, out)
        }
        DropReason::NatTableFull => {
            let mut config = config();
            config.limits.nat_max = 1;
            bed = Bed::with(config);
            bed.default_routes(V100);
            nat(&mut bed);
            bed.guest(VM1, &build::udp((VM, 7), (PUBLIC, 2), b"x"));
            (VM1, out)
        }
        DropReason::FragmentUnknown => {
            let fragment = build::ipv4_with(17, v4(VM), v4(PUBLIC), 3, &[], &[0; 8]);
            (VM1, from_guest(&fragment))
        }
        DropReason::HopsExceeded => {
            let mut config = config();
            config.decrement_hops = true;
            bed = Bed::with(config);
            let mut packet = build::udp(("10.100.2.1", 7), (VM, 2), b"x");
            (packet[8], packet[11]) = (1, packet[11].wrapping_add(60));
            (PF0, from_fabric(bed.underlay("vm1"), &packet))
        }
        DropReason::NotTranslatable => {
            nat(&mut bed);
            // Code 7 of "destination unreachable" has no counterpart.
            let vm = "2000:100:1::1";
            bed.guest(VM1, &build::udp((vm, 5), (PUBLIC6, 6), b"x"));
            let quoted = build::udp((PUBLIC6, 6), (vm, 5), b"y");
            let error = build::icmp(vm, PUBLIC6, 1, 7, [0; 4], &quoted);
            (VM1, from_guest(&error))
        }
        DropReason::TotalRate => (VM4, over_limit(&mut bed, 1, 0)),
        DropReason::PublicRate => (VM4, over_limit(&mut bed, 1_000, 1)),
        DropReason::VirtualServiceFull => {
            bed = with_virtual_service();
            for index in 0..64_512_u32 {
                let host = if index < 60_000 { VM } else { "10.100.1.2" };
                let port = if index < 60_000 { VM1 } else { VM2 };
                let packet = build::udp((host, index as u16), ("1.2.3.4", 53), b"q");
                assert!(matches!(
                    bed.send(port, &from_guest(&packet)).0,
                    dataplane::Verdict::Transmit(_)
                ));
            }
            let packet = build::udp((VM, 65_000), ("1.2.3.4", 53), b"q");
            (VM1, from_guest(&packet))
        }
        DropReason::VirtualServiceUnknown => {
            bed = with_virtual_service();
            let to = "fc00:1::d0ff:4000:0:0";
            let packet = build::udp(("2001:db8::53", 53), (to, 2_000), b"a");
            let frame = build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, &packet);
            (PF0, frame)
        }
        _ => return None,
    };
    let (port, frame) = found;
    Some((bed, port, frame))
}

fn nat(bed: &mut Bed) -> core::net::Ipv6Addr {
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 101), None)
        .unwrap()
}

fn filtered(bed: &mut Bed, direction: RuleDirection, frame: Vec<u8>) -> Vec<u8> {
    let none = RulePrefix::new(address("9.9.9.9"), 32).unwrap();
    let rule = FirewallRule {
        id: "r".to_owned(),
        direction,
        action: FirewallAction::Accept,
        priority: 1,
        source: none,
        destination: none,
        filter: RuleFilter::Any,
    };
    bed.engine.create_firewall_rule("vm1", rule).unwrap();
    frame
}

fn balanced(bed: &mut Bed, port: u16) -> Vec<u8> {
    let spec = LoadBalancerSpec {
        id: "lb".to_owned(),
        vni: V100,
        address: address(LB),
        ports: vec![LbPort {
            protocol: 17,
            port: 80,
        }],
        preferred_underlay: None,
    };
    let underlay = bed.engine.create_load_balancer(spec).unwrap();
    from_fabric(underlay, &build::udp((PUBLIC, 1), (LB, port), b"x"))
}

fn over_limit(bed: &mut Bed, total_rate: u64, public_rate: u64) -> Vec<u8> {
    let mut vm4 = spec("vm4", VM4, V100, "10.100.1.4", "");
    vm4.metering = Metering {
        total_rate,
        public_rate,
    };
    bed.attach(vm4);
    let packet = build::udp(("10.100.1.4", 1), (PUBLIC, 2), &[0; 1_400]);
    for _ in 0..200 {
        bed.guest(VM4, &packet);
    }
    from_guest(&packet)
}

fn with_virtual_service() -> Bed {
    let mut config = config();
    config.virtual_services = vec![VirtualServiceSpec {
        protocol: 17,
        address: v4("1.2.3.4"),
        port: 53,
        service: v6("2001:db8::53"),
        service_port: 53,
    }];
    Bed::with(config)
}

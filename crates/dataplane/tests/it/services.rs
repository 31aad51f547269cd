//! Configuration of services: status codes, order of checks, lists, what goes with what.

use crate::bed::*;
use crate::build::address;
use core::net::{IpAddr, Ipv6Addr};
use dataplane::{
    CapturePort, CaptureSpec, ConfigError, FirewallAction, FirewallRule, LbPort, LoadBalancerSpec,
    PacketBuf, RuleDirection, RuleFilter, RulePrefix, UnderlayKind, VniType,
};
use net::{PortRange, Vni};

fn range(first: u16, end: u16) -> PortRange {
    PortRange::new(first, end).unwrap()
}

fn preferred(text: &str) -> Option<Ipv6Addr> {
    Some(v6(text))
}

const VIP: &str = "172.20.0.1";
const NAT: &str = "172.21.0.1";

#[test]
fn vips() {
    let mut bed = Bed::new();
    let taken = bed.underlay("vm1");
    let engine = &mut bed.engine;
    assert_eq!(engine.vip("vm9"), Err(ConfigError::NoVm));
    assert_eq!(engine.vip("vm1"), Err(ConfigError::SnatNoData));
    assert_eq!(engine.delete_vip("vm1"), Err(ConfigError::SnatNoData));
    assert_eq!(
        engine.create_vip("vm9", address(VIP), None),
        Err(ConfigError::NoVm)
    );
    assert_eq!(
        engine.create_vip("vm1", address("fd00::1"), None),
        Err(ConfigError::BadIpVersion)
    );
    let epoch = engine.tables().epoch();
    let _ = taken;
    let underlay = engine
        .create_vip("vm1", address(VIP), preferred("fc00:1::8000:0:1"))
        .unwrap();
    assert_eq!(underlay, v6("fc00:1::8000:0:1"));
    assert_ne!(engine.tables().epoch(), epoch);
    let collision = engine.create_vip("vm2", address(VIP), preferred("fc00:1::8000:0:1"));
    assert_eq!(
        collision,
        Err(ConfigError::VnfInsert),
        "checked before the address"
    );
    assert_eq!(
        engine.create_vip("vm1", address("172.20.0.2"), None),
        Err(ConfigError::SnatExists)
    );
    assert_eq!(
        engine.create_vip("vm2", address(VIP), None),
        Err(ConfigError::DnatExists)
    );
    assert!(
        engine.create_vip("vm3", address(VIP), None).is_ok(),
        "another network"
    );
    engine
        .create_nat("vm2", address(NAT), range(1, 9), None)
        .unwrap();
    assert_eq!(
        engine.create_vip("vm2", address(NAT), None),
        Err(ConfigError::DnatExists),
        "a NAT address"
    );
    let vip = engine.vip("vm1").unwrap();
    assert_eq!((vip.address, vip.underlay), (v4(VIP), underlay));
    assert_eq!(engine.delete_vip("vm1"), Ok(()));
    assert_eq!(engine.vip("vm1"), Err(ConfigError::SnatNoData));
    assert!(
        engine
            .create_vip("vm2", address(VIP), preferred("fc00:1::8000:0:1"))
            .is_ok(),
        "both are free again"
    );
    // A VIP and a NAT may be together on one interface, and the address of either belongs to its network alone.
    assert!(engine.nat("vm2").is_ok());
}

#[test]
fn nats() {
    let mut bed = Bed::new();
    let engine = &mut bed.engine;
    assert_eq!(
        engine.create_nat("vm9", address(NAT), range(1, 2), None),
        Err(ConfigError::NoVm)
    );
    assert_eq!(
        engine.create_nat("vm1", address("::1"), range(1, 2), None),
        Err(ConfigError::BadIpVersion)
    );
    assert_eq!(engine.nat("vm1"), Err(ConfigError::SnatNoData));
    assert_eq!(engine.delete_nat("vm1"), Err(ConfigError::SnatNoData));
    let first = engine
        .create_nat("vm1", address(NAT), range(100, 200), None)
        .unwrap();
    assert_eq!(
        engine.create_nat("vm1", address(NAT), range(200, 300), None),
        Err(ConfigError::SnatExists)
    );
    engine
        .create_nat("vm2", address(NAT), range(150, 300), None)
        .unwrap();
    engine
        .create_nat("vm3", address("172.21.0.2"), range(1, 2), None)
        .unwrap();
    let nat = engine.nat("vm1").unwrap();
    assert_eq!(
        (nat.address, nat.ports, nat.underlay),
        (v4(NAT), range(100, 200), first)
    );
    let list = |engine: &dataplane::Engine, text: &str| -> Vec<_> {
        let nats = engine.local_nats(address(text)).unwrap();
        nats.iter()
            .map(|nat| {
                (
                    nat.vni.get(),
                    nat.machine.to_string(),
                    nat.nat.ports.first(),
                )
            })
            .collect()
    };
    assert_eq!(
        list(engine, NAT),
        [
            (100, "10.100.1.2".to_owned(), 150),
            (100, "10.100.1.1".to_owned(), 100)
        ],
        "hash order: the second machine comes first"
    );
    assert_eq!(list(engine, "0.0.0.0").len(), 3);
    assert_eq!(list(engine, "1.2.3.4"), []);
    assert_eq!(
        engine.local_nats(address("::")),
        Err(ConfigError::BadIpVersion)
    );
    engine.delete_nat("vm1").unwrap();
    // One user less, but the address is still known.
    assert_eq!(
        engine.create_vip("vm1", address(NAT), None),
        Err(ConfigError::DnatExists)
    );
    engine.delete_nat("vm2").unwrap();
    assert!(
        engine.create_vip("vm1", address(NAT), None).is_ok(),
        "a NAT address can become a VIP afterwards"
    );
}

#[test]
fn neighbor_nats() {
    let mut small = config();
    small.limits.neighbor_nats_max = 3;
    let mut bed = Bed::with(small);
    let engine = &mut bed.engine;
    let v300 = Vni::new(300).unwrap();
    let hop = neighbour();
    let create = |engine: &mut dataplane::Engine, vni, first, end| {
        engine.create_neighbor_nat(address(NAT), vni, range(first, end), hop)
    };
    assert_eq!(
        engine.create_neighbor_nat(address("::1"), V100, range(1, 2), hop),
        Err(ConfigError::BadIpVersion)
    );
    assert_eq!(create(engine, V100, 100, 200), Ok(()));
    for (first, end) in [(100, 200), (99, 101), (199, 300), (120, 130), (50, 500)] {
        assert_eq!(
            create(engine, v300, first, end),
            Err(ConfigError::AlreadyExists),
            "{first}..{end}, whatever the network"
        );
    }
    assert_eq!(
        create(engine, v300, 200, 300),
        Ok(()),
        "the network need not exist"
    );
    assert_eq!(create(engine, V100, 50, 100), Ok(()));
    assert_eq!(create(engine, V100, 1, 2), Err(ConfigError::OutOfMemory));
    let firsts = |engine: &dataplane::Engine, text: &str| -> Vec<u16> {
        let nats = engine.neighbor_nats(address(text)).unwrap();
        nats.iter().map(|nat| nat.ports.first()).collect()
    };
    assert_eq!(firsts(engine, NAT), [100, 200, 50], "in order of creation");
    assert_eq!(firsts(engine, "0.0.0.0"), [100, 200, 50]);
    assert_eq!(firsts(engine, "1.2.3.4"), [0_u16; 0]);
    assert_eq!(
        engine.neighbor_nats(address("::")),
        Err(ConfigError::BadIpVersion)
    );
    let delete = |engine: &mut dataplane::Engine, vni, first, end| {
        engine.delete_neighbor_nat(address(NAT), vni, range(first, end))
    };
    assert_eq!(delete(engine, V100, 100, 199), Err(ConfigError::NotFound));
    assert_eq!(delete(engine, V200, 100, 200), Err(ConfigError::NotFound));
    assert_eq!(
        engine.create_vip("vm1", address(NAT), None),
        Err(ConfigError::DnatExists)
    );
    assert_eq!(delete(engine, V100, 100, 200), Ok(()));
    assert_eq!(delete(engine, V100, 100, 200), Err(ConfigError::NotFound));
    assert_eq!(delete(engine, V100, 50, 100), Ok(()));
    assert!(engine.create_vip("vm1", address(NAT), None).is_ok());
    engine.initialize();
    assert_eq!(
        firsts(engine, "0.0.0.0"),
        [0_u16; 0],
        "Initialize forgets other hosts"
    );
    assert!(engine.vip("vm1").is_ok());
}

fn balancer(id: &str, vni: Vni, text: &str) -> LoadBalancerSpec {
    LoadBalancerSpec {
        id: id.to_owned(),
        vni,
        address: address(text),
        ports: vec![
            LbPort {
                protocol: 6,
                port: 443,
            },
            LbPort {
                protocol: 17,
                port: 53,
            },
        ],
        preferred_underlay: None,
    }
}

#[test]
fn load_balancers_and_targets() {
    let mut small = config();
    small.limits.load_balancers_max = 3;
    small.limits.vnis_max = 3;
    let mut bed = Bed::with(small);
    let engine = &mut bed.engine;
    let v300 = Vni::new(300).unwrap();
    assert_eq!(engine.load_balancer("lb"), Err(ConfigError::NotFound));
    assert_eq!(
        engine.delete_load_balancer("lb"),
        Err(ConfigError::NotFound)
    );
    let spec = balancer("lb", V100, "172.22.1.1");
    let underlay = engine.create_load_balancer(spec.clone()).unwrap();
    assert_eq!(
        engine.load_balancer("lb"),
        Ok(LoadBalancerSpec {
            preferred_underlay: Some(underlay),
            ..spec
        })
    );
    let create = |engine: &mut dataplane::Engine, id, vni, ip| {
        engine.create_load_balancer(balancer(id, vni, ip))
    };
    assert_eq!(
        create(engine, "other", V100, "172.22.1.1"),
        Err(ConfigError::AlreadyExists)
    );
    assert_eq!(
        create(engine, "lb", V200, "172.22.1.9"),
        Err(ConfigError::AlreadyExists),
        "an id is one load balancer"
    );
    let mut taken = balancer("x", V100, "172.22.1.1");
    taken.preferred_underlay = preferred("fc00:1::8000:0:5");
    engine
        .create_vip("vm1", address(VIP), preferred("fc00:1::8000:0:5"))
        .unwrap();
    assert_eq!(
        engine.create_load_balancer(taken),
        Err(ConfigError::VnfInsert),
        "checked first"
    );
    assert!(create(engine, "six", v300, "fd00::1").is_ok());
    assert_eq!(
        engine.vni_in_use(v300, VniType::Ipv6),
        Ok(true),
        "a load balancer keeps its network"
    );
    assert_eq!(
        create(engine, "y", Vni::new(301).unwrap(), "172.22.1.1"),
        Err(ConfigError::VniInit)
    );
    assert!(create(engine, "a", V200, "172.22.1.1").is_ok());
    assert_eq!(
        create(engine, "z", V200, "172.22.1.2"),
        Err(ConfigError::OutOfMemory)
    );
    let ids: Vec<_> = engine.load_balancers().map(|spec| spec.id).collect();
    assert_eq!(ids, ["a", "lb", "six"]);

    let add = |engine: &mut dataplane::Engine, id: &str, target: &str| {
        engine.create_load_balancer_target(id, address(target))
    };
    assert_eq!(
        add(engine, "nope", "10.0.0.1"),
        Err(ConfigError::BadIpVersion),
        "checked first"
    );
    assert_eq!(add(engine, "nope", "fc00:2::1"), Err(ConfigError::NoLb));
    assert_eq!(add(engine, "lb", "fc00:2::2"), Ok(()));
    assert_eq!(add(engine, "lb", "fc00:2::1"), Ok(()));
    assert_eq!(add(engine, "six", "fc00:2::9"), Ok(()));
    assert_eq!(
        add(engine, "lb", "fc00:2::1"),
        Err(ConfigError::AlreadyExists)
    );
    assert_eq!(add(engine, "lb", "::"), Err(ConfigError::AlreadyExists));
    assert_eq!(
        engine.load_balancer_targets("lb"),
        Ok(vec![v6("fc00:2::1"), v6("fc00:2::2")])
    );
    assert_eq!(engine.load_balancer_targets("").unwrap().len(), 3);
    assert_eq!(engine.load_balancer_targets("nope"), Err(ConfigError::NoLb));
    for index in 3..=64 {
        assert_eq!(add(engine, "lb", &format!("fc00:2::{index:x}")), Ok(()));
    }
    assert_eq!(add(engine, "lb", "fc00:3::1"), Err(ConfigError::BackipAdd));
    assert_eq!(add(engine, "lb", "::"), Err(ConfigError::BackipAdd));
    let delete = |engine: &mut dataplane::Engine, id: &str, target: &str| {
        engine.delete_load_balancer_target(id, address(target))
    };
    assert_eq!(
        delete(engine, "nope", "10.0.0.1"),
        Err(ConfigError::BadIpVersion)
    );
    assert_eq!(delete(engine, "nope", "fc00:2::1"), Err(ConfigError::NoLb));
    assert_eq!(
        delete(engine, "lb", "fc00:3::1"),
        Err(ConfigError::NotFound)
    );
    assert_eq!(delete(engine, "lb", "fc00:2::1"), Ok(()));
    assert_eq!(engine.delete_load_balancer("lb"), Ok(()));
    assert_eq!(
        engine.load_balancer_targets("lb"),
        Err(ConfigError::NoLb),
        "targets go with it"
    );
    assert!(create(engine, "lb", V100, "172.22.1.1").is_ok());
    assert_eq!(engine.load_balancer_targets("lb"), Ok(vec![]));
}

#[test]
fn networks_live_as_long_as_their_last_user() {
    let mut bed = Bed::new();
    let engine = &mut bed.engine;
    engine
        .create_load_balancer(balancer("lb", V200, "172.22.1.1"))
        .unwrap();
    engine
        .create_neighbor_nat(address(NAT), V200, range(1, 9), neighbour())
        .unwrap();
    engine.delete_interface("vm3").unwrap();
    assert_eq!(engine.vni_in_use(V200, VniType::Ipv4), Ok(true));
    assert_eq!(engine.neighbor_nats(address(NAT)).unwrap().len(), 1);
    engine.reset_vni(V200, VniType::Both).unwrap();
    assert_eq!(
        engine.neighbor_nats(address(NAT)).unwrap().len(),
        1,
        "routes only"
    );
    engine.delete_load_balancer("lb").unwrap();
    assert_eq!(engine.vni_in_use(V200, VniType::Ipv4), Ok(false));
    assert_eq!(
        engine.neighbor_nats(address(NAT)),
        Ok(vec![]),
        "they go with the network"
    );
    bed.attach(spec("vm3", VM3, V200, "10.100.1.1", ""));
    assert!(bed.engine.create_vip("vm3", address(NAT), None).is_ok());
}

#[test]
fn load_balancer_prefixes() {
    let mut bed = Bed::new();
    let engine = &mut bed.engine;
    let create = |engine: &mut dataplane::Engine, id: &str, ip: &str, length| {
        engine.create_lb_prefix(id, address(ip), length, None)
    };
    assert_eq!(
        create(engine, "vm9", "172.22.1.1", 32),
        Err(ConfigError::NoVm)
    );
    assert_eq!(engine.lb_prefixes("vm9"), Err(ConfigError::NoVm));
    let first = create(engine, "vm1", "172.22.1.1", 32).unwrap();
    assert_eq!(
        create(engine, "vm1", "172.22.1.1", 32),
        Err(ConfigError::AlreadyExists)
    );
    assert!(
        create(engine, "vm2", "172.22.1.1", 32).is_ok(),
        "several targets on one host"
    );
    let second = create(engine, "vm1", "fd00::1", 128).unwrap();
    let listed: Vec<_> = engine
        .lb_prefixes("vm1")
        .unwrap()
        .iter()
        .map(|(prefix, underlay)| (prefix.to_string(), *underlay))
        .collect();
    assert_eq!(
        listed,
        [
            ("172.22.1.1/32".to_owned(), first),
            ("fd00::1/128".to_owned(), second)
        ]
    );
    assert!(
        engine
            .create_route(V100, address("172.22.1.1"), 32, IpAddr::V6(neighbour()), 0)
            .is_ok(),
        "there is no route to it"
    );
    assert_eq!(
        engine.delete_lb_prefix("vm9", address("172.22.1.1"), 32),
        Err(ConfigError::NoVm)
    );
    assert_eq!(
        engine.delete_lb_prefix("vm1", address("172.22.1.2"), 32),
        Err(ConfigError::NotFound)
    );
    assert_eq!(
        engine.delete_lb_prefix("vm1", address("172.22.1.1"), 32),
        Ok(())
    );
    assert_eq!(
        engine.delete_lb_prefix("vm1", address("172.22.1.1"), 32),
        Err(ConfigError::NotFound)
    );
}

fn rule(id: &str) -> FirewallRule {
    let any = RulePrefix::new(address("0.0.0.0"), 0).unwrap();
    FirewallRule {
        id: id.to_owned(),
        direction: RuleDirection::Ingress,
        action: FirewallAction::Drop,
        priority: 7,
        source: any,
        destination: any,
        filter: RuleFilter::Any,
    }
}

#[test]
fn firewall_rules() {
    let mut bed = Bed::new();
    let engine = &mut bed.engine;
    assert_eq!(
        engine.create_firewall_rule("vm9", rule("a")),
        Err(ConfigError::NoVm)
    );
    assert_eq!(engine.firewall_rule("vm9", "a"), Err(ConfigError::NoVm));
    assert!(engine.firewall_rules("vm9").is_err());
    assert_eq!(engine.firewall_rule("vm1", "a"), Err(ConfigError::NotFound));
    assert_eq!(
        engine.delete_firewall_rule("vm1", "a"),
        Err(ConfigError::NotFound)
    );
    for id in ["b", "a"] {
        assert_eq!(engine.create_firewall_rule("vm1", rule(id)), Ok(()));
    }
    assert_eq!(
        engine.create_firewall_rule("vm1", rule("a")),
        Err(ConfigError::AlreadyExists)
    );
    assert_eq!(
        engine.create_firewall_rule("vm2", rule("a")),
        Ok(()),
        "ids are per interface"
    );
    assert_eq!(engine.firewall_rule("vm1", "a"), Ok(&rule("a")));
    let ids: Vec<_> = engine
        .firewall_rules("vm1")
        .unwrap()
        .map(|rule| rule.id.clone())
        .collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(engine.delete_firewall_rule("vm1", "b"), Ok(()));
    assert_eq!(engine.firewall_hits("vm1"), Ok(vec![("a".to_owned(), 0)]));
}

#[test]
fn an_interface_takes_everything_with_it() {
    let mut bed = Bed::new();
    let before = bed.engine.endpoints().len();
    let engine = &mut bed.engine;
    engine
        .create_vip("vm1", address(VIP), preferred("fc00:1::8000:0:1"))
        .unwrap();
    engine
        .create_nat(
            "vm1",
            address(NAT),
            range(1, 9),
            preferred("fc00:1::8000:0:2"),
        )
        .unwrap();
    engine
        .create_lb_prefix(
            "vm1",
            address("172.22.1.1"),
            32,
            preferred("fc00:1::8000:0:3"),
        )
        .unwrap();
    engine
        .create_prefix(
            "vm1",
            address("10.5.0.0"),
            24,
            preferred("fc00:1::8000:0:4"),
        )
        .unwrap();
    engine.create_firewall_rule("vm1", rule("a")).unwrap();
    let kinds: Vec<_> = engine.endpoints().iter().map(|row| row.kind).collect();
    for kind in [
        UnderlayKind::Vip,
        UnderlayKind::Nat,
        UnderlayKind::LbPrefix,
        UnderlayKind::AliasPrefix,
    ] {
        assert!(kinds.contains(&kind), "{kind:?}");
    }
    engine.delete_interface("vm1").unwrap();
    assert_eq!(engine.endpoints().len(), before - 1);
    assert_eq!(
        engine.delete_vip("vm1"),
        Err(ConfigError::NoVm),
        "a later delete is told so"
    );
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", "2000:100:1::1"));
    let engine = &mut bed.engine;
    assert_eq!(engine.vip("vm1"), Err(ConfigError::SnatNoData));
    assert_eq!(engine.nat("vm1"), Err(ConfigError::SnatNoData));
    assert_eq!(engine.lb_prefixes("vm1"), Ok(&[][..]));
    assert_eq!(engine.firewall_rules("vm1").unwrap().count(), 0);
    assert!(
        engine
            .create_vip("vm1", address(NAT), preferred("fc00:1::8000:0:1"))
            .is_ok()
    );
    assert!(
        engine
            .create_nat(
                "vm1",
                address(VIP),
                range(1, 9),
                preferred("fc00:1::8000:0:2")
            )
            .is_ok()
    );
}

#[test]
fn captures() {
    let mut bed = Bed::new();
    let engine = &mut bed.engine;
    let spec = |ports: &[CapturePort]| CaptureSpec {
        sink: v6("fc00:9::1"),
        source_port: 4000,
        destination_port: 5000,
        ports: ports.to_vec(),
    };
    let vm = |id: &str| CapturePort::Interface(id.to_owned());
    assert_eq!(engine.stop_capture(), Err(ConfigError::NotActive));
    assert_eq!(
        engine.start_capture(spec(&[vm("vm9")])),
        Err(ConfigError::NotFound)
    );
    assert_eq!(
        engine.start_capture(spec(&[CapturePort::Uplink(2)])),
        Err(ConfigError::NotFound)
    );
    assert_eq!(
        engine.start_capture(spec(&[vm("vm1"), vm("vm1")])),
        Err(ConfigError::AlreadyActive)
    );
    assert_eq!(engine.capture(), None);
    assert_eq!(
        engine.start_capture(spec(&[vm("vm2"), vm("vm1"), CapturePort::Uplink(1)])),
        Ok(())
    );
    assert_eq!(
        engine.start_capture(spec(&[vm("vm3")])),
        Err(ConfigError::AlreadyActive)
    );
    assert_eq!(
        engine.capture().unwrap().ports,
        [CapturePort::Uplink(1), vm("vm1"), vm("vm2")],
        "in the order of ports"
    );
    let mut mirror = PacketBuf::new();
    let frame = [0x11_u8; 60];
    assert_eq!(engine.tables().mirror(VM3, &frame, &mut mirror), None);
    assert!(engine.tables().is_capturing(VM1) && !engine.tables().is_capturing(VM3));
    assert_eq!(engine.tables().mirror(VM1, &frame, &mut mirror), Some(PF0));
    let mut expected = vec![
        0x02, 0, 0, 0, 0, 0xfe, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0x86, 0xdd,
    ];
    expected.extend([0x60, 0, 0, 0, 0, 68, 17, 64]);
    expected.extend(v6("fc00:1::1").octets());
    expected.extend(v6("fc00:9::1").octets());
    expected.extend([0x0f, 0xa0, 0x13, 0x88, 0, 68, 0, 0]);
    assert_eq!(expected.len(), 62);
    expected.extend(frame);
    assert_eq!(hex(mirror.frame()), hex(&expected));
    assert_eq!(
        engine.tables().mirror(VM1, &[0; 2_000], &mut mirror),
        None,
        "does not fit"
    );
    engine.delete_interface("vm2").unwrap();
    assert_eq!(
        engine.capture().unwrap().ports.len(),
        2,
        "an interface that is gone is no longer captured"
    );
    assert_eq!(engine.stop_capture(), Ok(2));
    assert_eq!(engine.capture(), None);
    assert_eq!(engine.tables().mirror(VM1, &frame, &mut mirror), None);
}

#[test]
fn sizes_of_tables() {
    let mut bed = Bed::new();
    let engine = &mut bed.engine;
    engine.create_vip("vm1", address(VIP), None).unwrap();
    engine
        .create_load_balancer(balancer("lb", V200, "172.22.1.1"))
        .unwrap();
    let sizes: Vec<_> = engine
        .table_sizes()
        .iter()
        .map(|size| (size.name, size.entries))
        .collect();
    assert_eq!(
        sizes,
        [
            ("interface_table", 3),
            ("dnat_table", 1),
            ("snat_table", 1),
            ("loadbalancer_table", 1),
            ("loadbalancer_id_table", 1),
            ("vni_table", 2),
            ("vnf_table", 5),
            ("reverse_vnf_table", 5),
        ]
    );
}

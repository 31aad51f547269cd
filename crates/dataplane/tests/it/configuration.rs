//! The configuration side: status codes, order of checks, lists, and what each request leaves behind.

use crate::bed::*;
use crate::build::address;
use core::net::{IpAddr, Ipv6Addr};
use dataplane::{ConfigError, Metering, UnderlaySeed, VniType};
use net::Vni;

fn hop() -> IpAddr {
    IpAddr::V6(neighbour())
}

#[test]
fn codes_and_names() {
    let all: Vec<_> = ConfigError::ALL
        .iter()
        .map(|error| (error.code(), error.name()))
        .collect();
    let expected = vec![
        (201, "NOT_FOUND"),
        (202, "ALREADY_EXISTS"),
        (203, "WRONG_TYPE"),
        (204, "BAD_IPVER"),
        (205, "NO_VM"),
        (206, "NO_VNI"),
        (208, "OUT_OF_MEMORY"),
        (210, "ALREADY_ACTIVE"),
        (211, "NOT_ACTIVE"),
        (301, "ROUTE_EXISTS"),
        (302, "ROUTE_NOT_FOUND"),
        (303, "ROUTE_INSERT"),
        (304, "ROUTE_BAD_PORT"),
        (323, "DNAT_EXISTS"),
        (341, "SNAT_NO_DATA"),
        (343, "SNAT_EXISTS"),
        (361, "VNI_INIT4"),
        (383, "PORT_METER"),
        (401, "VNF_INSERT"),
        (402, "VM_HANDLE"),
        (422, "NO_LB"),
        (423, "BACKIP_ADD"),
    ];
    assert_eq!(all, expected);
    assert_eq!(ConfigError::NoVm.to_string(), "NO_VM (205)");
}

#[test]
fn create_interface_checks_in_order_and_leaves_no_trace() {
    let mut bed = Bed::new();
    let epoch = bed.engine.tables().epoch();
    let underlay = bed.underlay("vm1");
    let fresh = || spec("vm4", VM4, V100, "10.100.1.4", "");
    let refused = |bed: &mut Bed, spec| bed.engine.create_interface(spec).unwrap_err();
    let mut unknown = fresh();
    unknown.device = "net_tap9".to_owned();
    assert_eq!(refused(&mut bed, unknown), ConfigError::NotFound);
    for taken in ["net_tap0", "net_tap2"] {
        let mut spec = fresh();
        spec.device = taken.to_owned();
        assert_eq!(refused(&mut bed, spec), ConfigError::AlreadyExists);
    }
    let mut collision = spec("vm1", VM4, V100, "10.100.1.1", "");
    collision.preferred_underlay = Some(underlay);
    assert_eq!(
        refused(&mut bed, collision),
        ConfigError::VnfInsert,
        "before id and address"
    );
    assert_eq!(
        refused(&mut bed, spec("vm1", VM4, V100, "10.100.1.1", "")),
        ConfigError::VmHandle
    );
    assert_eq!(
        refused(&mut bed, spec("vm4", VM4, V100, "10.100.1.1", "")),
        ConfigError::RouteExists
    );
    assert_eq!(
        refused(&mut bed, spec("vm4", VM4, V100, "", "2000:100:1::1")),
        ConfigError::RouteExists
    );
    for (total_rate, public_rate) in [(0, 5), (5, 6), (1 << 32, 0)] {
        let mut spec = fresh();
        spec.metering = Metering {
            total_rate,
            public_rate,
        };
        assert_eq!(refused(&mut bed, spec), ConfigError::PortMeter);
    }
    assert_eq!(
        bed.engine.tables().epoch(),
        epoch,
        "refused requests change nothing"
    );
    let mut spec = fresh();
    spec.metering = Metering {
        total_rate: 10,
        public_rate: 5,
    };
    spec.hostname = Some("host".to_owned());
    let created = bed.engine.create_interface(spec.clone()).unwrap().clone();
    assert_eq!((created.port, &created.spec), (VM4, &spec));
    assert_eq!(bed.engine.interface("vm4").unwrap(), &created);
    assert_eq!(bed.engine.interface_at(VM4), Some(&created));
    let ids: Vec<_> = bed
        .engine
        .interfaces()
        .map(|found| found.spec.id.clone())
        .collect();
    assert_eq!(ids, ["vm1", "vm2", "vm3", "vm4"]);
    assert_eq!(
        bed.engine.delete_interface("vm9"),
        Err(ConfigError::NotFound)
    );
    assert_eq!(
        bed.engine.interface("vm9").unwrap_err(),
        ConfigError::NotFound
    );
    bed.engine.delete_interface("vm2").unwrap();
    let ids: Vec<_> = bed
        .engine
        .interfaces()
        .map(|found| found.spec.id.clone())
        .collect();
    assert_eq!(ids, ["vm1", "vm3", "vm4"]);
}

#[test]
fn underlay_addresses() {
    let mut bed = Bed::empty(config());
    let first = bed.attach(spec("vm1", VM1, V100, "10.0.0.1", ""));
    assert_eq!(first, v6("fc00:1::d000:1:0:1"));
    let alias = bed
        .engine
        .create_prefix("vm1", address("10.1.0.0"), 16, None)
        .unwrap();
    assert_eq!(alias, v6("fc00:1::d000:1:0:2"));
    let preferred = v6("fc00:1::8000:0:1");
    for (candidate, ok) in [
        (preferred, true),
        (v6("fc00:1::c000:0:2"), true),
        (v6("fc00:1::d000:1:0:9"), false),
        (v6("fc00:2::8000:0:1"), false),
    ] {
        assert_eq!(bed.engine.accepts_underlay(candidate), ok, "{candidate}");
    }
    let mut vm2 = spec("vm2", VM2, V100, "10.0.0.2", "");
    vm2.preferred_underlay = Some(preferred);
    assert_eq!(bed.attach(vm2), preferred);
    let again = bed
        .engine
        .create_prefix("vm2", address("10.2.0.0"), 16, Some(preferred));
    assert_eq!(again, Err(ConfigError::VnfInsert));
    assert_eq!(bed.engine.prefixes("vm2").unwrap(), []);

    let mut with_kind = config();
    with_kind.underlay_type_byte = true;
    with_kind.underlay_seed = UnderlaySeed::Random(0x1234_5678_9abc_de41);
    let mut bed = Bed::empty(with_kind);
    let first = bed.attach(spec("vm1", VM1, V100, "10.0.0.1", "")).octets();
    let second = bed
        .engine
        .create_prefix("vm1", address("10.1.0.0"), 16, None)
        .unwrap()
        .octets();
    assert_eq!(first[..11], [0xfc, 0, 0, 1, 0, 0, 0, 0, 0xd0, 1, 0]);
    assert_eq!(second[..11], [0xfc, 0, 0, 1, 0, 0, 0, 0, 0xd0, 6, 0]);
    assert_eq!(
        (&first[12..], &second[12..]),
        (&[0, 0, 0, 0x42][..], &[0, 0, 0, 0x43][..])
    );
}

#[test]
fn routes() {
    let mut bed = Bed::new();
    let v300 = Vni::new(300).unwrap();
    let create = |bed: &mut Bed, vni, prefix: &str, length| {
        bed.engine
            .create_route(vni, address(prefix), length, hop(), 7)
    };
    assert_eq!(
        bed.engine
            .create_route(v300, address("10.0.0.0"), 99, address("1.2.3.4"), 0),
        Err(ConfigError::BadIpVersion),
        "checked first"
    );
    assert_eq!(
        create(&mut bed, v300, "10.0.0.0", 8),
        Err(ConfigError::NoVni)
    );
    assert_eq!(
        create(&mut bed, V100, "10.0.0.0", 33),
        Err(ConfigError::RouteInsert)
    );
    assert_eq!(
        create(&mut bed, V100, "2000::", 129),
        Err(ConfigError::RouteInsert)
    );
    assert_eq!(
        create(&mut bed, V100, "10.100.2.77", 24),
        Err(ConfigError::RouteExists),
        "masked"
    );
    assert_eq!(
        create(&mut bed, V100, "10.100.1.1", 32),
        Err(ConfigError::RouteExists),
        "own"
    );
    assert_eq!(create(&mut bed, V100, "0.0.0.0", 0), Ok(()));
    let listed: Vec<_> = bed.engine.routes(Some(V100)).unwrap();
    let texts: Vec<_> = listed
        .iter()
        .map(|route| route.prefix.to_string())
        .collect();
    assert_eq!(texts, ["0.0.0.0/0", "10.100.2.0/24", "2000:100:2::/104"]);
    assert!(
        listed
            .iter()
            .all(|route| route.vni == V100 && route.next_hop == neighbour())
    );
    assert_eq!(listed[0].next_hop_vni, 7);
    assert_eq!(bed.engine.routes(None).unwrap().len(), 5);
    assert_eq!(bed.engine.routes(Some(v300)), Err(ConfigError::NoVni));
    let delete = |bed: &mut Bed, vni, prefix: &str, length| {
        bed.engine.delete_route(vni, address(prefix), length)
    };
    assert_eq!(
        delete(&mut bed, v300, "10.0.0.0", 8),
        Err(ConfigError::NoVni)
    );
    assert_eq!(
        delete(&mut bed, V100, "10.0.0.0", 8),
        Err(ConfigError::RouteNotFound)
    );
    assert_eq!(
        delete(&mut bed, V100, "10.100.1.1", 32),
        Err(ConfigError::RouteBadPort)
    );
    assert_eq!(delete(&mut bed, V100, "10.100.2.99", 24), Ok(()), "masked");
    assert_eq!(
        delete(&mut bed, V100, "10.100.2.0", 24),
        Err(ConfigError::RouteNotFound)
    );
}

#[test]
fn prefixes() {
    let mut bed = Bed::new();
    assert_eq!(bed.engine.prefixes("vm9").unwrap_err(), ConfigError::NoVm);
    let create = |bed: &mut Bed, id: &str, prefix: &str, length| {
        bed.engine.create_prefix(id, address(prefix), length, None)
    };
    assert_eq!(
        create(&mut bed, "vm9", "10.5.0.0", 16),
        Err(ConfigError::NoVm)
    );
    assert_eq!(
        create(&mut bed, "vm1", "10.5.0.0", 64),
        Err(ConfigError::RouteInsert)
    );
    assert_eq!(
        create(&mut bed, "vm1", "10.100.2.0", 24),
        Err(ConfigError::RouteExists)
    );
    let v4 = create(&mut bed, "vm1", "10.5.1.1", 16).unwrap();
    let v6 = create(&mut bed, "vm1", "2001:db8::", 64).unwrap();
    let listed: Vec<(String, Ipv6Addr)> = bed
        .engine
        .prefixes("vm1")
        .unwrap()
        .iter()
        .map(|(prefix, underlay)| (prefix.to_string(), *underlay))
        .collect();
    assert_eq!(
        listed,
        [
            ("10.5.0.0/16".to_owned(), v4),
            ("2001:db8::/64".to_owned(), v6)
        ]
    );
    let delete = |bed: &mut Bed, id: &str, prefix: &str, length| {
        bed.engine.delete_prefix(id, address(prefix), length)
    };
    assert_eq!(
        delete(&mut bed, "vm9", "10.5.0.0", 16),
        Err(ConfigError::NoVm)
    );
    assert_eq!(
        delete(&mut bed, "vm2", "10.5.0.0", 16),
        Err(ConfigError::RouteBadPort)
    );
    assert_eq!(
        delete(&mut bed, "vm1", "10.100.2.0", 24),
        Err(ConfigError::RouteBadPort)
    );
    assert_eq!(
        delete(&mut bed, "vm1", "10.100.1.1", 32),
        Err(ConfigError::RouteBadPort)
    );
    assert_eq!(
        delete(&mut bed, "vm1", "10.6.0.0", 16),
        Err(ConfigError::RouteNotFound)
    );
    assert_eq!(delete(&mut bed, "vm1", "10.5.0.0", 16), Ok(()));
    assert_eq!(
        delete(&mut bed, "vm1", "10.5.0.0", 16),
        Err(ConfigError::RouteNotFound)
    );
    assert_eq!(
        bed.engine.delete_route(V100, address("2001:db8::"), 64),
        Err(ConfigError::RouteBadPort)
    );
    // Deleting the interface frees prefix and addresses for others.
    bed.engine.delete_interface("vm1").unwrap();
    assert!(create(&mut bed, "vm2", "2001:db8::", 64).is_ok());
    assert_eq!(
        delete(&mut bed, "vm1", "2001:db8::", 64),
        Err(ConfigError::NoVm)
    );
}

#[test]
fn vni_lifetime() {
    let mut bed = Bed::new();
    let v300 = Vni::new(300).unwrap();
    assert_eq!(bed.engine.vni_in_use(V100, VniType::Ipv4), Ok(true));
    assert_eq!(bed.engine.vni_in_use(V100, VniType::Ipv6), Ok(true));
    assert_eq!(
        bed.engine.vni_in_use(V100, VniType::Both),
        Err(ConfigError::WrongType)
    );
    assert_eq!(bed.engine.vni_in_use(v300, VniType::Ipv4), Ok(false));
    assert_eq!(
        bed.engine.reset_vni(V100, VniType::Ipv4),
        Err(ConfigError::WrongType)
    );
    assert_eq!(bed.engine.reset_vni(v300, VniType::Both), Ok(()));
    bed.engine
        .create_prefix("vm1", address("10.5.0.0"), 16, None)
        .unwrap();
    assert_eq!(bed.engine.reset_vni(V100, VniType::Both), Ok(()));
    assert_eq!(bed.engine.routes(Some(V100)).unwrap(), []);
    assert_eq!(
        bed.engine.routes(Some(V200)).unwrap().len(),
        2,
        "other networks keep their routes"
    );
    assert_eq!(
        bed.engine.prefixes("vm1").unwrap().len(),
        1,
        "prefixes stay"
    );
    bed.engine.delete_interface("vm1").unwrap();
    assert_eq!(bed.engine.vni_in_use(V100, VniType::Ipv4), Ok(true));
    bed.engine.delete_interface("vm2").unwrap();
    assert_eq!(bed.engine.vni_in_use(V100, VniType::Ipv4), Ok(false));
    assert_eq!(bed.engine.routes(Some(V100)), Err(ConfigError::NoVni));
}

#[test]
fn initialize_may_be_repeated() {
    let mut bed = Bed::new();
    assert!(bed.engine.is_initialized());
    bed.engine
        .create_prefix("vm1", address("10.5.0.0"), 16, None)
        .unwrap();
    bed.attach(spec("vm4", VM4, V100, "10.100.1.4", ""));
    bed.engine.initialize();
    assert_eq!(bed.engine.routes(None).unwrap(), []);
    assert_eq!(bed.engine.interfaces().count(), 4);
    assert_eq!(bed.engine.prefixes("vm1").unwrap().len(), 1);
    assert!(!dataplane::Engine::new(config()).is_initialized());
}

#[test]
fn limits_refuse_with_their_code() {
    let mut small = config();
    small.limits.vnis_max = 1;
    small.limits.underlay_max = 2;
    small.limits.routes_per_vni_max = 3;
    let mut bed = Bed::empty(small);
    bed.attach(spec("vm1", VM1, V100, "10.0.0.1", ""));
    let refused = bed
        .engine
        .create_interface(spec("vm3", VM3, V200, "10.0.0.1", ""))
        .unwrap_err();
    assert_eq!(refused, ConfigError::VniInit);
    bed.route(V100, "10.1.0.0", 16);
    bed.route(V100, "10.2.0.0", 16);
    let full = bed
        .engine
        .create_route(V100, address("10.3.0.0"), 16, hop(), 0);
    assert_eq!(full, Err(ConfigError::RouteInsert));
    assert_eq!(
        bed.engine
            .create_route(V100, address("2000::"), 16, hop(), 0),
        Ok(()),
        "per family"
    );
    bed.engine
        .delete_route(V100, address("10.2.0.0"), 16)
        .unwrap();
    bed.attach(spec("vm2", VM2, V100, "10.0.0.2", ""));
    let refused = bed.engine.create_prefix("vm1", address("2001::"), 64, None);
    assert_eq!(refused, Err(ConfigError::VnfInsert));
    // Freed places can be used again, many times over.
    for _ in 0..5_000 {
        bed.engine.delete_interface("vm2").unwrap();
        bed.attach(spec("vm2", VM2, V100, "10.0.0.2", ""));
    }
}

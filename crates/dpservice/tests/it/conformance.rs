//! The protocol's rules: order and codes of failures, exact texts, idempotency, list contents.

use crate::harness::{
    Server, create_prefix, create_route, delete_prefix, delete_route, interface, ip, outcome,
    prefix,
};
use dpservice::worker::Settings;
use proto::dpdk;
use std::sync::atomic::Ordering;

const OK: &str = "0 Success";

fn invalid(what: &str) -> String {
    format!("InvalidArgument Invalid {what}")
}

#[tokio::test]
pub async fn nothing_works_before_initialize() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let aborted = "Aborted not initialized";
    assert_eq!(
        outcome!(client.check_initialized(dpdk::CheckInitializedRequest {})),
        aborted
    );
    assert_eq!(
        outcome!(client.get_version(dpdk::GetVersionRequest::default())),
        aborted
    );
    assert_eq!(
        outcome!(client.list_interfaces(dpdk::ListInterfacesRequest {})),
        aborted
    );
    assert_eq!(
        outcome!(client.create_interface(interface("", "", "", ""))),
        aborted
    );
    let first = client
        .initialize(dpdk::InitializeRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.status.unwrap().code, 0);
    let uuid = first.uuid;
    assert_eq!(uuid.len(), 36);
    assert_eq!(uuid, uuid.to_uppercase());
    let again = client
        .check_initialized(dpdk::CheckInitializedRequest {})
        .await
        .unwrap();
    assert_eq!(again.into_inner().uuid, uuid);
    let again = client.initialize(dpdk::InitializeRequest {}).await.unwrap();
    assert_eq!(again.into_inner().uuid, uuid, "Initialize may be repeated");
}

#[tokio::test]
pub async fn initialize_again_clears_routes_and_keeps_interfaces() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    assert_eq!(
        outcome!(client.create_interface(interface("a", "net_tap2", "10.0.0.1", "::"))),
        OK
    );
    assert_eq!(
        outcome!(client.create_interface(interface("b", "net_tap3", "10.0.0.2", "::"))),
        OK
    );
    assert_eq!(
        outcome!(client.create_prefix(create_prefix("a", "10.9.0.0/16"))),
        OK
    );
    assert_eq!(
        outcome!(client.create_route(create_route(100, "10.1.0.0/16", "fc00:2::1"))),
        OK
    );
    assert_eq!(outcome!(client.initialize(dpdk::InitializeRequest {})), OK);
    let routes = client
        .list_routes(dpdk::ListRoutesRequest { vni: 100 })
        .await
        .unwrap();
    assert_eq!(routes.into_inner().routes, []);
    let interfaces = client
        .list_interfaces(dpdk::ListInterfacesRequest {})
        .await
        .unwrap();
    assert_eq!(interfaces.into_inner().interfaces.len(), 2);
    let request = dpdk::ListPrefixesRequest {
        interface_id: b"a".to_vec(),
    };
    let prefixes = client
        .list_prefixes(request)
        .await
        .unwrap()
        .into_inner()
        .prefixes;
    assert_eq!(prefixes.len(), 1);
}

#[tokio::test]
pub async fn interface_input() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let good = || interface("vm-1_A", "net_tap2", "10.0.0.1", "fd00::1");
    type Spoil = fn(&mut dpdk::CreateInterfaceRequest);
    let combination = "ipv4_config.primary_address and ipv6_config.primary_address combination";
    let cases: [(Spoil, &str); 23] = [
        (|r| r.interface_id = Vec::new(), "interface_id"),
        (|r| r.interface_id = vec![b'a'; 64], "interface_id"),
        (|r| r.interface_id = b"a.b".to_vec(), "interface_id"),
        (|r| r.interface_id = vec![0xff], "interface_id"),
        (|r| r.ipv4_config = None, "ipv4_config.primary_address"),
        (|r| r.ipv6_config = None, "ipv6_config.primary_address"),
        (
            |r| {
                r.ipv4_config = Some(dpdk::IpConfig {
                    primary_address: vec![10, 0, 0, 1],
                })
            },
            "ipv4_config.primary_address",
        ),
        (
            |r| {
                r.ipv6_config = Some(dpdk::IpConfig {
                    primary_address: b"10.0.0.1".to_vec(),
                })
            },
            "ipv6_config.primary_address",
        ),
        (
            |r| {
                *r = dpdk::CreateInterfaceRequest {
                    interface_id: r.interface_id.clone(),
                    ..interface("", "net_tap2", "0.0.0.0", "::")
                }
            },
            combination,
        ),
        (
            |r| r.pxe_config = pxe("10.0.0.9", "f"),
            "pxe_config.next_server",
        ),
        (
            |r| r.pxe_config = pxe("nowhere", "f"),
            "pxe_config.next_server",
        ),
        (
            |r| r.pxe_config = pxe("fd00::9", ""),
            "pxe_config.boot_filename",
        ),
        (
            |r| r.pxe_config = pxe("fd00::9", &"f".repeat(32)),
            "pxe_config.boot_filename",
        ),
        (|r| r.device_name = String::new(), "device_name"),
        (|r| r.device_name = "d".repeat(64), "device_name"),
        (|r| r.hostname = "h".repeat(64), "hostname"),
        (
            |r| r.firewall_rules = vec![dpdk::FirewallRule::default()],
            "firewall_rules",
        ),
        (
            |r| r.preferred_underlay_route = b"nonsense".to_vec(),
            "preferred_underlay_route",
        ),
        (
            |r| r.preferred_underlay_route = b"10.0.0.1".to_vec(),
            "preferred_underlay_route",
        ),
        (
            |r| r.preferred_underlay_route = b"fc00:2::8000:0:1".to_vec(),
            "preferred_underlay_route",
        ),
        (
            |r| r.preferred_underlay_route = b"fc00:1::7fff:0:1".to_vec(),
            "preferred_underlay_route",
        ),
        (
            |r| r.preferred_underlay_route = b"fc00:1::1".to_vec(),
            "preferred_underlay_route",
        ),
        (
            |r| r.preferred_underlay_route = vec![0xfc; 16],
            "preferred_underlay_route",
        ),
    ];
    for (number, (spoil, what)) in cases.into_iter().enumerate() {
        let mut request = good();
        spoil(&mut request);
        assert_eq!(
            outcome!(client.create_interface(request)),
            invalid(what),
            "case {number}"
        );
    }
    let mut request = good();
    request.vni = 0x0100_0000;
    let too_large = "InvalidArgument VNI exceeds 24-bit range";
    assert_eq!(outcome!(client.create_interface(request)), too_large);
    // Nothing of all this left a trace.
    let mut request = good();
    request.pxe_config = pxe("fd00::9", "f");
    request.preferred_underlay_route = b"::".to_vec();
    assert_eq!(outcome!(client.create_interface(request)), OK);
    for id in [Vec::new(), vec![b'a'; 64]] {
        let get = dpdk::GetInterfaceRequest {
            interface_id: id.clone(),
        };
        assert_eq!(outcome!(client.get_interface(get)), invalid("interface_id"));
        let delete = dpdk::DeleteInterfaceRequest { interface_id: id };
        assert_eq!(
            outcome!(client.delete_interface(delete)),
            invalid("interface_id")
        );
    }
}

fn pxe(server: &str, file: &str) -> Option<dpdk::PxeConfig> {
    Some(dpdk::PxeConfig {
        next_server: server.into(),
        boot_filename: file.into(),
    })
}

#[tokio::test]
pub async fn interface_life() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let mut request = interface("vm1", "net_tap2", "10.0.0.1", "fd00::1");
    request.hostname = "host".into();
    request.preferred_underlay_route = b"fc00:1::8000:0:1".to_vec();
    request.metering_parameters = Some(dpdk::MeteringParams {
        total_rate: 20,
        public_rate: 10,
    });
    let reply = client
        .create_interface(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.underlay_route, b"fc00:1::8000:0:1");
    assert_eq!(reply.vf.unwrap().name, "mem0");
    let expected = dpdk::Interface {
        id: b"vm1".to_vec(),
        vni: 100,
        primary_ipv4: b"10.0.0.1".to_vec(),
        primary_ipv6: b"fd00::1".to_vec(),
        underlay_route: b"fc00:1::8000:0:1".to_vec(),
        pci_name: "net_tap2".into(),
        metering_params: Some(dpdk::MeteringParams {
            total_rate: 20,
            public_rate: 10,
        }),
        hostname: "host".into(),
    };
    let get = || dpdk::GetInterfaceRequest {
        interface_id: b"vm1".to_vec(),
    };
    let found = client.get_interface(get()).await.unwrap().into_inner();
    assert_eq!(found.interface.as_ref(), Some(&expected));

    // The order of checks: device known, device free, underlay address, id, addresses, rates.
    let unknown_device = interface("vm1", "net_tap99", "10.0.0.1", "fd00::1");
    assert_eq!(
        outcome!(client.create_interface(unknown_device)),
        "201 NOT_FOUND"
    );
    assert_eq!(
        outcome!(client.create_interface(request.clone())),
        "202 ALREADY_EXISTS"
    );
    let uplink = interface("vm2", "net_tap0", "10.0.0.2", "::");
    assert_eq!(
        outcome!(client.create_interface(uplink)),
        "202 ALREADY_EXISTS"
    );
    request.device_name = "net_tap3".into();
    assert_eq!(
        outcome!(client.create_interface(request.clone())),
        "401 VNF_INSERT"
    );
    request.preferred_underlay_route = Vec::new();
    assert_eq!(
        outcome!(client.create_interface(request.clone())),
        "402 VM_HANDLE"
    );
    request.interface_id = b"vm2".to_vec();
    assert_eq!(
        outcome!(client.create_interface(request.clone())),
        "301 ROUTE_EXISTS"
    );
    let mut rates = interface("vm2", "net_tap3", "10.0.0.2", "::");
    rates.metering_parameters = Some(dpdk::MeteringParams {
        total_rate: 5,
        public_rate: 6,
    });
    assert_eq!(outcome!(client.create_interface(rates)), "383 PORT_METER");
    // The same addresses are free in another network.
    request.vni = 200;
    assert_eq!(outcome!(client.create_interface(request)), OK);

    let list = client
        .list_interfaces(dpdk::ListInterfacesRequest {})
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<_> = list
        .interfaces
        .iter()
        .map(|interface| interface.id.as_slice())
        .collect();
    assert_eq!(ids, [b"vm1", b"vm2"]);
    let delete = || dpdk::DeleteInterfaceRequest {
        interface_id: b"vm1".to_vec(),
    };
    assert_eq!(outcome!(client.delete_interface(delete())), OK);
    assert_eq!(outcome!(client.delete_interface(delete())), "201 NOT_FOUND");
    assert_eq!(outcome!(client.get_interface(get())), "201 NOT_FOUND");
    let again = interface("vm1", "net_tap2", "10.0.0.1", "fd00::1");
    assert_eq!(outcome!(client.create_interface(again)), OK);
}

#[tokio::test]
pub async fn a_device_that_cannot_be_opened_leaves_no_interface() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    server.devices.broken.store(true, Ordering::Relaxed);
    let request = || interface("vm1", "net_tap2", "10.0.0.1", "::");
    assert_eq!(
        outcome!(client.create_interface(request())),
        "381 PORT_START"
    );
    let list = client
        .list_interfaces(dpdk::ListInterfacesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.interfaces, []);
    server.devices.broken.store(false, Ordering::Relaxed);
    assert_eq!(outcome!(client.create_interface(request())), OK);
}

#[tokio::test]
pub async fn prefixes() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    assert_eq!(
        outcome!(client.create_prefix(create_prefix("a", "10.9.0.0/16"))),
        "205 NO_VM"
    );
    assert_eq!(
        outcome!(client.delete_prefix(delete_prefix("a", "10.9.0.0/16"))),
        "205 NO_VM"
    );
    let list = || dpdk::ListPrefixesRequest {
        interface_id: b"a".to_vec(),
    };
    assert_eq!(outcome!(client.list_prefixes(list())), "205 NO_VM");
    let request = interface("a", "net_tap2", "10.0.0.1", "fd00::1");
    assert_eq!(outcome!(client.create_interface(request)), OK);
    let request = interface("b", "net_tap3", "10.0.0.2", "::");
    assert_eq!(outcome!(client.create_interface(request)), OK);

    let mut chosen = create_prefix("a", "10.9.1.2/16");
    chosen.preferred_underlay_route = b"fc00:1::8000:0:7".to_vec();
    let reply = client.create_prefix(chosen).await.unwrap().into_inner();
    assert_eq!(reply.underlay_route, b"fc00:1::8000:0:7");
    assert_eq!(
        outcome!(client.create_prefix(create_prefix("a", "fd09::/64"))),
        OK
    );
    let dup = create_prefix("b", "10.9.0.0/16");
    assert_eq!(outcome!(client.create_prefix(dup)), "301 ROUTE_EXISTS");
    let long = create_prefix("a", "10.8.0.0/33");
    assert_eq!(outcome!(client.create_prefix(long)), "303 ROUTE_INSERT");
    let mut taken = create_prefix("a", "10.8.0.0/16");
    taken.preferred_underlay_route = b"fc00:1::8000:0:7".to_vec();
    assert_eq!(outcome!(client.create_prefix(taken)), "401 VNF_INSERT");
    let found = client
        .list_prefixes(list())
        .await
        .unwrap()
        .into_inner()
        .prefixes;
    let shown: Vec<String> = found
        .iter()
        .map(|prefix| {
            let ip = prefix.ip.clone().unwrap();
            format!(
                "{} {}/{}",
                ip.ipver,
                String::from_utf8(ip.address).unwrap(),
                prefix.length
            )
        })
        .collect();
    assert_eq!(shown, ["0 10.9.0.0/16", "1 fd09::/64"]);

    // A prefix of another interface, and a route, are not prefixes of this one.
    let foreign = delete_prefix("b", "10.9.0.0/16");
    assert_eq!(
        outcome!(client.delete_prefix(foreign)),
        "304 ROUTE_BAD_PORT"
    );
    assert_eq!(
        outcome!(client.create_route(create_route(100, "10.7.0.0/16", "fc00:2::1"))),
        OK
    );
    let route = delete_prefix("a", "10.7.0.0/16");
    assert_eq!(outcome!(client.delete_prefix(route)), "304 ROUTE_BAD_PORT");
    let alias = delete_route(100, "10.9.0.0/16");
    assert_eq!(outcome!(client.delete_route(alias)), "304 ROUTE_BAD_PORT");
    assert_eq!(
        outcome!(client.delete_prefix(delete_prefix("a", "10.9.0.0/16"))),
        OK
    );
    let gone = delete_prefix("a", "10.9.0.0/16");
    assert_eq!(outcome!(client.delete_prefix(gone)), "302 ROUTE_NOT_FOUND");

    let mut bad = create_prefix("a", "10.9.0.0/256");
    assert_eq!(
        outcome!(client.create_prefix(bad.clone())),
        invalid("prefix.length")
    );
    bad.prefix = None;
    assert_eq!(outcome!(client.create_prefix(bad)), invalid("prefix.ip"));
    let mut bad = create_prefix("a", "10.9.0.0/16");
    bad.prefix.as_mut().unwrap().ip.as_mut().unwrap().ipver = 1;
    assert_eq!(outcome!(client.create_prefix(bad)), invalid("prefix.ip"));
    let mut bad = create_prefix("a", "10.9.0.0/16");
    bad.prefix.as_mut().unwrap().ip.as_mut().unwrap().ipver = 7;
    assert_eq!(outcome!(client.create_prefix(bad)), invalid("prefix.ip"));
    let bad = create_prefix("", "10.9.0.0/16");
    assert_eq!(outcome!(client.create_prefix(bad)), invalid("interface_id"));
    let mut bad = create_prefix("a", "10.9.0.0/16");
    bad.preferred_underlay_route = b"fc00:1::1".to_vec();
    assert_eq!(
        outcome!(client.create_prefix(bad)),
        invalid("preferred_underlay_route")
    );
}

#[tokio::test]
pub async fn routes() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let hop = "fc00:2::1";
    assert_eq!(
        outcome!(client.create_route(create_route(100, "10.1.0.0/16", hop))),
        "206 NO_VNI"
    );
    assert_eq!(
        outcome!(client.delete_route(delete_route(100, "10.1.0.0/16"))),
        "206 NO_VNI"
    );
    let list = |vni| dpdk::ListRoutesRequest { vni };
    assert_eq!(outcome!(client.list_routes(list(100))), "206 NO_VNI");
    assert_eq!(outcome!(client.list_routes(list(0))), OK);
    for (id, vni, device) in [("a", 100, "net_tap2"), ("b", 200, "net_tap3")] {
        let mut request = interface(id, device, "10.0.0.1", "fd00::1");
        request.vni = vni;
        assert_eq!(outcome!(client.create_interface(request)), OK);
    }
    for text in [
        "10.1.0.0/16",
        "0.0.0.0/0",
        "::/0",
        "fd01::/64",
        "10.1.2.0/24",
    ] {
        assert_eq!(
            outcome!(client.create_route(create_route(100, text, hop))),
            OK,
            "{text}"
        );
    }
    assert_eq!(
        outcome!(client.create_route(create_route(200, "10.1.0.0/16", hop))),
        OK
    );
    let masked = create_route(100, "10.1.99.99/16", "fc00:3::1");
    assert_eq!(outcome!(client.create_route(masked)), "301 ROUTE_EXISTS");
    let own = create_route(100, "10.0.0.1/32", hop);
    assert_eq!(outcome!(client.create_route(own)), "301 ROUTE_EXISTS");
    let long = create_route(100, "fd00::/129", hop);
    assert_eq!(outcome!(client.create_route(long)), "303 ROUTE_INSERT");
    let v4_hop = create_route(100, "10.2.0.0/16", "10.0.0.9");
    assert_eq!(outcome!(client.create_route(v4_hop)), "204 BAD_IPVER");
    let own = delete_route(100, "10.0.0.1/32");
    assert_eq!(outcome!(client.delete_route(own)), "304 ROUTE_BAD_PORT");

    let mut routes = client
        .list_routes(list(100))
        .await
        .unwrap()
        .into_inner()
        .routes;
    assert_eq!(routes.len(), 5);
    assert!(
        routes
            .iter()
            .all(|route| route.weight == 0 && route.nexthop_vni == 100)
    );
    assert!(routes.iter().all(|route| route.nexthop_address == ip(hop)));
    routes.retain(|route| route.prefix == prefix("10.1.0.0/16"));
    assert_eq!(routes.len(), 1);
    let all = client
        .list_routes(list(0))
        .await
        .unwrap()
        .into_inner()
        .routes;
    assert_eq!(all.len(), 6);
    assert_eq!(
        outcome!(client.delete_route(delete_route(100, "10.1.7.7/16"))),
        OK
    );
    let gone = delete_route(100, "10.1.0.0/16");
    assert_eq!(outcome!(client.delete_route(gone)), "302 ROUTE_NOT_FOUND");

    let mut bad = create_route(100, "10.1.0.0/256", hop);
    assert_eq!(
        outcome!(client.create_route(bad.clone())),
        invalid("route.prefix.length")
    );
    bad.route.as_mut().unwrap().prefix = None;
    assert_eq!(
        outcome!(client.create_route(bad)),
        invalid("route.prefix.ip")
    );
    let mut bad = create_route(100, "10.1.0.0/16", hop);
    bad.route.as_mut().unwrap().nexthop_address = None;
    assert_eq!(
        outcome!(client.create_route(bad)),
        invalid("route.nexthop_address")
    );
}

#[tokio::test]
pub async fn a_route_changes_its_next_hop_in_one_step() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let request = interface("a", "net_tap2", "10.0.0.1", "fd00::1");
    assert_eq!(outcome!(client.create_interface(request)), OK);
    let replace = |text: &str, hop: &str| dpdk::CreateRouteRequest {
        replace: true,
        ..create_route(100, text, hop)
    };
    for (text, hop, expected) in [
        ("0.0.0.0/0", "fc00:2::1", OK),
        ("0.0.0.0/0", "fc00:3::1", OK),
        ("10.0.0.1/32", "fc00:2::1", "301 ROUTE_EXISTS"),
        ("10.0.0.0/33", "fc00:2::1", "303 ROUTE_INSERT"),
    ] {
        assert_eq!(
            outcome!(client.create_route(replace(text, hop))),
            expected,
            "{text}"
        );
    }
    let list = client
        .list_routes(dpdk::ListRoutesRequest { vni: 100 })
        .await
        .unwrap();
    let hops: Vec<_> = list
        .into_inner()
        .routes
        .into_iter()
        .map(|route| route.nexthop_address)
        .collect();
    assert_eq!(hops, [ip("fc00:3::1")], "one route, with the new hop");
}

#[tokio::test]
pub async fn routes_of_ipv6_can_be_hidden() {
    let server = Server::start_with(false, Settings::default()).await;
    let mut client = server.initialized().await;
    let request = interface("a", "net_tap2", "10.0.0.1", "fd00::1");
    assert_eq!(outcome!(client.create_interface(request)), OK);
    for text in ["::/0", "10.1.0.0/16"] {
        assert_eq!(
            outcome!(client.create_route(create_route(100, text, "fc00:2::1"))),
            OK
        );
    }
    let list = client
        .list_routes(dpdk::ListRoutesRequest { vni: 100 })
        .await
        .unwrap();
    let shown: Vec<_> = list
        .into_inner()
        .routes
        .into_iter()
        .map(|route| route.prefix)
        .collect();
    assert_eq!(shown, [prefix("10.1.0.0/16")]);
}

#[tokio::test]
pub async fn networks() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let request = interface("a", "net_tap2", "10.0.0.1", "::");
    assert_eq!(outcome!(client.create_interface(request)), OK);
    assert_eq!(
        outcome!(client.create_route(create_route(100, "10.1.0.0/16", "fc00:2::1"))),
        OK
    );
    let (v4, v6, both) = (0, 1, 2);
    for (vni, kind, in_use) in [
        (100, v4, Some(true)),
        (100, v6, Some(true)),
        (7, v4, Some(false)),
        (u32::MAX, v4, Some(false)),
        (100, both, None),
    ] {
        let request = dpdk::CheckVniInUseRequest { vni, r#type: kind };
        let reply = client.check_vni_in_use(request).await.unwrap().into_inner();
        let code = reply.status.unwrap().code;
        assert_eq!(
            (code == 203).then_some(reply.in_use).is_none(),
            in_use.is_some()
        );
        assert_eq!(
            (code == 0).then_some(reply.in_use),
            in_use,
            "VNI {vni} type {kind}"
        );
    }
    let request = dpdk::CheckVniInUseRequest {
        vni: 100,
        r#type: 3,
    };
    assert_eq!(outcome!(client.check_vni_in_use(request)), invalid("type"));
    let reset = |vni, kind| dpdk::ResetVniRequest { vni, r#type: kind };
    assert_eq!(outcome!(client.reset_vni(reset(100, v4))), "203 WRONG_TYPE");
    assert_eq!(outcome!(client.reset_vni(reset(100, 9))), invalid("type"));
    assert_eq!(outcome!(client.reset_vni(reset(7, both))), OK);
    assert_eq!(outcome!(client.reset_vni(reset(100, both))), OK);
    let routes = client
        .list_routes(dpdk::ListRoutesRequest { vni: 100 })
        .await
        .unwrap();
    assert_eq!(routes.into_inner().routes, []);
    // The last interface takes the network with it.
    let delete = dpdk::DeleteInterfaceRequest {
        interface_id: b"a".to_vec(),
    };
    assert_eq!(outcome!(client.delete_interface(delete)), OK);
    let request = dpdk::CheckVniInUseRequest {
        vni: 100,
        r#type: v4,
    };
    let reply = client.check_vni_in_use(request).await.unwrap().into_inner();
    assert!(!reply.in_use);
}

#[tokio::test]
pub async fn versions() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let good = || dpdk::GetVersionRequest {
        client_protocol: "p".into(),
        client_name: "n".into(),
        client_version: "v".repeat(63),
    };
    let reply = client.get_version(good()).await.unwrap().into_inner();
    assert_eq!(reply.service_protocol, reply.service_version);
    assert!(!reply.service_version.is_empty());
    type Spoil = fn(&mut dpdk::GetVersionRequest);
    let cases: [(Spoil, &str); 4] = [
        (|r| r.client_protocol = String::new(), "client_protocol"),
        (|r| r.client_name = String::new(), "client_name"),
        (|r| r.client_version = String::new(), "client_version"),
        (|r| r.client_name = "n".repeat(64), "client_name"),
    ];
    for (spoil, what) in cases {
        let mut request = good();
        spoil(&mut request);
        assert_eq!(outcome!(client.get_version(request)), invalid(what));
    }
}

#[tokio::test]
pub async fn many_routes_are_listed_whole() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let request = interface("a", "net_tap2", "10.0.0.1", "::");
    assert_eq!(outcome!(client.create_interface(request)), OK);
    for number in 0..2000_u32 {
        let text = format!("10.{}.{}.0/24", 1 + number / 256, number % 256);
        assert_eq!(
            outcome!(client.create_route(create_route(100, &text, "fc00:2::1"))),
            OK
        );
    }
    let routes = client
        .list_routes(dpdk::ListRoutesRequest { vni: 100 })
        .await
        .unwrap();
    assert_eq!(routes.into_inner().routes.len(), 2000);
}

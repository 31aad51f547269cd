//! Failures that no other conformance test provokes.

use crate::harness::{Server, ip, outcome, prefix};
use crate::services::{OK, invalid, machines};
use proto::dpdk;
use proto::dpdk::protocol_filter::Filter;

const ANYWHERE: &str = "10.0.0.0/8";
/// A valid address of the host, to be taken first.
const TAKEN: &str = "fc00:1::8000:0:1";

fn bad_prefix(length: u32) -> Option<dpdk::Prefix> {
    prefix(ANYWHERE).map(|good| dpdk::Prefix { length, ..good })
}

fn no_address() -> Option<dpdk::Prefix> {
    prefix(ANYWHERE).map(|good| dpdk::Prefix { ip: ip(""), ..good })
}

#[tokio::test]
pub async fn prefixes() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let id = || b"vm1".to_vec();
    let list = |id: &[u8]| dpdk::ListPrefixesRequest {
        interface_id: id.to_vec(),
    };
    assert_eq!(
        outcome!(client.list_prefixes(list(b""))),
        invalid("interface_id")
    );
    let list = |id: &[u8]| dpdk::ListLoadBalancerPrefixesRequest {
        interface_id: id.to_vec(),
    };
    let listed = outcome!(client.list_load_balancer_prefixes(list(b"")));
    assert_eq!(listed, invalid("interface_id"));
    let listed = outcome!(client.list_load_balancer_prefixes(list(b"vm9")));
    assert_eq!(listed, "205 NO_VM");
    for (interface_id, prefix, what) in [
        (Vec::new(), prefix(ANYWHERE), "interface_id"),
        (id(), no_address(), "prefix.ip"),
        (id(), bad_prefix(256), "prefix.length"),
    ] {
        let request = dpdk::DeletePrefixRequest {
            interface_id: interface_id.clone(),
            prefix: prefix.clone(),
        };
        assert_eq!(outcome!(client.delete_prefix(request)), invalid(what));
        let request = dpdk::DeleteLoadBalancerPrefixRequest {
            interface_id,
            prefix,
        };
        let deleted = outcome!(client.delete_load_balancer_prefix(request));
        assert_eq!(deleted, invalid(what));
    }
    let create = |prefix, underlay: &str| dpdk::CreateLoadBalancerPrefixRequest {
        interface_id: id(),
        prefix,
        preferred_underlay_route: underlay.into(),
    };
    for (request, expected) in [
        (
            create(prefix(ANYWHERE), "fc00:2::1"),
            invalid("preferred_underlay_route"),
        ),
        (create(bad_prefix(33), ""), "303 ROUTE_INSERT".to_owned()),
        (create(prefix(ANYWHERE), TAKEN), OK.to_owned()),
        (
            create(prefix("11.0.0.0/8"), TAKEN),
            "401 VNF_INSERT".to_owned(),
        ),
    ] {
        let created = outcome!(client.create_load_balancer_prefix(request));
        assert_eq!(created, expected);
    }
}

#[tokio::test]
pub async fn translation() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let vip = dpdk::GetVipRequest::default();
    assert_eq!(outcome!(client.get_vip(vip)), invalid("interface_id"));
    let get = |id: &str| dpdk::GetNatRequest {
        interface_id: id.into(),
    };
    for (id, expected) in [
        ("", invalid("interface_id")),
        ("vm9", "205 NO_VM".to_owned()),
        ("vm1", "341 SNAT_NO_DATA".to_owned()),
    ] {
        assert_eq!(outcome!(client.get_nat(get(id))), expected);
    }
    let delete = dpdk::DeleteNatRequest::default();
    assert_eq!(outcome!(client.delete_nat(delete)), invalid("interface_id"));
    let create = |id: &str, underlay: &str| dpdk::CreateNatRequest {
        interface_id: id.into(),
        nat_ip: ip("1.2.3.4"),
        min_port: if id == "vm1" { 10 } else { 20 },
        max_port: 30,
        preferred_underlay_route: underlay.into(),
    };
    for (id, underlay, expected) in [
        ("vm1", "fc00:2::1", invalid("preferred_underlay_route")),
        ("vm1", TAKEN, OK.to_owned()),
        ("vm2", TAKEN, "401 VNF_INSERT".to_owned()),
    ] {
        assert_eq!(outcome!(client.create_nat(create(id, underlay))), expected);
    }
    let strange = dpdk::CreateNeighborNatRequest {
        nat_ip: ip("1.2.3.4"),
        vni: 1 << 24,
        min_port: 1,
        max_port: 2,
        underlay_route: b"fc00:2::1".to_vec(),
    };
    assert_eq!(
        outcome!(client.create_neighbor_nat(strange)),
        "InvalidArgument VNI exceeds 24-bit range"
    );
    let delete = |address: &str, min_port, max_port| dpdk::DeleteNeighborNatRequest {
        nat_ip: ip(address),
        vni: 100,
        min_port,
        max_port,
    };
    for (request, expected) in [
        (delete("x", 1, 2), invalid("nat_ip")),
        (delete("1.2.3.4", 65_536, 2), invalid("min_port")),
        (delete("1.2.3.4", 1, 65_536), invalid("max_port")),
        (delete("1.2.3.4", 2, 2), invalid("port range")),
        (delete("fd00::1", 1, 2), "204 BAD_IPVER".to_owned()),
    ] {
        assert_eq!(outcome!(client.delete_neighbor_nat(request)), expected);
    }
    let list = |address: &str| dpdk::ListNeighborNatsRequest {
        nat_ip: ip(address),
    };
    assert_eq!(
        outcome!(client.list_neighbor_nats(list("x"))),
        invalid("nat_ip")
    );
    let listed = outcome!(client.list_neighbor_nats(list("fd00::1")));
    assert_eq!(listed, "204 BAD_IPVER");
}

#[tokio::test]
pub async fn balancers_and_routes() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let create = |id: &str, address: &str, underlay: &str| dpdk::CreateLoadBalancerRequest {
        loadbalancer_id: id.into(),
        loadbalanced_ip: ip(address),
        vni: 100,
        loadbalanced_ports: Vec::new(),
        preferred_underlay_route: underlay.into(),
    };
    for (request, expected) in [
        (
            create("a", "1.2.3.4", "fc00:2::1"),
            invalid("preferred_underlay_route"),
        ),
        (create("a", "1.2.3.4", TAKEN), OK.to_owned()),
        (create("b", "1.2.3.5", TAKEN), "401 VNF_INSERT".to_owned()),
    ] {
        assert_eq!(outcome!(client.create_load_balancer(request)), expected);
    }
    let get = dpdk::GetLoadBalancerRequest::default();
    let got = outcome!(client.get_load_balancer(get));
    assert_eq!(got, invalid("loadbalancer_id"));
    let delete = dpdk::DeleteLoadBalancerRequest::default();
    let deleted = outcome!(client.delete_load_balancer(delete));
    assert_eq!(deleted, invalid("loadbalancer_id"));
    for number in 0..65 {
        let target = dpdk::CreateLoadBalancerTargetRequest {
            loadbalancer_id: b"a".to_vec(),
            target_ip: ip(&format!("fc00:2::{number:x}")),
        };
        let expected = if number < 64 { OK } else { "423 BACKIP_ADD" };
        assert_eq!(
            outcome!(client.create_load_balancer_target(target)),
            expected
        );
    }
    for (prefix, what) in [
        (bad_prefix(256), "route.prefix.length"),
        (no_address(), "route.prefix.ip"),
    ] {
        let route = dpdk::Route {
            prefix,
            ..Default::default()
        };
        let request = dpdk::DeleteRouteRequest {
            vni: 100,
            route: Some(route),
        };
        assert_eq!(outcome!(client.delete_route(request)), invalid(what));
    }
}

#[tokio::test]
pub async fn firewall() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let list = dpdk::ListFirewallRulesRequest::default();
    let listed = outcome!(client.list_firewall_rules(list));
    assert_eq!(listed, invalid("interface_id"));
    let rule = |destination_prefix, filter: [i32; 4]| dpdk::FirewallRule {
        id: b"r".to_vec(),
        direction: 0,
        action: 1,
        priority: 1,
        source_prefix: prefix(ANYWHERE),
        destination_prefix,
        protocol_filter: Some(dpdk::ProtocolFilter {
            filter: Some(Filter::Udp(dpdk::UdpFilter {
                src_port_lower: filter[0],
                src_port_upper: filter[1],
                dst_port_lower: filter[2],
                dst_port_upper: filter[3],
            })),
        }),
    };
    let any = [-1; 4];
    let strange_family = prefix(ANYWHERE).map(|good| dpdk::Prefix {
        ip: good.ip.map(|ip| dpdk::IpAddress { ipver: 7, ..ip }),
        ..good
    });
    let too_long = prefix("fd00::/8").map(|good| dpdk::Prefix {
        length: 129,
        ..good
    });
    let good = || prefix(ANYWHERE);
    for (id, rule, what) in [
        ("", rule(good(), any), "interface_id"),
        (
            "vm1",
            rule(strange_family, any),
            "destination_prefix.ip.ipver",
        ),
        ("vm1", rule(too_long, any), "ip6 destination_prefix.length"),
        ("vm1", rule(good(), [-2, -1, -1, -1]), "udp.src_port_lower"),
        ("vm1", rule(good(), [-1, -2, -1, -1]), "udp.src_port_upper"),
        ("vm1", rule(good(), [-1, -1, -2, -1]), "udp.dst_port_lower"),
        ("vm1", rule(good(), [-1, -1, -1, -2]), "udp.dst_port_upper"),
        ("vm1", rule(good(), [2, 1, -1, -1]), "udp.src_port range"),
        ("vm1", rule(good(), [-1, -1, 2, 1]), "udp.dst_port range"),
    ] {
        let request = dpdk::CreateFirewallRuleRequest {
            interface_id: id.into(),
            rule: Some(rule),
        };
        assert_eq!(
            outcome!(client.create_firewall_rule(request)),
            invalid(what)
        );
    }
}

//! The protocol of services: texts of bad input, codes of refusals, contents and order of lists.

use crate::harness::{Client, Server, interface, ip, outcome, prefix};
use proto::dpdk;
use proto::dpdk::protocol_filter::Filter;

pub const OK: &str = "0 Success";

pub fn invalid(what: &str) -> String {
    format!("InvalidArgument Invalid {what}")
}

/// Two interfaces in network 100.
pub async fn machines(server: &Server) -> Client {
    let mut client = server.initialized().await;
    for (id, device, ipv4) in [
        ("vm1", "net_tap2", "10.100.1.1"),
        ("vm2", "net_tap3", "10.100.1.2"),
    ] {
        let request = interface(id, device, ipv4, "::");
        assert_eq!(outcome!(client.create_interface(request)), OK);
    }
    client
}

fn vip(id: &str, address: &str) -> dpdk::CreateVipRequest {
    dpdk::CreateVipRequest {
        interface_id: id.into(),
        vip_ip: ip(address),
        preferred_underlay_route: Vec::new(),
    }
}

#[tokio::test]
pub async fn vips() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let bad = |id: &str, address: &str, underlay: &str| dpdk::CreateVipRequest {
        preferred_underlay_route: underlay.into(),
        ..vip(id, address)
    };
    for (request, expected) in [
        (bad("", "1.2.3.4", ""), invalid("interface_id")),
        (bad("vm1", "1.2.3", ""), invalid("vip_ip")),
        (
            bad("vm1", "1.2.3.4", "fc00:2::1"),
            invalid("preferred_underlay_route"),
        ),
        (bad("vm9", "1.2.3.4", ""), "205 NO_VM".to_owned()),
        (bad("vm1", "fd00::1", ""), "204 BAD_IPVER".to_owned()),
    ] {
        assert_eq!(outcome!(client.create_vip(request)), expected);
    }
    let get = |id: &str| dpdk::GetVipRequest {
        interface_id: id.into(),
    };
    let delete = |id: &str| dpdk::DeleteVipRequest {
        interface_id: id.into(),
    };
    assert_eq!(outcome!(client.get_vip(get("vm1"))), "341 SNAT_NO_DATA");
    assert_eq!(
        outcome!(client.delete_vip(delete("vm1"))),
        "341 SNAT_NO_DATA"
    );
    let created = client
        .create_vip(bad("vm1", "1.2.3.4", "fc00:1::8000:0:1"))
        .await
        .unwrap();
    assert_eq!(created.into_inner().underlay_route, b"fc00:1::8000:0:1");
    let found = client.get_vip(get("vm1")).await.unwrap().into_inner();
    assert_eq!(
        (found.vip_ip, found.underlay_route),
        (ip("1.2.3.4"), b"fc00:1::8000:0:1".to_vec())
    );
    assert_eq!(
        outcome!(client.create_vip(vip("vm1", "1.2.3.5"))),
        "343 SNAT_EXISTS"
    );
    assert_eq!(
        outcome!(client.create_vip(vip("vm2", "1.2.3.4"))),
        "323 DNAT_EXISTS"
    );
    let taken = bad("vm2", "1.2.3.5", "fc00:1::8000:0:1");
    assert_eq!(outcome!(client.create_vip(taken)), "401 VNF_INSERT");
    assert_eq!(outcome!(client.delete_vip(delete("vm9"))), "205 NO_VM");
    assert_eq!(outcome!(client.get_vip(get("vm9"))), "205 NO_VM");
    assert_eq!(outcome!(client.delete_vip(delete("vm1"))), OK);
    assert_eq!(
        outcome!(client.delete_vip(delete(""))),
        invalid("interface_id")
    );
}

fn nat(id: &str, address: &str, min_port: u32, max_port: u32) -> dpdk::CreateNatRequest {
    dpdk::CreateNatRequest {
        interface_id: id.into(),
        nat_ip: ip(address),
        min_port,
        max_port,
        preferred_underlay_route: Vec::new(),
    }
}

#[tokio::test]
pub async fn nats() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    for (request, expected) in [
        (nat("", "1.2.3.4", 1, 2), invalid("interface_id")),
        (nat("vm1", "", 1, 2), invalid("nat_ip")),
        (nat("vm1", "1.2.3.4", 65536, 2), invalid("min_port")),
        (nat("vm1", "1.2.3.4", 1, 65536), invalid("max_port")),
        (nat("vm1", "1.2.3.4", 2, 2), invalid("port range")),
        (nat("vm1", "1.2.3.4", 3, 2), invalid("port range")),
        (nat("vm9", "1.2.3.4", 1, 2), "205 NO_VM".to_owned()),
        (nat("vm1", "fd00::1", 1, 2), "204 BAD_IPVER".to_owned()),
    ] {
        assert_eq!(outcome!(client.create_nat(request)), expected);
    }
    assert_eq!(
        outcome!(client.create_nat(nat("vm1", "1.2.3.4", 100, 200))),
        OK
    );
    assert_eq!(
        outcome!(client.create_nat(nat("vm1", "1.2.3.4", 300, 400))),
        "343 SNAT_EXISTS"
    );
    assert_eq!(
        outcome!(client.create_nat(nat("vm2", "1.2.3.4", 300, 400))),
        OK
    );
    let get = dpdk::GetNatRequest {
        interface_id: b"vm1".to_vec(),
    };
    let found = client.get_nat(get).await.unwrap().into_inner();
    assert_eq!(
        (found.nat_ip, found.min_port, found.max_port),
        (ip("1.2.3.4"), 100, 200)
    );
    let list = |address: &str| dpdk::ListLocalNatsRequest {
        nat_ip: ip(address),
    };
    let all = client
        .list_local_nats(list("0.0.0.0"))
        .await
        .unwrap()
        .into_inner()
        .nat_entries;
    let entry = |machine: &str, min_port, max_port| dpdk::NatEntry {
        nat_ip: ip(machine),
        min_port,
        max_port,
        underlay_route: Vec::new(),
        vni: 100,
        actual_nat_ip: ip("1.2.3.4"),
    };
    assert_eq!(
        all,
        [entry("10.100.1.2", 300, 400), entry("10.100.1.1", 100, 200)],
        "in the order of the hash table"
    );
    assert_eq!(
        outcome!(client.list_local_nats(list("fd00::1"))),
        "204 BAD_IPVER"
    );
    assert_eq!(
        outcome!(client.list_local_nats(list("x"))),
        invalid("nat_ip")
    );
    let delete = |id: &str| dpdk::DeleteNatRequest {
        interface_id: id.into(),
    };
    assert_eq!(outcome!(client.delete_nat(delete("vm1"))), OK);
    assert_eq!(
        outcome!(client.delete_nat(delete("vm1"))),
        "341 SNAT_NO_DATA"
    );
    assert_eq!(outcome!(client.delete_nat(delete("vm9"))), "205 NO_VM");
}

#[tokio::test]
pub async fn neighbor_nats() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let create =
        |address: &str, vni, min_port, max_port, underlay: &str| dpdk::CreateNeighborNatRequest {
            nat_ip: ip(address),
            vni,
            min_port,
            max_port,
            underlay_route: underlay.into(),
        };
    let delete = |vni, min_port, max_port| dpdk::DeleteNeighborNatRequest {
        nat_ip: ip("1.2.3.4"),
        vni,
        min_port,
        max_port,
    };
    for (request, expected) in [
        (create("x", 100, 1, 2, "fc00:2::1"), invalid("nat_ip")),
        (
            create("1.2.3.4", 100, 70000, 2, "fc00:2::1"),
            invalid("min_port"),
        ),
        (
            create("1.2.3.4", 100, 1, 70000, "fc00:2::1"),
            invalid("max_port"),
        ),
        (
            create("1.2.3.4", 100, 2, 1, "fc00:2::1"),
            invalid("port range"),
        ),
        (create("1.2.3.4", 100, 1, 2, ""), invalid("underlay_route")),
        (
            create("fd00::1", 100, 1, 2, "fc00:2::1"),
            "204 BAD_IPVER".to_owned(),
        ),
    ] {
        assert_eq!(outcome!(client.create_neighbor_nat(request)), expected);
    }
    assert_eq!(
        outcome!(client.create_neighbor_nat(create("1.2.3.4", 100, 10, 20, "fc00:2::1"))),
        OK
    );
    assert_eq!(
        outcome!(client.create_neighbor_nat(create("1.2.3.4", 7, 19, 30, "fc00:2::1"))),
        "202 ALREADY_EXISTS"
    );
    let list = dpdk::ListNeighborNatsRequest {
        nat_ip: ip("0.0.0.0"),
    };
    let found = client
        .list_neighbor_nats(list)
        .await
        .unwrap()
        .into_inner()
        .nat_entries;
    let expected = dpdk::NatEntry {
        nat_ip: None,
        min_port: 10,
        max_port: 20,
        underlay_route: b"fc00:2::1".to_vec(),
        vni: 100,
        actual_nat_ip: ip("1.2.3.4"),
    };
    assert_eq!(found, [expected]);
    assert_eq!(
        outcome!(client.delete_neighbor_nat(delete(100, 10, 21))),
        "201 NOT_FOUND"
    );
    assert_eq!(
        outcome!(client.delete_neighbor_nat(delete(0x0100_0000, 10, 20))),
        "201 NOT_FOUND"
    );
    assert_eq!(
        outcome!(client.delete_neighbor_nat(delete(100, 10, 20))),
        OK
    );
}

fn balancer(
    id: &str,
    vni: u32,
    address: &str,
    ports: &[(i32, u32)],
) -> dpdk::CreateLoadBalancerRequest {
    dpdk::CreateLoadBalancerRequest {
        loadbalancer_id: id.into(),
        loadbalanced_ip: ip(address),
        vni,
        loadbalanced_ports: ports
            .iter()
            .map(|(protocol, port)| dpdk::LbPort {
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        preferred_underlay_route: Vec::new(),
    }
}

#[tokio::test]
pub async fn load_balancers() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let sixteen: Vec<_> = (1..=16).map(|port| (6, port)).collect();
    let texts = |text: &str| format!("InvalidArgument {text}");
    for (request, expected) in [
        (
            balancer("", 100, "1.2.3.4", &[]),
            invalid("loadbalancer_id"),
        ),
        (
            balancer("lb", 1 << 24, "1.2.3.4", &[]),
            texts("VNI exceeds 24-bit range"),
        ),
        (
            balancer("lb", 100, "1.2.3", &[]),
            invalid("loadbalanced_ip"),
        ),
        (
            balancer("lb", 100, "1.2.3.4", &sixteen),
            texts("Too many loadbalanced_ports"),
        ),
        (
            balancer("lb", 100, "1.2.3.4", &[(6, 65536)]),
            invalid("loadbalanced_ports.port"),
        ),
        (
            balancer("lb", 100, "1.2.3.4", &[(1, 5)]),
            invalid("loadbalanced_ports.protocol"),
        ),
        (
            balancer("lb", 100, "1.2.3.4", &[(132, 5)]),
            invalid("loadbalanced_ports.protocol"),
        ),
        (
            balancer("lb", 100, "1.2.3.4", &[(6, 5), (6, 5)]),
            texts("Duplicate loadbalanced_ports entry"),
        ),
    ] {
        assert_eq!(outcome!(client.create_load_balancer(request)), expected);
    }
    let get = |id: &str| dpdk::GetLoadBalancerRequest {
        loadbalancer_id: id.into(),
    };
    let delete = |id: &str| dpdk::DeleteLoadBalancerRequest {
        loadbalancer_id: id.into(),
    };
    assert_eq!(
        outcome!(client.get_load_balancer(get("lb"))),
        "201 NOT_FOUND"
    );
    let request = balancer("lb", 100, "1.2.3.4", &[(6, 443), (17, 53), (6, 0)]);
    let created = client
        .create_load_balancer(request)
        .await
        .unwrap()
        .into_inner();
    let found = client
        .get_load_balancer(get("lb"))
        .await
        .unwrap()
        .into_inner();
    let port = |protocol, port| dpdk::LbPort { protocol, port };
    assert_eq!(
        found.loadbalanced_ports,
        [port(6, 443), port(17, 53)],
        "port 0 is none"
    );
    assert_eq!(
        (found.vni, found.loadbalanced_ip, &found.underlay_route),
        (100, ip("1.2.3.4"), &created.underlay_route)
    );
    for (id, address) in [("lb", "1.2.3.5"), ("other", "1.2.3.4")] {
        assert_eq!(
            outcome!(client.create_load_balancer(balancer(id, 100, address, &[]))),
            "202 ALREADY_EXISTS"
        );
    }
    assert_eq!(
        outcome!(client.create_load_balancer(balancer("a", 200, "fd00::1", &[]))),
        OK
    );
    let listed = client
        .list_load_balancers(dpdk::ListLoadBalancersRequest {})
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<_> = listed
        .loadbalancers
        .iter()
        .map(|lb| lb.id.clone())
        .collect();
    assert_eq!(ids, [b"a".to_vec(), b"lb".to_vec()]);

    let target = |id: &str, address: &str| dpdk::CreateLoadBalancerTargetRequest {
        loadbalancer_id: id.into(),
        target_ip: ip(address),
    };
    let gone = |id: &str, address: &str| dpdk::DeleteLoadBalancerTargetRequest {
        loadbalancer_id: id.into(),
        target_ip: ip(address),
    };
    for (id, address, expected) in [
        ("", "fc00:2::1", invalid("loadbalancer_id")),
        ("lb", "x", invalid("target_ip")),
        ("no", "1.2.3.4", "204 BAD_IPVER".to_owned()),
        ("no", "fc00:2::1", "422 NO_LB".to_owned()),
    ] {
        assert_eq!(
            outcome!(client.create_load_balancer_target(target(id, address))),
            expected
        );
        assert_eq!(
            outcome!(client.delete_load_balancer_target(gone(id, address))),
            expected
        );
    }
    for address in ["fc00:2::2", "fc00:2::1"] {
        assert_eq!(
            outcome!(client.create_load_balancer_target(target("lb", address))),
            OK
        );
    }
    assert_eq!(
        outcome!(client.create_load_balancer_target(target("lb", "fc00:2::1"))),
        "202 ALREADY_EXISTS"
    );
    assert_eq!(
        outcome!(client.create_load_balancer_target(target("lb", "::"))),
        "202 ALREADY_EXISTS"
    );
    let list = |id: &str| dpdk::ListLoadBalancerTargetsRequest {
        loadbalancer_id: id.into(),
    };
    for id in ["lb", ""] {
        let found = client
            .list_load_balancer_targets(list(id))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            found.target_ips.into_iter().map(Some).collect::<Vec<_>>(),
            [ip("fc00:2::1"), ip("fc00:2::2")]
        );
    }
    assert_eq!(
        outcome!(client.list_load_balancer_targets(list("no"))),
        "422 NO_LB"
    );
    assert_eq!(
        outcome!(client.list_load_balancer_targets(list(&"x".repeat(64)))),
        invalid("loadbalancer_id")
    );
    assert_eq!(
        outcome!(client.delete_load_balancer_target(gone("lb", "fc00:2::1"))),
        OK
    );
    assert_eq!(
        outcome!(client.delete_load_balancer_target(gone("lb", "fc00:2::1"))),
        "201 NOT_FOUND"
    );
    assert_eq!(outcome!(client.delete_load_balancer(delete("lb"))), OK);
    assert_eq!(
        outcome!(client.delete_load_balancer(delete("lb"))),
        "201 NOT_FOUND"
    );
}

#[tokio::test]
pub async fn load_balancer_prefixes() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let create = |id: &str, text: &str| dpdk::CreateLoadBalancerPrefixRequest {
        interface_id: id.into(),
        prefix: prefix(text),
        preferred_underlay_route: Vec::new(),
    };
    let delete = |id: &str, text: &str| dpdk::DeleteLoadBalancerPrefixRequest {
        interface_id: id.into(),
        prefix: prefix(text),
    };
    for (request, expected) in [
        (create("", "1.2.3.4/32"), invalid("interface_id")),
        (create("vm1", "x/32"), invalid("prefix.ip")),
        (create("vm1", "1.2.3.4/256"), invalid("prefix.length")),
        (create("vm9", "1.2.3.4/32"), "205 NO_VM".to_owned()),
        (create("vm1", "1.2.3.4/32"), OK.to_owned()),
        (create("vm1", "1.2.3.4/32"), "202 ALREADY_EXISTS".to_owned()),
        (create("vm2", "1.2.3.4/32"), OK.to_owned()),
    ] {
        assert_eq!(
            outcome!(client.create_load_balancer_prefix(request)),
            expected
        );
    }
    let list = dpdk::ListLoadBalancerPrefixesRequest {
        interface_id: b"vm1".to_vec(),
    };
    let found = client
        .list_load_balancer_prefixes(list)
        .await
        .unwrap()
        .into_inner()
        .prefixes;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].ip.clone(), found[0].length), (ip("1.2.3.4"), 32));
    assert!(!found[0].underlay_route.is_empty());
    for (request, expected) in [
        (delete("vm9", "1.2.3.4/32"), "205 NO_VM"),
        (delete("vm1", "1.2.3.5/32"), "201 NOT_FOUND"),
        (delete("vm1", "1.2.3.4/32"), OK),
        (delete("vm1", "1.2.3.4/32"), "201 NOT_FOUND"),
    ] {
        assert_eq!(
            outcome!(client.delete_load_balancer_prefix(request)),
            expected
        );
    }
}

fn tcp(values: [i32; 4]) -> Option<dpdk::ProtocolFilter> {
    let [
        src_port_lower,
        src_port_upper,
        dst_port_lower,
        dst_port_upper,
    ] = values;
    Some(dpdk::ProtocolFilter {
        filter: Some(Filter::Tcp(dpdk::TcpFilter {
            src_port_lower,
            src_port_upper,
            dst_port_lower,
            dst_port_upper,
        })),
    })
}

fn icmp(icmp_type: i32, icmp_code: i32) -> Option<dpdk::ProtocolFilter> {
    Some(dpdk::ProtocolFilter {
        filter: Some(Filter::Icmp(dpdk::IcmpFilter {
            icmp_type,
            icmp_code,
        })),
    })
}

fn rule(id: &str) -> dpdk::FirewallRule {
    dpdk::FirewallRule {
        id: id.into(),
        direction: dpdk::TrafficDirection::Ingress.into(),
        action: dpdk::FirewallAction::Accept.into(),
        priority: 1000,
        source_prefix: prefix("1.2.3.4/16"),
        destination_prefix: prefix("0.0.0.0/0"),
        protocol_filter: tcp([-1, -1, 22, 23]),
    }
}

#[tokio::test]
pub async fn firewall_input() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    type Spoil = fn(&mut dpdk::FirewallRule);
    let cases: [(Spoil, &str); 20] = [
        (|r| r.id = Vec::new(), "rule id"),
        (|r| r.id = vec![b'a'; 64], "rule id"),
        (
            |r| r.source_prefix.as_mut().unwrap().ip.as_mut().unwrap().ipver = 7,
            "source_prefix.ip.ipver",
        ),
        (|r| r.source_prefix = None, "source_prefix.ip"),
        (
            |r| r.source_prefix = prefix("1.2.3.4/33"),
            "source_prefix.length",
        ),
        (
            |r| r.source_prefix = prefix("fd00::/129"),
            "ip6 source_prefix.length",
        ),
        (
            |r| r.destination_prefix = prefix("x/1"),
            "destination_prefix.ip",
        ),
        (
            |r| r.destination_prefix = prefix("1.2.3.4/300"),
            "destination_prefix.length",
        ),
        (|r| r.direction = 2, "direction"),
        (|r| r.action = 2, "action"),
        (|r| r.priority = 65536, "priority"),
        (
            |r| r.protocol_filter = tcp([-2, -1, -1, -1]),
            "tcp.src_port_lower",
        ),
        (
            |r| r.protocol_filter = tcp([-1, -1, 65536, -1]),
            "tcp.dst_port_lower",
        ),
        (
            |r| r.protocol_filter = tcp([-1, 65536, -1, -1]),
            "tcp.src_port_upper",
        ),
        (
            |r| r.protocol_filter = tcp([-1, -1, -1, 70000]),
            "tcp.dst_port_upper",
        ),
        (
            |r| r.protocol_filter = tcp([5, 4, -1, -1]),
            "tcp.src_port range",
        ),
        (
            |r| r.protocol_filter = tcp([-1, -1, 5, 4]),
            "tcp.dst_port range",
        ),
        (|r| r.protocol_filter = icmp(256, -1), "icmp.icmp_type"),
        (|r| r.protocol_filter = icmp(-1, 256), "icmp.icmp_code"),
        (|r| r.protocol_filter = icmp(-2, -1), "icmp.icmp_type"),
    ];
    for (number, (spoil, what)) in cases.into_iter().enumerate() {
        let mut rule = rule("r");
        spoil(&mut rule);
        let request = dpdk::CreateFirewallRuleRequest {
            interface_id: b"vm1".to_vec(),
            rule: Some(rule),
        };
        assert_eq!(
            outcome!(client.create_firewall_rule(request)),
            invalid(what),
            "case {number}"
        );
    }
}

/// No moment without its rules: an interface may bring them along, all or nothing.
async fn rules_that_come_with_the_interface(client: &mut Client) {
    let request = |rules| dpdk::CreateInterfaceRequest {
        firewall_rules: rules,
        ..interface("vm7", "net_tap7", "10.0.0.7", "::")
    };
    let twice = vec![rule("b"), rule("c"), rule("b")];
    assert_eq!(
        outcome!(client.create_interface(request(twice))),
        "202 ALREADY_EXISTS"
    );
    let get = dpdk::GetInterfaceRequest {
        interface_id: b"vm7".to_vec(),
    };
    assert_eq!(outcome!(client.get_interface(get)), "201 NOT_FOUND");
    let reply = client
        .create_interface(request(vec![rule("b"), rule("c")]))
        .await
        .unwrap()
        .into_inner();
    assert!(reply.firewall_rules_created);
    let list = dpdk::ListFirewallRulesRequest {
        interface_id: b"vm7".to_vec(),
    };
    let list = client.list_firewall_rules(list).await.unwrap().into_inner();
    assert_eq!(list.rules, [rule("b"), rule("c")]);
    let delete = dpdk::DeleteInterfaceRequest {
        interface_id: b"vm7".to_vec(),
    };
    assert_eq!(outcome!(client.delete_interface(delete)), OK);
}

#[tokio::test]
pub async fn firewall_rules() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    rules_that_come_with_the_interface(&mut client).await;
    let create = |id: &str, rule| dpdk::CreateFirewallRuleRequest {
        interface_id: id.into(),
        rule: Some(rule),
    };
    let get = |id: &str, rule: &str| dpdk::GetFirewallRuleRequest {
        interface_id: id.into(),
        rule_id: rule.into(),
    };
    let delete = |id: &str, rule: &str| dpdk::DeleteFirewallRuleRequest {
        interface_id: id.into(),
        rule_id: rule.into(),
    };
    assert_eq!(
        outcome!(client.create_firewall_rule(create("vm9", rule("b")))),
        "205 NO_VM"
    );
    let created = client
        .create_firewall_rule(create("vm1", rule("b")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(created.rule_id, b"b", "the id as it is");
    assert_eq!(
        outcome!(client.create_firewall_rule(create("vm1", rule("b")))),
        "202 ALREADY_EXISTS"
    );
    let six = dpdk::FirewallRule {
        direction: dpdk::TrafficDirection::Egress.into(),
        action: dpdk::FirewallAction::Drop.into(),
        source_prefix: prefix("fd00::1/128"),
        destination_prefix: prefix("::/0"),
        protocol_filter: Some(dpdk::ProtocolFilter { filter: None }),
        ..rule("a")
    };
    assert_eq!(
        outcome!(client.create_firewall_rule(create("vm1", six.clone()))),
        OK
    );
    let list = dpdk::ListFirewallRulesRequest {
        interface_id: b"vm1".to_vec(),
    };
    let listed = client
        .list_firewall_rules(list)
        .await
        .unwrap()
        .into_inner()
        .rules;
    assert_eq!(listed, [rule("b"), six], "as given, in order of creation");
    let found = client
        .get_firewall_rule(get("vm1", "b"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.rule, Some(rule("b")));
    for (id, name, expected) in [
        ("vm9", "b", "205 NO_VM".to_owned()),
        ("vm1", "x", "201 NOT_FOUND".to_owned()),
        ("vm1", "", invalid("rule_id")),
        ("", "b", invalid("interface_id")),
    ] {
        assert_eq!(outcome!(client.get_firewall_rule(get(id, name))), expected);
        assert_eq!(
            outcome!(client.delete_firewall_rule(delete(id, name))),
            expected
        );
    }
    assert_eq!(
        outcome!(client.delete_firewall_rule(delete("vm1", "b"))),
        OK
    );
    let unknown = dpdk::ListFirewallRulesRequest {
        interface_id: b"vm9".to_vec(),
    };
    assert_eq!(outcome!(client.list_firewall_rules(unknown)), "205 NO_VM");
}

//! Questions to a running service: what would become of a packet.

use crate::harness::{HOST, Server, create_route, interface, ip, outcome, prefix};
use crate::services::OK;
use proto::dpdk;
use proto::inspection::explain_request::{Ingress, Packet};
use proto::inspection::inspection_client::InspectionClient;
use proto::inspection::verdict::Kind;
use proto::inspection::{
    Endpoint, ExplainRequest, ExplainResponse, FilterResult, FlowTuple, MatchedRoute, Verdict,
};

fn tuple(source: &str, destination: &str, destination_port: u32) -> FlowTuple {
    FlowTuple {
        source: source.to_owned(),
        destination: destination.to_owned(),
        protocol: 6,
        source_port: 1234,
        destination_port,
    }
}

fn from_machine(id: &str, tuple: FlowTuple) -> ExplainRequest {
    ExplainRequest {
        ingress: Some(Ingress::InterfaceId(id.to_owned())),
        packet: Some(Packet::Tuple(tuple)),
        ..Default::default()
    }
}

fn stages(response: &ExplainResponse) -> Vec<(&str, &str)> {
    let stages = response.stages.iter();
    stages
        .map(|stage| (stage.name.as_str(), stage.text.as_str()))
        .collect()
}

/// vm1 and vm2 in network 100 with a route each way; vm2 lets nobody in but by port 443.
pub async fn set_up(server: &Server) -> (String, String) {
    let mut client = server.initialized().await;
    let mut underlay = Vec::new();
    for (id, device, ipv4) in [
        ("vm1", "net_tap2", "10.100.1.1"),
        ("vm2", "net_tap3", "10.100.1.2"),
    ] {
        let created = client.create_interface(interface(id, device, ipv4, "::"));
        let created = created.await.unwrap().into_inner();
        assert_eq!(created.status.unwrap().code, 0);
        underlay.push(String::from_utf8(created.underlay_route).unwrap());
    }
    let route = create_route(100, "10.100.2.0/24", "fc00:2::64:0:1");
    assert_eq!(outcome!(client.create_route(route)), OK);
    let tcp = dpdk::TcpFilter {
        src_port_lower: -1,
        src_port_upper: -1,
        dst_port_lower: 443,
        dst_port_upper: 443,
    };
    let rule = dpdk::FirewallRule {
        id: b"https".to_vec(),
        direction: dpdk::TrafficDirection::Ingress.into(),
        action: dpdk::FirewallAction::Accept.into(),
        priority: 1000,
        source_prefix: prefix("0.0.0.0/0"),
        destination_prefix: prefix("0.0.0.0/0"),
        protocol_filter: Some(dpdk::ProtocolFilter {
            filter: Some(dpdk::protocol_filter::Filter::Tcp(tcp)),
        }),
    };
    let request = dpdk::CreateFirewallRuleRequest {
        interface_id: b"vm2".to_vec(),
        rule: Some(rule),
    };
    assert_eq!(outcome!(client.create_firewall_rule(request)), OK);
    let vip = dpdk::CreateVipRequest {
        interface_id: b"vm2".to_vec(),
        vip_ip: ip("45.1.2.3"),
        preferred_underlay_route: Vec::new(),
    };
    let created = client.create_vip(vip).await.unwrap().into_inner();
    (
        underlay.remove(0),
        String::from_utf8(created.underlay_route).unwrap(),
    )
}

#[tokio::test]
async fn explains_what_machines_send() {
    let server = Server::start().await;
    let (own, _) = set_up(&server).await;
    let mut client = InspectionClient::new(server.channel().await);
    let request = from_machine("vm1", tuple("10.100.1.1", "10.100.2.9", 80));
    let sent = client.explain(request).await.unwrap().into_inner();
    let shows = "protocol 6, 10.100.1.1 port 1234 to 10.100.2.9 port 80";
    assert_eq!(
        stages(&sent),
        [
            ("cls", shows),
            ("conntrack", "a new connection"),
            ("ipv4_lookup", "10.100.2.0/24 remote fc00:2::64:0:1"),
            ("firewall", "egress of vm1: no rules, accepts"),
            ("ipip_encap", &format!("from {own} to fc00:2::64:0:1")),
        ]
    );
    let verdict = Verdict {
        kind: Kind::Encapsulate.into(),
        device: "net_tap0".to_owned(),
        underlay_source: own,
        underlay_destination: "fc00:2::64:0:1".to_owned(),
        ..Default::default()
    };
    assert_eq!(sent.verdict, Some(verdict));
    let route = MatchedRoute {
        vni: 100,
        prefix: "10.100.2.0/24".to_owned(),
        kind: "remote".to_owned(),
        next_hop: "fc00:2::64:0:1".to_owned(),
        next_hop_vni: 100,
        ..Default::default()
    };
    assert_eq!(sent.route, Some(route));
    assert_eq!(sent.leaves, sent.shows);
    assert_eq!(
        (sent.service.as_str(), sent.known_connection),
        ("none", false)
    );
    let request = from_machine("vm1", tuple("10.100.1.1", "10.100.1.2", 80));
    let refused = client.explain(request).await.unwrap().into_inner();
    let verdict = refused.verdict.unwrap();
    assert_eq!(
        (verdict.kind(), verdict.reason.as_str()),
        (Kind::Drop, "firewall_ingress")
    );
    let result = |rule: &str, accepts| FilterResult {
        interface_id: "vm2".to_owned(),
        rules: 1,
        rule_id: rule.to_owned(),
        accepts,
    };
    assert_eq!(refused.ingress, Some(result("", false)));
    assert_eq!((refused.leaves, refused.frame), (None, Vec::new()));
    let request = from_machine("vm1", tuple("10.100.1.1", "45.1.2.3", 443));
    let virtual_ip = client.explain(request).await.unwrap().into_inner();
    assert_eq!(virtual_ip.ingress, Some(result("https", true)));
    assert_eq!(virtual_ip.service, "vip");
    assert_eq!(
        virtual_ip.leaves,
        Some(tuple("10.100.1.1", "10.100.1.2", 443))
    );
    let verdict = virtual_ip.verdict.unwrap();
    assert_eq!(
        (verdict.kind(), verdict.interface_id.as_str()),
        (Kind::Deliver, "vm2")
    );
    let request = from_machine("vm1", tuple("10.100.1.9", "10.100.1.2", 443));
    let spoofed = client.explain(request).await.unwrap().into_inner();
    assert_eq!(spoofed.verdict.unwrap().reason, "source_spoofed");
}

#[tokio::test]
async fn explains_what_tunnels_bring_and_knows_connections() {
    let server = Server::start().await;
    let (own, vip) = set_up(&server).await;
    let mut client = InspectionClient::new(server.channel().await);
    let from_tunnel = |underlay: &str, tuple| ExplainRequest {
        ingress: Some(Ingress::Underlay(underlay.to_owned())),
        packet: Some(Packet::Tuple(tuple)),
        ..Default::default()
    };
    let request = from_tunnel(&vip, tuple("10.100.2.9", "45.1.2.3", 443));
    let delivered = client.explain(request).await.unwrap().into_inner();
    let subject = Endpoint {
        interface_id: "vm2".to_owned(),
        vni: 100,
        kind: "vip".to_owned(),
    };
    assert_eq!(delivered.subject, Some(subject));
    assert_eq!(delivered.verdict.unwrap().interface_id, "vm2");
    let request = from_tunnel(&own, tuple("10.100.2.9", "10.100.1.2", 443));
    let foreign = client.explain(request).await.unwrap().into_inner();
    assert_eq!(foreign.verdict.unwrap().reason, "destination_foreign");
    // The answer to a connection that vm2 has opened passes its filter, which lets nobody in.
    let answer = tuple("10.100.1.1", "10.100.1.2", 80);
    let opening = FlowTuple {
        source_port: 80,
        destination_port: 1234,
        ..tuple("10.100.1.2", "10.100.1.1", 1234)
    };
    let rehearsed = client.explain(from_machine("vm2", opening.clone()));
    let frame = rehearsed.await.unwrap().into_inner().frame;
    let before = client.explain(from_machine("vm1", answer.clone()));
    let before = before.await.unwrap().into_inner();
    assert_eq!(before.verdict.unwrap().reason, "firewall_ingress");
    assert!(server.machine(1).send(&frame));
    let peer = server.machine(0);
    let arrived = async {
        while peer.receive().is_none_or(|frame| frame[12..14] != [8, 0]) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::harness::DEADLINE, arrived)
        .await
        .unwrap();
    let mut request = from_machine("vm1", answer);
    let known = client.explain(request.clone()).await.unwrap().into_inner();
    assert!(known.known_connection);
    assert_eq!(known.verdict.unwrap().interface_id, "vm2");
    request.ignore_connections = true;
    let ignored = client.explain(request).await.unwrap().into_inner();
    assert_eq!(ignored.verdict.unwrap().reason, "firewall_ingress");
}

#[tokio::test]
async fn questions_that_make_no_sense() {
    let server = Server::start().await;
    set_up(&server).await;
    let mut client = InspectionClient::new(server.channel().await);
    let good = || tuple("10.100.1.1", "10.100.1.2", 443);
    let spoiled = |spoil: fn(&mut FlowTuple)| {
        let mut tuple = good();
        spoil(&mut tuple);
        from_machine("vm1", tuple)
    };
    let nowhere = ExplainRequest {
        ingress: None,
        ..from_machine("vm1", good())
    };
    let nothing = ExplainRequest {
        packet: None,
        ..from_machine("vm1", good())
    };
    let elsewhere = ExplainRequest {
        ingress: Some(Ingress::Underlay(HOST.to_string())),
        ..from_machine("vm1", good())
    };
    let too_long = ExplainRequest {
        payload_length: 9_001,
        ..from_machine("vm1", good())
    };
    for (request, expected) in [
        (nowhere, "InvalidArgument Invalid ingress"),
        (nothing, "InvalidArgument Invalid packet"),
        (too_long, "InvalidArgument Invalid payload_length"),
        (
            from_machine("vm9", good()),
            "NotFound There is no interface vm9",
        ),
        (
            elsewhere,
            "NotFound fc00:1::1 is no underlay address of this host",
        ),
        (
            spoiled(|tuple| tuple.source = "x".to_owned()),
            "InvalidArgument Invalid tuple.source",
        ),
        (
            spoiled(|tuple| tuple.destination = "::1".to_owned()),
            "InvalidArgument Invalid tuple.destination",
        ),
        (
            spoiled(|tuple| tuple.protocol = 58),
            "InvalidArgument Invalid tuple.protocol",
        ),
        (
            spoiled(|tuple| tuple.source_port = 65_536),
            "InvalidArgument Invalid tuple.source_port",
        ),
    ] {
        let status = client.explain(request).await.unwrap_err();
        assert_eq!(
            format!("{:?} {}", status.code(), status.message()),
            expected
        );
    }
}

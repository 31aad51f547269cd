//! What monitoring gets: telemetry commands and Prometheus metrics under the names that dashboards and scripts know.

use crate::harness::{DEADLINE, MACHINE_PORTS, Server, interface, ip, outcome, prefix};
use crate::services::OK;
use dpservice::metrics;
use dpservice::telemetry::{Facts, commands};
use proto::dpdk;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// vm1 with a NAT, one connection through it and a firewall rule, and vm2.
async fn busy() -> Server {
    let server = Server::start().await;
    let mut client = crate::services::machines(&server).await;
    let nat = dpdk::CreateNatRequest {
        interface_id: b"vm1".to_vec(),
        nat_ip: ip("172.20.1.1"),
        min_port: 100,
        max_port: 102,
        preferred_underlay_route: Vec::new(),
    };
    assert_eq!(outcome!(client.create_nat(nat)), OK);
    let route = crate::harness::create_route(100, "0.0.0.0/0", "fc00::ffff");
    assert_eq!(outcome!(client.create_route(route)), OK);
    let rule = dpdk::CreateFirewallRuleRequest {
        interface_id: b"vm1".to_vec(),
        rule: Some(dpdk::FirewallRule {
            id: b"r".to_vec(),
            direction: dpdk::TrafficDirection::Egress.into(),
            action: dpdk::FirewallAction::Accept.into(),
            priority: 1,
            source_prefix: prefix("0.0.0.0/0"),
            destination_prefix: prefix("0.0.0.0/0"),
            protocol_filter: None,
        }),
    };
    assert_eq!(outcome!(client.create_firewall_rule(rule)), OK);
    let frame = crate::lifecycle::syn_between([10, 100, 1, 1], [45, 86, 6, 6], [1234, 80]);
    assert!(server.machine(0).send(&frame));
    let passed = async {
        loop {
            let sent = server
                .worker
                .inspect(|inspection| inspection.worker.flow_saturation().0);
            if sent.await.unwrap() == [1] {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, passed).await.unwrap();
    server
}

fn devices() -> Vec<String> {
    (0..=MACHINE_PORTS)
        .map(|port| format!("net_tap{port}"))
        .collect()
}

/// Names of the devices of the test's server: one uplink, then machines from 2 on.
fn names() -> Vec<String> {
    let mut names = devices();
    names.remove(1);
    names.push(format!("net_tap{}", MACHINE_PORTS + 1));
    names
}

#[tokio::test]
async fn telemetry_commands() {
    let server = busy().await;
    let facts = Facts::gather(&server.worker, &names()).await.unwrap();
    let answer = |command: &str| commands::answer(&facts, command).unwrap();
    for (command, expected) in [
        (
            "/dp_service/nat/used_port_count",
            json!({"/dp_service/nat/used_port_count": {"vm1": 1, "vm2": 0}}),
        ),
        (
            "/dp_service/firewall/rule_count",
            json!({"/dp_service/firewall/rule_count": {"vm1": 1, "vm2": 0}}),
        ),
        (
            "/dp_service/virtsvc/used_port_count",
            json!({"/dp_service/virtsvc/used_port_count": {}}),
        ),
        (
            "/ethdev/list",
            json!({"/ethdev/list": [0, 1, 2, 3, 4, 5, 6, 7, 8]}),
        ),
        (
            "/ethdev/link_status,1",
            json!({"/ethdev/link_status": {"status": "UP"}}),
        ),
        (
            "/ethdev/link_status,5",
            json!({"/ethdev/link_status": {"status": "DOWN"}}),
        ),
        (
            "/ethdev/info,0",
            json!({"/ethdev/info": {"name": "net_tap0", "port_id": 0}}),
        ),
    ] {
        assert_eq!(answer(command), expected);
    }
    for unknown in [
        "/dp_service",
        "/ethdev/info",
        "/ethdev/info,9",
        "/ethdev/info,x",
        "x",
    ] {
        assert_eq!(commands::answer(&facts, unknown), None, "{unknown}");
    }
    let tables = answer("/dp_service/table/saturation");
    let tables = tables["/dp_service/table/saturation"].as_object().unwrap();
    let known: BTreeSet<&str> = tables.keys().map(String::as_str).collect();
    let expected = [
        "interface_table",
        "conntrack_table",
        "dnat_table",
        "snat_table",
        "nat_portmap_table",
        "nat_portoverload_table",
        "loadbalancer_table",
        "loadbalancer_id_table",
        "vni_table",
        "vnf_table",
        "reverse_vnf_table",
    ];
    assert_eq!(known, BTreeSet::from(expected));
    assert_eq!(
        tables["conntrack_table"],
        json!({"capacity": 850_000, "entries": 2}),
        "a connection has two entries"
    );
    assert_eq!(tables["nat_portmap_table"]["entries"], 1);
    assert_eq!(tables["snat_table"]["entries"], 1);
    assert_eq!(tables["vni_table"], json!({"capacity": 512, "entries": 1}));
}

#[tokio::test]
async fn stages_have_their_known_names() {
    let server = busy().await;
    let facts = Facts::gather(&server.worker, &names()).await.unwrap();
    let mut expected: BTreeSet<String> = [
        "rx_periodic",
        "cls",
        "arp",
        "ipv6_nd",
        "conntrack",
        "dhcp",
        "dhcpv6",
        "dnat",
        "ipv4_lookup",
        "ipv6_lookup",
        "snat",
        "firewall",
        "lb",
        "packet_relay",
        "ipip_decap",
        "ipip_encap",
        "virtsvc",
        "drop",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    for port in 0..=MACHINE_PORTS {
        expected.extend([format!("rx-{port}-0"), format!("tx-{port}")]);
    }
    for kind in ["obj_count", "call_count", "cycle_count", "realloc_count"] {
        let command = format!("/dp_service/graph/{kind}");
        let answer = commands::answer(&facts, &command).unwrap();
        let block = answer[&command]["Node_0_to_255"].as_object().unwrap();
        let names: BTreeSet<String> = block.keys().cloned().collect();
        assert_eq!(names, expected, "{kind}");
        assert_eq!(answer[&command].as_object().unwrap().len(), 1);
        let counts = matches!(kind, "obj_count" | "call_count");
        assert_eq!(block["snat"], u64::from(counts));
        assert_eq!(block["conntrack"], u64::from(counts));
        assert_eq!(
            block["rx-1-0"],
            u64::from(counts),
            "net_tap2 is port 1 here"
        );
    }
}

#[tokio::test]
async fn metrics_of_the_exporter() {
    let server = busy().await;
    let mut facts = Facts::gather(&server.worker, &names()).await.unwrap();
    facts.virtual_services = vec![("UDP:1.2.3.4:53".to_owned(), 7)];
    let text = metrics::render(&facts, "host1").unwrap();
    let types: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter(|line| line.starts_with("dps_") || line.starts_with("dpdk_"))
        .collect();
    let expected = [
        "dpdk_ethdev_bytes_total gauge",
        "dpdk_ethdev_packets_total gauge",
        "dpdk_ethdev_errors_total gauge",
        "dpdk_ethdev_misc gauge",
        "dpdk_ethdev_link_status gauge",
        "dps_nat_used_ports_count gauge",
        "dps_firewall_rules_count gauge",
        "dps_virtsvc_used_ports_count gauge",
        "dps_graph_call_count gauge",
        "dps_hash_table_saturation gauge",
    ];
    assert_eq!(types, BTreeSet::from(expected));
    for line in [
        "dps_nat_used_ports_count{interface_id=\"vm1\"} 1",
        "dps_nat_used_ports_count{interface_id=\"vm2\"} 0",
        "dps_firewall_rules_count{interface_id=\"vm1\"} 1",
        "dps_virtsvc_used_ports_count{address=\"UDP:1.2.3.4:53\"} 7",
        "dpdk_ethdev_misc{name=\"net_tap2\",stat=\"rx_super\"} 0",
        "dps_graph_call_count{node=\"host1\",graph_node=\"snat\"} 1",
        "dps_hash_table_saturation{table=\"conntrack_table\",stat=\"capacity\"} 850000",
        "dps_hash_table_saturation{table=\"conntrack_table\",stat=\"entries\"} 2",
        "dpdk_ethdev_link_status{name=\"net_tap0\"} 1",
        "dpdk_ethdev_link_status{name=\"net_tap6\"} 0",
        "dpdk_ethdev_packets_total{name=\"net_tap2\",stat=\"rx_good_packets\"} 1",
        "dpdk_ethdev_packets_total{name=\"net_tap2\",stat=\"rx_q0_packets\"} 1",
        "dpdk_ethdev_bytes_total{name=\"net_tap2\",stat=\"rx_good_bytes\"} 54",
        "dpdk_ethdev_errors_total{name=\"net_tap2\",stat=\"rx_missed_errors\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    // Every statistic that dashboards expect of a port, and how it is sorted.
    for (metric, stats) in [
        (
            "bytes",
            "rx_good_bytes tx_good_bytes rx_q0_bytes tx_q0_bytes",
        ),
        (
            "packets",
            "rx_good_packets tx_good_packets rx_q0_packets tx_q0_packets",
        ),
        (
            "errors",
            "rx_errors tx_errors rx_missed_errors rx_mbuf_allocation_errors rx_q0_errors",
        ),
    ] {
        for stat in stats.split(' ') {
            let start = format!("dpdk_ethdev_{metric}_total{{name=\"net_tap0\",stat=\"{stat}\"}} ");
            assert!(text.lines().any(|line| line.starts_with(&start)), "{start}");
        }
    }
    assert!(text.contains("\ndpservice_dropped_packets_total{reason=\"no_route\"} 0\n"));
}

#[tokio::test]
async fn representors_have_no_link_of_their_own() {
    let server = busy().await;
    let mut names = names();
    names[2] = "0000:3b:00.0_representor_vf1".to_owned();
    let facts = Facts::gather(&server.worker, &names).await.unwrap();
    let text = metrics::render(&facts, "host1").unwrap();
    let of_representor = text.lines().filter(|line| line.contains("representor"));
    assert!(of_representor.clone().count() > 0);
    assert_eq!(
        of_representor
            .filter(|line| line.contains("link_status"))
            .count(),
        0
    );
}

async fn get(address: std::net::SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.lines().next().unwrap();
    (status.to_owned(), body.to_owned())
}

#[tokio::test]
async fn one_listener_serves_both() {
    let server = busy().await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let worker = server.worker.clone();
    let shutdown = server.shutdown.clone();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(metrics::serve(listener, names(), worker, shutdown));
    let (status, body) = get(address, "/dp_service/nat/used_port_count").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(
        body,
        r#"{"/dp_service/nat/used_port_count":{"vm1":1,"vm2":0}}"#
    );
    let (status, body) = get(address, "/ethdev/xstats,1").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["/ethdev/xstats"]["rx_good_packets"], 1);
    let (_, body) = get(address, "/metrics").await;
    assert!(body.ends_with("# EOF\n"), "{body}");
    assert_eq!(
        get(address, "/dp_service/x").await.0,
        "HTTP/1.1 404 Not Found"
    );
    server.shutdown.cancel();
    serving.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn interfaces_without_connections_are_counted_too() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let created = client.create_interface(interface("a", "net_tap2", "10.0.0.1", "::"));
    assert_eq!(outcome!(created), OK);
    let facts = Facts::gather(&server.worker, &names()).await.unwrap();
    assert_eq!(facts.nat_ports.get("a"), Some(&0));
    assert_eq!(facts.interfaces(), 1);
}

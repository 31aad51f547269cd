//! `dpservice-cli inspect`: tables, explanation and trace, as people and scripts see them.

use crate::cli::check;
use crate::harness::{DEADLINE, Server};
use crate::inspection::set_up;
use crate::lifecycle::syn_between;
use expect_test::expect;
use proto::inspection::inspection_client::InspectionClient;
use proto::inspection::verdict::Kind;
use proto::inspection::{ListRowsRequest, RowFilter, Table, TraceEvent, TraceRequest};
use std::process::{Command, Stdio};

const VM1: [u8; 4] = [10, 100, 1, 1];
const VM2: [u8; 4] = [10, 100, 1, 2];

/// Sends a packet of vm1 and waits until it has been decided.
async fn send(server: &Server, frame: &[u8]) {
    let packets = || async {
        let all = server.worker.inspect(|inspection| {
            let counters = inspection.worker.counters();
            counters.node(dataplane::Node::Cls)
        });
        all.await.unwrap().into_iter().sum::<u64>()
    };
    let before = packets().await;
    assert!(server.machine(0).send(frame));
    let decided = async {
        while packets().await == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, decided).await.unwrap();
}

#[tokio::test]
async fn tables() {
    let server = Server::start().await;
    set_up(&server).await;
    send(&server, &syn_between(VM1, VM2, [1234, 443])).await;
    check(
        &server,
        "inspect interfaces",
        0,
        expect![[r#"
            IFACE_ID  PORT  DEVICE    VNI  IPV4        IPV6  UNDERLAY            MAC
            vm1       1     net_tap2  100  10.100.1.1        fc00:1::d000:1:0:1  06:d5:fa:23:00:00
            vm2       2     net_tap3  100  10.100.1.2        fc00:1::d000:1:0:2  06:d5:fa:23:00:01
        "#]],
    )
    .await;
    let mut client = InspectionClient::new(server.channel().await);
    let request = ListRowsRequest {
        table: Table::Flows.into(),
        filter: Some(RowFilter {
            port: 443,
            ..Default::default()
        }),
        limit: 0,
    };
    let listed = client.list_rows(request).await.unwrap().into_inner();
    let lines = listed.rows.into_iter().map(|row| {
        // The age depends on how busy this computer is.
        let mut cells = row.cells;
        cells.remove(11);
        cells.join(" ")
    });
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [
            "100 tcp 10.100.1.1:1234 10.100.1.2:443 org none 10.100.1.1:1234 10.100.1.2:443 net_tap3 vm1 syn 30 yes",
            "100 tcp 10.100.1.2:443 10.100.1.1:1234 reply none 10.100.1.2:443 10.100.1.1:1234 undecided vm1 syn 30 no",
        ]
    );
    check(
        &server,
        "inspect conntrack --ip 10.100.1.9",
        0,
        expect![[r#"
            VNI  PROTO  SOURCE  DESTINATION  DIRECTION  SERVICE  LEAVES_FROM  LEAVES_TO  OUTPUT  INTERFACE_ID  STATE  AGE  TIMEOUT  CURRENT
        "#]],
    )
    .await;
    check(
        &server,
        "inspect routes --ip 10.100.2.77 -o json",
        0,
        expect![[r#"
            {"items":[{"next_hop":"fc00:2::64:0:1","next_hop_vni":"100","prefix":"10.100.2.0/24","vni":"100"}],"kind":"InspectList","metadata":{"table":"routes","truncated":false}}
        "#]],
    )
    .await;
    check(
        &server,
        "inspect firewall --interface-id vm2",
        0,
        expect![[r#"
            INTERFACE_ID  RULE_ID  DIRECTION  ACTION  PRIORITY  SOURCE     DESTINATION  PROTO  HITS
            vm2           https    ingress    accept  1000      0.0.0.0/0  0.0.0.0/0    tcp    1
        "#]],
    )
    .await;
    check(
        &server,
        "inspect dnat",
        0,
        expect![[r#"
        VIP       VNI  IP          MIN_PORT  MAX_PORT  UNDERLAY
        45.1.2.3  100  10.100.1.2                      fc00:1::d000:1:0:3
    "#]],
    )
    .await;
    check(&server, "inspect snat", 0, expect![[r#"
        VNI  IP          VIP_IP    NAT_IP  MIN_PORT  MAX_PORT  UL_VIP              UL_NAT  INTERFACE_ID
        100  10.100.1.2  45.1.2.3                              fc00:1::d000:1:0:3          vm2
    "#]]).await;
    check(
        &server,
        "inspect underlay --limit 1",
        0,
        expect![[r#"
        UNDERLAY_IP         TYPE       VNI  PORT_ID  INTERFACE_ID  PREFIX
        fc00:1::d000:1:0:1  interface  100  1        vm1
        # the first 1 rows; there are more (--limit, or filters)
    "#]],
    )
    .await;
    check(
        &server,
        "inspect underlay --limit 1 -o json",
        0,
        expect![[r#"
            {"items":[{"interface_id":"vm1","port_id":"1","prefix":"","type":"interface","underlay_ip":"fc00:1::d000:1:0:1","vni":"100"}],"kind":"InspectList","metadata":{"table":"underlay","truncated":true}}
        "#]],
    )
    .await;
    check(
        &server,
        "inspect vnis",
        0,
        expect![[r#"
        VNI  INTERFACES  ROUTES
        100  2           1
    "#]],
    )
    .await;
    check(
        &server,
        "inspect tables -o yaml",
        0,
        expect![[r#"
        items:
        - capacity: "9"
          entries: "2"
          table: interface_table
        - capacity: "850000"
          entries: "2"
          table: conntrack_table
        - capacity: "66536"
          entries: "1"
          table: dnat_table
        - capacity: "9"
          entries: "1"
          table: snat_table
        - capacity: "450000"
          entries: "0"
          table: nat_portmap_table
        - capacity: "450000"
          entries: "0"
          table: nat_portoverload_table
        - capacity: "4096"
          entries: "0"
          table: loadbalancer_table
        - capacity: "4096"
          entries: "0"
          table: loadbalancer_id_table
        - capacity: "512"
          entries: "1"
          table: vni_table
        - capacity: "1000"
          entries: "3"
          table: vnf_table
        - capacity: "1000"
          entries: "3"
          table: reverse_vnf_table
        kind: InspectList
        metadata:
          table: tables
          truncated: false
    "#]],
    )
    .await;
    check(&server, "inspect interfaces --limit 10001", 1, expect![""]).await;
}

#[tokio::test]
async fn explanations() {
    let server = Server::start().await;
    set_up(&server).await;
    let ask = "inspect explain --interface-id vm1 --src 10.100.1.1 --dst 10.100.1.2 --src-port 7";
    check(
        &server,
        &format!("{ask} --dst-port 80"),
        0,
        expect![[r#"
            STAGE        WHAT
            cls          protocol 6, 10.100.1.1 port 7 to 10.100.1.2 port 80
            conntrack    a new connection
            ipv4_lookup  10.100.1.2/32 own vm2
            firewall     egress of vm1: no rules, accepts; ingress of vm2: none of 1 rules matches, drops
            drop         firewall_ingress
            verdict      drop: firewall_ingress
        "#]],
    )
    .await;
    check(
        &server,
        &format!("{ask} --dst-port 443 -o json"),
        0,
        expect![[r#"
            {"kind":"Explanation","spec":{"egress":{"accepts":true,"interface_id":"vm1","rule_id":"","rules":0},"ingress":{"accepts":true,"interface_id":"vm2","rule_id":"https","rules":1},"known_connection":false,"leaves":{"destination":"10.100.1.2","destination_port":443,"protocol":6,"source":"10.100.1.1","source_port":7},"route":{"interface_id":"vm2","kind":"own","next_hop":"","next_hop_vni":0,"prefix":"10.100.1.2/32","vni":100},"service":"none","shows":{"destination":"10.100.1.2","destination_port":443,"protocol":6,"source":"10.100.1.1","source_port":7},"stages":[{"name":"cls","text":"protocol 6, 10.100.1.1 port 7 to 10.100.1.2 port 443"},{"name":"conntrack","text":"a new connection"},{"name":"ipv4_lookup","text":"10.100.1.2/32 own vm2"},{"name":"firewall","text":"egress of vm1: no rules, accepts; ingress of vm2: rule https accepts"}],"subject":{"interface_id":"vm1","kind":"","vni":100},"verdict":{"device":"net_tap3","interface_id":"vm2","kind":"deliver","reason":"","underlay_destination":"","underlay_source":""}}}
        "#]],
    )
    .await;
    check(
        &server,
        &format!("{ask} --dst-port 443 -o name"),
        0,
        expect![[r#"
            deliver to vm2 on net_tap3
        "#]],
    )
    .await;
    check(
        &server,
        "inspect explain --interface-id x --src 1.1.1.1 --dst 1.1.1.2",
        1,
        expect![[r#"
            grpc error: There is no interface x
        "#]],
    )
    .await;
}

#[tokio::test]
async fn nat_ports_and_bad_filters() {
    let server = Server::start().await;
    let mut client = InspectionClient::new(server.channel().await);
    let request = |table: i32, address: &str, port| ListRowsRequest {
        table,
        filter: Some(RowFilter {
            address: address.to_owned(),
            port,
            ..Default::default()
        }),
        limit: 0,
    };
    for (request, expected) in [
        (request(99, "", 0), "Invalid table"),
        (request(0, "x", 0), "Invalid filter.address"),
        (request(0, "", 65_536), "Invalid filter.port"),
    ] {
        let status = client.list_rows(request).await.unwrap_err();
        assert_eq!(status.message(), expected);
    }
    for table in 0..12 {
        let listed = client
            .list_rows(request(table, "", 0))
            .await
            .unwrap()
            .into_inner();
        let name = Table::try_from(table).unwrap();
        let lengths = listed.rows.iter().map(|row| row.cells.len());
        assert!(
            lengths
                .into_iter()
                .all(|length| length == listed.columns.len()),
            "{name:?}"
        );
    }
}

/// Asks for a trace, lets vm1 send these frames, and collects what is told.
async fn traced(server: &Server, request: TraceRequest, frames: &[Vec<u8>]) -> Vec<TraceEvent> {
    let mut client = InspectionClient::new(server.channel().await);
    let count = request.count;
    let mut events = client.trace(request).await.unwrap().into_inner();
    for frame in frames {
        send(server, frame).await;
    }
    let mut told = Vec::new();
    let listen = async {
        while let Some(event) = events.message().await.unwrap() {
            told.push(event);
        }
    };
    tokio::time::timeout(DEADLINE, listen).await.unwrap();
    assert_eq!(told.len(), count as usize);
    told
}

#[tokio::test]
async fn trace_tells_stages_and_reasons() {
    let server = Server::start().await;
    set_up(&server).await;
    let frames = [
        syn_between(VM1, [10, 100, 2, 9], [1, 2]),
        syn_between(VM1, VM2, [3, 80]),
        syn_between(VM1, VM2, [3, 443]),
        syn_between(VM1, VM2, [3, 443]),
    ];
    let everything = TraceRequest {
        interface_id: "vm1".to_owned(),
        count: 4,
        frame_bytes: 60,
        ..Default::default()
    };
    let told = traced(&server, everything.clone(), &frames).await;
    let stages: Vec<Vec<&str>> = told
        .iter()
        .map(|event| event.stages.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(
        stages,
        [
            vec!["cls", "conntrack", "ipv4_lookup", "firewall", "ipip_encap"],
            vec!["cls", "conntrack", "ipv4_lookup", "firewall", "drop"],
            vec!["cls", "conntrack", "ipv4_lookup", "firewall"],
            vec!["cls", "flow_cache"],
        ]
    );
    let verdicts: Vec<_> = told
        .iter()
        .map(|event| event.verdict.clone().unwrap())
        .collect();
    let kinds: Vec<Kind> = verdicts.iter().map(|verdict| verdict.kind()).collect();
    assert_eq!(
        kinds,
        [Kind::Encapsulate, Kind::Drop, Kind::Deliver, Kind::Deliver]
    );
    assert_eq!(verdicts[1].reason, "firewall_ingress");
    assert_eq!(verdicts[2].interface_id, "vm2");
    assert_eq!((told[0].length, told[0].length_after), (54, 94));
    assert_eq!(told[0].frame, frames[0]);
    assert_eq!(told[0].frame_after.len(), 60, "cut");
    assert_eq!(told[1].frame_after, Vec::<u8>::new());
    assert_eq!(
        told.iter().map(|event| event.number).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    let shows = told[0].shows.clone().unwrap();
    assert_eq!(
        (shows.destination.as_str(), shows.destination_port),
        ("10.100.2.9", 2)
    );
    // Filters: only what vm2 gets, only one port, only what is dropped.
    for (request, sent, expected) in [
        (
            TraceRequest {
                interface_id: "vm2".to_owned(),
                count: 1,
                ..Default::default()
            },
            vec![frames[0].clone(), frames[2].clone()],
            443,
        ),
        (
            TraceRequest {
                port: 80,
                count: 1,
                ..Default::default()
            },
            vec![frames[2].clone(), frames[1].clone()],
            80,
        ),
        (
            TraceRequest {
                drops: true,
                address: "10.100.1.2".to_owned(),
                count: 1,
                ..Default::default()
            },
            vec![frames[2].clone(), frames[1].clone()],
            80,
        ),
    ] {
        let told = traced(&server, request, &sent).await;
        assert_eq!(told[0].shows.clone().unwrap().destination_port, expected);
    }
}

#[tokio::test]
async fn one_trace_at_a_time_and_none_for_ever() {
    let server = Server::start().await;
    set_up(&server).await;
    let mut client = InspectionClient::new(server.channel().await);
    let short = TraceRequest {
        seconds: 1,
        ..Default::default()
    };
    let mut first = client.trace(short.clone()).await.unwrap().into_inner();
    let refused = client.trace(short.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(first.message().await.unwrap().is_none(), "its time is over");
    let strange = TraceRequest {
        interface_id: "vm9".to_owned(),
        ..Default::default()
    };
    let refused = client.trace(strange).await.unwrap_err();
    assert_eq!(refused.message(), "There is no interface vm9");
    let abandoned = client.trace(short.clone()).await.unwrap();
    drop(abandoned);
    let again = async {
        while client.trace(short.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn trace_on_the_command_line_with_a_capture_file() {
    let server = Server::start().await;
    set_up(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.pcap");
    let mut child = Command::new(env!("CARGO_BIN_EXE_dpservice"))
        .args([
            "inspect",
            "--address",
            &server.address.to_string(),
            "trace",
            "-c",
            "2",
            "--ip",
            "10.100.1.2",
        ])
        .arg("--pcap")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The client says nothing before the first packet: send until it has enough.
    let frame = syn_between(VM1, VM2, [3, 80]);
    let ended = async {
        while child.try_wait().unwrap().is_none() {
            server.machine(0).send(&frame);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 2);
    let rest = lines[0].split_once(' ').unwrap().1;
    assert_eq!(
        rest,
        "1: PORT net_tap2 -> cls -> conntrack -> ipv4_lookup -> firewall -> DROP firewall_ingress: \
         10.100.1.1 -> 10.100.1.2 / TCP 3 -> 80"
    );
    let capture = std::fs::read(path).unwrap();
    assert_eq!(capture[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
    assert_eq!(capture[20..24], [1, 0, 0, 0]);
    assert_eq!(capture[32..40], [54, 0, 0, 0, 54, 0, 0, 0]);
    assert_eq!(capture[40..94], frame);
    assert_eq!(capture.len(), 24 + 2 * (16 + 54));
}

//! Packet capture: the calls, and what the receiver gets.

use crate::harness::{DEADLINE, ROUTER_MAC, Server, ip, outcome};
use crate::services::{OK, invalid, machines};
use proto::dpdk;
use proto::dpdk::captured_interface::Spec;

fn captured(kind: dpdk::CaptureInterfaceType, spec: Option<Spec>) -> dpdk::CapturedInterface {
    dpdk::CapturedInterface {
        interface_type: kind.into(),
        filter: Vec::new(),
        spec,
    }
}

#[tokio::test]
pub async fn captures() {
    use dpdk::CaptureInterfaceType::{SinglePf, SingleVf};
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let vf = |id: &str| captured(SingleVf, Some(Spec::VfName(id.into())));
    let pf = |number| captured(SinglePf, Some(Spec::PfIndex(number)));
    let config = |sink: &str, source, destination, interfaces: &[dpdk::CapturedInterface]| {
        dpdk::CaptureStartRequest {
            capture_config: Some(dpdk::CaptureConfig {
                sink_node_ip: ip(sink),
                udp_src_port: source,
                udp_dst_port: destination,
                interfaces: interfaces.to_vec(),
            }),
        }
    };
    let mut strange = vf("vm1");
    strange.interface_type = 7;
    let many = vec![vf("vm1"); 17];
    for (request, expected) in [
        (config("fc00:9::1", 65536, 2, &[]), invalid("udp_src_port")),
        (config("fc00:9::1", 1, 65536, &[]), invalid("udp_dst_port")),
        (config("1.2.3.4", 1, 2, &[]), invalid("sink_node_ip")),
        (config("", 1, 2, &[]), invalid("sink_node_ip")),
        (
            config("fc00:9::1", 1, 2, &many),
            "InvalidArgument Too many interfaces to be captured".to_owned(),
        ),
        (
            config("fc00:9::1", 1, 2, &[strange]),
            invalid("interfaces.interface_type"),
        ),
        (
            config("fc00:9::1", 1, 2, &[vf("")]),
            invalid("interface_id"),
        ),
        (config("fc00:9::1", 1, 2, &[pf(256)]), invalid("pf_index")),
        (
            config("fc00:9::1", 1, 2, &[pf(1)]),
            "201 NOT_FOUND".to_owned(),
        ),
        (
            config("fc00:9::1", 1, 2, &[vf("vm9")]),
            "201 NOT_FOUND".to_owned(),
        ),
    ] {
        assert_eq!(outcome!(client.capture_start(request)), expected);
    }
    assert_eq!(
        outcome!(client.capture_stop(dpdk::CaptureStopRequest {})),
        "211 NOT_ACTIVE"
    );
    let status = client
        .capture_status(dpdk::CaptureStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((status.is_active, status.capture_config), (false, None));
    let started = config("fc00:9::1", 1, 2, &[vf("vm2"), vf("vm1"), pf(0)]);
    assert_eq!(outcome!(client.capture_start(started.clone())), OK);
    assert_eq!(
        outcome!(client.capture_start(started)),
        "210 ALREADY_ACTIVE"
    );
    let status = client
        .capture_status(dpdk::CaptureStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let expected = config("fc00:9::1", 1, 2, &[pf(0), vf("vm1"), vf("vm2")]).capture_config;
    assert_eq!((status.is_active, status.capture_config), (true, expected));
    let stopped = client
        .capture_stop(dpdk::CaptureStopRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stopped.stopped_interface_cnt, 3);
}

#[tokio::test]
pub async fn captured_frames_reach_the_receiver() {
    let server = Server::start().await;
    let mut client = machines(&server).await;
    let start = dpdk::CaptureStartRequest {
        capture_config: Some(dpdk::CaptureConfig {
            sink_node_ip: ip("fc00:9::1"),
            udp_src_port: 4_000,
            udp_dst_port: 5_000,
            interfaces: vec![captured(
                dpdk::CaptureInterfaceType::SingleVf,
                Some(Spec::VfName(b"vm1".to_vec())),
            )],
        }),
    };
    assert_eq!(outcome!(client.capture_start(start)), OK);
    // Not even a frame that is dropped escapes.
    let frame = [&[0xff; 12][..], &[0x88, 0xcc], &[7; 50]].concat();
    assert!(server.machine(0).send(&frame));
    assert!(server.machine(1).send(&frame), "not captured");
    let mirrored = async {
        loop {
            match server.fabric.receive() {
                // Announcements of the machines' addresses go this way, too.
                Some(sent) if sent.get(20) == Some(&17) => return sent,
                Some(_) => {}
                None => tokio::task::yield_now().await,
            }
        }
    };
    let mirrored = tokio::time::timeout(DEADLINE, mirrored).await.unwrap();
    assert_eq!(mirrored.len(), 62 + frame.len());
    assert_eq!(mirrored[..6], ROUTER_MAC.0);
    assert_eq!(mirrored[54..58], [0x0f, 0xa0, 0x13, 0x88]);
    assert_eq!(mirrored[62..], frame);
    let counters = server.worker.counters().await.unwrap();
    assert_eq!((counters.mirrored, counters.mirror_failed), (1, 0));
}

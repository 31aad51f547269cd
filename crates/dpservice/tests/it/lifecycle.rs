//! Bad input, lost devices, metrics, start and end of the process.

use crate::fabric::{Namespace, Process, enter_private_namespace, ip};
use crate::harness::{DEADLINE, Server, interface, outcome};
use dpservice::metrics;
use dpservice::worker::Settings;
use proto::dpdk;
use std::net::TcpStream as BlockingStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The start of every HTTP/2 connection (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// xorshift64*: repeatable noise.
fn noise(state: &mut u64, length: usize) -> Vec<u8> {
    let mut next = || {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn random_bytes_on_the_grpc_port_hurt_nobody() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let mut seed = 0x9e37_79b9;
    for round in 0..200 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let mut bytes = if round % 2 == 0 {
            PREFACE.to_vec()
        } else {
            Vec::new()
        };
        bytes.extend(noise(&mut seed, 1 + round * 7));
        // The server may close first: that is its right.
        let _ = stream.write_all(&bytes).await;
        if round % 20 == 0 {
            assert_eq!(
                outcome!(client.list_interfaces(dpdk::ListInterfacesRequest {})),
                "0 Success"
            );
        }
    }
    assert_eq!(
        outcome!(client.list_interfaces(dpdk::ListInterfacesRequest {})),
        "0 Success"
    );
}

/// A broadcast ARP request for the gateway (RFC 826).
fn arp_request() -> Vec<u8> {
    let mac = [0x66; 6];
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([10, 0, 0, 1]);
    frame.extend([0; 6]);
    frame.extend([169, 254, 0, 1]);
    frame
}

#[tokio::test]
async fn packets_flow_and_a_lost_device_is_made_anew() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let request = interface("vm1", "net_tap2", "10.0.0.1", "::");
    assert_eq!(outcome!(client.create_interface(request)), "0 Success");
    let machine = server.machine(0);
    assert!(machine.send(&arp_request()));
    let start = Instant::now();
    let reply = loop {
        // Periodic announcements may come in between.
        if let Some(frame) = machine.receive()
            && frame.get(20..22) == Some(&[0, 2])
        {
            break frame;
        }
        assert!(start.elapsed() < DEADLINE, "no answer");
        tokio::task::yield_now().await;
    };
    let gateway = dpservice::devices::gateway_mac(crate::harness::HOST, 0);
    assert_eq!(reply.get(6..12), Some(&gateway.0[..]));
    assert_eq!(reply.get(28..32), Some(&[169, 254, 0, 1][..]));

    // The device goes (its namespace was deleted) and is made anew, if not at once: the interface is still wanted.
    server.devices.broken.store(true, Ordering::Relaxed);
    machine.unplug();
    let start = Instant::now();
    while !server.devices.refused.load(Ordering::Relaxed) {
        assert!(start.elapsed() < DEADLINE, "the device is not made anew");
        tokio::task::yield_now().await;
    }
    server.devices.broken.store(false, Ordering::Relaxed);
    loop {
        let machine = server.machine(0);
        machine.send(&arp_request());
        if machine.receive().is_some() {
            break;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "no answer after the device came back"
        );
        tokio::task::yield_now().await;
    }
    let counters = server.worker.counters().await.unwrap();
    assert_eq!(counters.devices_lost, 1);
    let delete = dpdk::DeleteInterfaceRequest {
        interface_id: b"vm1".to_vec(),
    };
    assert_eq!(outcome!(client.delete_interface(delete)), "0 Success");
}

#[tokio::test]
async fn an_interface_gets_its_device_even_if_its_client_waits_no_longer() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    server.devices.held.store(true, Ordering::Relaxed);
    let mut request = tonic::Request::new(interface("vm1", "net_tap2", "10.0.0.1", "::"));
    request.set_timeout(Duration::from_millis(50));
    client.create_interface(request).await.unwrap_err();
    server.devices.held.store(false, Ordering::Relaxed);
    let start = Instant::now();
    while !server
        .worker
        .call(|plane| plane.is_attached(dataplane::PortId(1)))
        .await
        .unwrap()
    {
        assert!(start.elapsed() < DEADLINE, "no device");
        tokio::task::yield_now().await;
    }
}

/// TCP SYN between two machines of this host.
fn syn(source: u8, destination: u8, ports: [u16; 2]) -> Vec<u8> {
    syn_between([10, 0, 0, source], [10, 0, 0, destination], ports)
}

/// TCP SYN as a machine sends it to its gateway.
pub fn syn_between(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
    let mut frame = vec![0x06, 0, 0, 0, 0, 1, 0x66, 0, 0, 0, 0, source[3], 8, 0];
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    ip.extend([source, destination].concat());
    let sum = net::checksum::checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    frame.extend(ip);
    frame.extend(ports.map(u16::to_be_bytes).concat());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x10, 0, 0, 0, 0, 0]);
    frame
}

#[tokio::test]
async fn packet_threads_share_the_flows_and_take_every_change() {
    let settings = Settings {
        workers: 3,
        ..Settings::default()
    };
    let server = Server::start_with(true, settings).await;
    let mut client = server.initialized().await;
    for (id, device, address) in [
        ("vm1", "net_tap2", "10.0.0.1"),
        ("vm2", "net_tap3", "10.0.0.2"),
    ] {
        let request = interface(id, device, address, "::");
        assert_eq!(outcome!(client.create_interface(request)), "0 Success");
    }
    let (first, second) = (server.machine(0), server.machine(1));
    // The devices have one queue: the thread that receives hands over what is not its own.
    let mut arrived = 0;
    for port in 1024..1524 {
        assert!(first.send(&syn(1, 2, [port, 80])));
        let start = Instant::now();
        while arrived <= port - 1024 {
            let frame = second.receive();
            arrived += u16::from(frame.is_some_and(|frame| frame.get(36..38) == Some(&[0, 80])));
            assert!(start.elapsed() < DEADLINE, "{arrived} arrived");
            tokio::task::yield_now().await;
        }
    }
    let flows = server
        .worker
        .inspect(|inspection| inspection.worker.counters().flows_created)
        .await
        .unwrap();
    assert_eq!(flows.iter().sum::<u64>(), 500, "{flows:?}");
    assert!(flows.iter().all(|count| *count > 50), "{flows:?}");
    let counters = server.worker.counters().await.unwrap();
    assert!(counters.handed_over > 500, "{counters:?}");
    assert_eq!(counters.hand_over_full, 0);
    // When the reply is there, no thread delivers any more.
    let delete = dpdk::DeleteInterfaceRequest {
        interface_id: b"vm2".to_vec(),
    };
    assert_eq!(outcome!(client.delete_interface(delete)), "0 Success");
    let refused = |inspection: dpservice::worker::Inspection<'_>| {
        let counters = inspection.worker.counters();
        let reasons = dataplane::DropReason::ALL.iter();
        reasons.map(|reason| counters.drops(*reason)).sum::<u64>()
    };
    for port in 1024..1324 {
        assert!(first.send(&syn(1, 2, [port, 80])));
    }
    let start = Instant::now();
    loop {
        let drops = server.worker.inspect(refused).await.unwrap();
        if drops.iter().sum::<u64>() == 300 {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "{drops:?}");
    }
    assert_eq!(server.worker.counters().await.unwrap().no_device, 0);
}

#[tokio::test]
async fn metrics_show_every_counter() {
    let server = Server::start().await;
    let mut client = server.initialized().await;
    let request = interface("vm1", "net_tap2", "10.0.0.1", "::");
    assert_eq!(outcome!(client.create_interface(request)), "0 Success");
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let devices = (0..9).map(|number| format!("net_tap{number}")).collect();
    let mut tasks = JoinSet::new();
    tasks.spawn(metrics::serve(
        listener,
        devices,
        server.worker.clone(),
        server.shutdown.clone(),
    ));
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = get("/metrics").await;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    for line in [
        "dpservice_interfaces 1",
        "dpservice_dropped_packets_total{reason=\"source_spoofed\"} 0",
        "dpservice_graph_packets_total{graph_node=\"cls\"} ",
        "dpservice_port_total{device=\"net_tap0\",counter=\"rx_packets\"} 0",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    assert!(get("/other").await.starts_with("HTTP/1.1 404"));
}

#[test]
fn starts_within_milliseconds_and_again_after_a_kill() {
    enter_private_namespace();
    let _keep = Namespace::own();
    ip("link set lo up");
    ip("link add pf0 type veth peer name r0");
    ip("link set pf0 up");
    let start = || {
        let begun = Instant::now();
        let process = Process::dpservice(None, "fc00:1::1", &[]);
        while BlockingStream::connect("[::1]:1337").is_err() {
            assert!(begun.elapsed() < DEADLINE, "does not start");
            std::thread::yield_now();
        }
        (process, begun.elapsed())
    };
    let (process, first) = start();
    process.kill();
    let (process, second) = start();
    println!("start {first:?}, after kill -9 {second:?}");
    // Generous: this machine is shared and the build is not optimised.
    assert!(second.as_millis() < 2000, "{second:?}");
    let begun = Instant::now();
    assert!(
        process.terminate().success(),
        "a termination signal is no failure"
    );
    assert!(begun.elapsed() < DEADLINE);
}

//! The whole part in a network namespace: metalbond server, device, kernel routes, pages.

use std::net::{Ipv6Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use metalbond::{Client, Config, Destination, NextHop};
use nix::sched::{CloneFlags, unshare};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::bed::{VNI, hv, standard};

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: edge::Args,
}

fn args(list: &[&str]) -> edge::Args {
    Cli::try_parse_from([&["edge"], list].concat())
        .unwrap()
        .args
}

fn ip(command: &str) -> String {
    let out = Command::new("ip")
        .args(command.split_whitespace())
        .output()
        .unwrap();
    assert!(out.status.success(), "ip {command}: {out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(LIMIT, waiting).await.is_ok(), "{what}");
}

fn has_default(client: &Client, address: Ipv6Addr) -> bool {
    let route = |prefix: &str| {
        let (destination, next_hop): (Destination, NextHop) = standard(prefix, address);
        let mut routes = client.routes().into_iter();
        routes.any(|route| (route.destination, route.next_hop) == (destination, next_hop))
    };
    route("0.0.0.0/0") && route("::/0")
}

#[test]
fn attracts_what_it_can_carry_and_leaves_nothing() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
    ip("link set lo up");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let server = metalbond::server::spawn(listener, Default::default()).unwrap();
        let server_address = server.local_addr().to_string();
        let (hypervisor, _events) = Client::start(Config {
            peers: vec![server_address.clone()],
            ..Config::default()
        });
        hypervisor.subscribe(VNI);
        let (destination, next_hop) = standard("198.51.100.1/32", hv(1));
        hypervisor.announce(VNI, destination, next_hop);

        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(edge::run(
            args(&[
                "--address",
                "fd00:ff::e",
                "--public-prefix",
                "198.51.100.0/24,2001:db8:100::/64",
                "--server",
                &server_address,
                "--default-route",
                "always",
                "--drain-ms",
                "1",
            ]),
            shutdown.clone(),
        ));
        let own = "fd00:ff::e".parse().unwrap();
        until("the default routes arrive", || {
            has_default(&hypervisor, own)
        })
        .await;
        // What attracts traffic comes after the routes are known.
        assert!(ip("route").contains("198.51.100.0/24 via 192.0.0.8 dev edge0"));
        assert!(ip("-6 route").contains("2001:db8:100::/64 via fe80::1 dev edge0"));
        assert!(ip("-6 route").contains("fd00:ff::e via fe80::1 dev edge0"));
        assert!(ip("-o link show edge0").contains("NOARP"));
        assert!(!ip("-o -6 addr show dev edge0").contains("fe80"));

        // A packet of this namespace's kernel comes back as a tunnel packet: to an address of the kernel, to be seen by its counters.
        ip("-6 addr add fd00:1::d000:0:0:1/128 dev lo nodad");
        ip("addr add 203.0.113.7/32 dev lo");
        let socket = UdpSocket::bind("203.0.113.7:0").unwrap();
        socket.send_to(b"hello", "198.51.100.1:53").unwrap();
        until("the kernel gets the tunnel packet", || {
            // Not /sys, which shows the namespace it was mounted in. The second number is received packets.
            let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let row = text.lines().find(|line| line.contains("edge0:")).unwrap();
            row.split_whitespace().nth(2) != Some("0")
        })
        .await;

        shutdown.cancel();
        let ended = timeout(LIMIT, tasks.join_next()).await.unwrap();
        ended.unwrap().unwrap().unwrap();
        until("the default routes go", || !has_default(&hypervisor, own)).await;
        assert!(!ip("route").contains("198.51.100.0/24"));
        assert!(!ip("-o link").contains("edge0"));
    });
}

#[test]
fn flags_that_cannot_be_meant() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
    ip("link set lo up");
    ip("-6 addr add fd00::f/128 dev lo nodad");
    let public = ["--public-prefix", "198.51.100.0/24"];
    for (address, flags, why) in [
        ("fd00::e", ["--public-prefix", "0.0.0.0/0"], "whole outside"),
        ("fd00::e", ["--mtu", "600"], "--mtu 600"),
        ("fd00::e", ["--workers", "0"], "--workers 0"),
        ("fd00::e", ["--deny", "x"], "--deny"),
        ("fd00::e", ["--http", "localhost"], "--http"),
        ("fd00::f", ["--mtu", "1500"], "belongs to a device"),
    ] {
        let base = ["--address", address, "--server", "[::1]:1"];
        let args = args(&[&base[..], &public, &flags].concat());
        let error = runtime
            .block_on(edge::run(args, CancellationToken::new()))
            .expect_err(why);
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
}

//! Drivers against the contract, and what is special to each. Needs root: the tests make private network namespaces.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation is a failed test"
)]

mod af_packet;
#[cfg(feature = "dpdk")]
mod dpdk;
#[cfg(feature = "dpdk")]
mod dpdk_guests;
mod drivers;
mod ring;
mod segmentation;
mod tap;

use std::process::Command;

/// Puts the calling thread into a new network namespace in which the kernel never speaks by itself.
fn enter_private_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("cannot make a network namespace: run the tests as root (CAP_SYS_ADMIN)");
    for scope in ["default", "all"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        std::fs::write(path, "1").expect("switch IPv6 autoconfiguration off");
    }
}

/// Runs iproute2's `ip` in the calling thread's namespace.
fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("cannot run `ip`: install iproute2");
    assert!(status.success(), "ip {arguments}: {status}");
}

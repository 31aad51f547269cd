//! What only TAP devices do: they move between namespaces and die with them.

use crate::{enter_private_namespace, ip};
use net::Mac;
use ports::{Frame, Gone, Poller, Port, Tap};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 1]);
const DEADLINE: Duration = Duration::from_secs(10);

/// A process in its own network namespace, which ends with it.
struct Machine(Child);

impl Machine {
    fn start() -> Machine {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "600"])
            .spawn()
            .expect("cannot run setpriv/unshare: install util-linux");
        // Owned from here on, so that a failed expectation below ends it.
        let machine = Machine(child);
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let theirs = format!("/proc/{}/ns/net", machine.0.id());
        let deadline = Instant::now() + DEADLINE;
        // The child is still in our namespace until `unshare` has run.
        while std::fs::read_link(&theirs).is_ok_and(|theirs| theirs == own) {
            assert!(Instant::now() < deadline, "no namespace");
            std::thread::yield_now();
        }
        machine
    }

    fn run(&self, command: &str) {
        let status = Command::new("nsenter")
            .args(["-t", &self.0.id().to_string(), "-n"])
            .args(command.split_whitespace())
            .status()
            .expect("nsenter");
        assert!(status.success(), "{command}: {status}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn keeps_working_in_another_namespace_and_notices_its_end() {
    enter_private_namespace();
    let mut tap = Tap::create("dtapvf_0", MAC, 1500).expect("create TAP");
    let poller = Poller::new().expect("poller");
    poller
        .add(tap.readiness().expect("readiness"), 0)
        .expect("watch");
    let machine = Machine::start();
    ip(&format!("link set dtapvf_0 netns {}", machine.0.id()));
    machine.run("ip link set dtapvf_0 name eth0");
    machine.run("ip link set eth0 up");
    machine.run("ip address add 10.0.0.1/24 dev eth0");
    machine.run("ip neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0");
    // One packet without waiting for an answer; udp needs nobody.
    machine.run("bash -c echo>/dev/udp/10.0.0.2/9");
    let mut packets = [Frame::new()];
    let deadline = Instant::now() + DEADLINE;
    loop {
        let ready = poller.wait(Duration::from_millis(100)).expect("wait");
        let filled = tap.rx_burst(&mut packets).expect("device exists");
        let [packet] = &packets;
        if filled == 1 && packet.frame().get(12..14) == Some(&[8, 0]) {
            assert_eq!(ready.tokens(), [0]);
            assert_eq!(packet.frame().get(..6), Some(&[2, 0, 0, 0, 0, 2][..]));
            assert_eq!(packet.frame().get(6..12), Some(&MAC.0[..]));
            break;
        }
        assert!(Instant::now() < deadline, "no packet came");
    }
    drop(machine);
    let deadline = Instant::now() + DEADLINE;
    loop {
        // An error state is readable: the poller reports the port and the next receive tells.
        let ready = poller.wait(Duration::from_millis(100)).expect("wait");
        if tap.rx_burst(&mut packets) == Err(Gone) {
            assert_eq!(ready.tokens(), [0], "readiness did not tell");
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the end of the namespace went unnoticed"
        );
    }
}

#[test]
fn frames_to_a_device_that_is_down_are_counted() {
    enter_private_namespace();
    let mut tap = Tap::create("tap0", MAC, 1500).expect("create TAP");
    let mut packet = Frame::new();
    assert!(packet.fill(&[0; 60]));
    assert_eq!(tap.tx_burst(&mut [&mut packet]), 0);
    assert_eq!(tap.counters().tx_down, 1);
}

#[test]
fn a_name_in_use_is_refused() {
    enter_private_namespace();
    let _first = Tap::create("tap0", MAC, 1500).expect("create TAP");
    let error = Tap::create("tap0", MAC, 1500).expect_err("name is taken");
    assert_eq!(error.cause.raw_os_error(), Some(libc::EBUSY), "{error}");
    assert_eq!(
        error.to_string().split(": ").take(2).collect::<Vec<_>>(),
        ["tap0", "create TAP"]
    );
}

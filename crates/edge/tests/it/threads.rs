//! The whole packet path over the memory driver: threads, published tables, counters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::thread::{Published, Threads};
use edge::{DropReason, Path, Routes};
use ports::memory::{self, MemoryPeer};

use crate::bed::{
    MAC, MTU, added, ethernet_frame, hv, own, routes, scope, settings, standard, tunnelled, udp,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// Waits for a frame; the threads are real.
fn receive(peer: &MemoryPeer) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(frame) = peer.receive() {
            return frame;
        }
        assert!(Instant::now() < deadline, "no frame came");
        std::thread::yield_now();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn both_directions_and_a_new_table_without_a_pause() {
    let mtu = usize::from(MTU) + 40;
    let (port, kernel) = memory::pair("edge0", MAC, mtu).unwrap();
    let (second, other_kernel) = memory::pair("edge0", MAC, mtu).unwrap();
    let published = Arc::new(Published::default());
    published.publish(routes().table().clone());
    let threads = Threads::start(vec![port, second], &Arc::new(settings()), &published).unwrap();

    let inbound = udp("203.0.113.5", 4000, "198.51.100.1", 53);
    kernel.send(&ethernet_frame(&inbound));
    let frame = receive(&kernel);
    assert_eq!(
        (&frame[38..54], &frame[54..]),
        (&hv(1).octets()[..], &inbound[..])
    );

    let outbound = udp("198.51.100.1", 53, "203.0.113.5", 4000);
    other_kernel.send(&tunnelled(hv(1), &outbound));
    assert_eq!(receive(&other_kernel)[14..], outbound[..]);

    let mut moved = Routes::new(scope());
    moved.follow(&added(standard("198.51.100.1/32", hv(7))));
    published.publish(moved.table().clone());
    kernel.send(&ethernet_frame(&inbound));
    assert_eq!(receive(&kernel)[38..54], hv(7).octets());

    other_kernel.send(&ethernet_frame(&udp("203.0.113.5", 1, "127.0.0.1", 2)));
    let figures = |number: usize| threads.boards()[number].counters.figures();
    until("the drop is counted", || {
        figures(1).dropped(DropReason::Martian) == 1
    });
    assert_eq!(figures(0).packets(Path::Inbound), 2);
    assert_eq!(figures(1).packets(Path::Outbound), 1);
    until("the driver's counters show", || {
        threads.boards()[0]
            .driver()
            .any(|(name, n)| (name, n) == ("tx_packets", 2))
    });
}

#[test]
fn a_removed_device_is_noticed_and_threads_end_when_told() {
    let (port, kernel) = memory::pair("edge0", MAC, 1540).unwrap();
    let published = Arc::new(Published::default());
    let threads = Threads::start(vec![port], &Arc::new(settings()), &published).unwrap();
    assert!(!threads.boards()[0].has_ended());
    kernel.unplug();
    until("the thread ends", || threads.boards()[0].has_ended());

    let (port, _kernel) = memory::pair("edge0", MAC, 1540).unwrap();
    let threads = Threads::start(vec![port], &Arc::new(settings()), &published).unwrap();
    let board = Arc::clone(&threads.boards()[0]);
    drop(threads);
    assert!(board.has_ended());
    assert_eq!(edge::kernel::mac_of(own()).0[0], 2);
}

//! An existing network device through AF_XDP sockets: what the program selects goes past the kernel's stack to us, the rest to the kernel.
//!
//! One socket per receive queue of the device. In contrast to packet sockets the kernel gets no copy, so nothing has to be discarded there.
//! Frames are copied between our buffers and the memory shared with the kernel. The program works in the driver where that can, else
//! generically; zero copy between NIC and shared memory is used where the NIC can. Senders on the other end of a veth must not leave
//! checksums unfinished: XDP has no way to tell about them (another host of ours never does).

use crate::af_packet::Select;
use crate::bpf::{
    self, ADD, AND, CALL, EXIT, IF_EQUAL, IF_GREATER_REGISTER, IF_NOT_EQUAL, IF_NOT_EQUAL_32,
    Instruction, LOAD_8, LOAD_16, LOAD_32, LOAD_MAP, MOVE, MOVE_REGISTER, Place, code,
};
use crate::segment::{self, Segment};
use crate::sys;
use crate::xsk::{self, Ring, Umem};
use crate::{Counters, ETHERNET_LEN, Frame, Gone, OpenError, Port};
use net::{Mac, protocol};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bytes per packet in the shared memory, which limits the device's MTU.
const CHUNK_LEN: u32 = 4096;
/// Bytes that the kernel keeps free in front of a received packet (`XDP_PACKET_HEADROOM`).
const KERNEL_HEADROOM: usize = 256;
/// Items per ring.
const RING_LEN: u32 = 1024;
/// Chunks for each direction.
const CHUNKS: u64 = RING_LEN as u64;
/// How often the kernel is asked to send what is in the ring; it takes 32 frames each time in copy mode.
const KICKS_MAX: u32 = 64;
/// `XDP_FLAGS_SKB_MODE`: the generic implementation.
const GENERIC: u32 = 1 << 1;

/// The program at work on a device; it is detached when the last queue is closed.
#[derive(Debug)]
struct Program {
    _link: OwnedFd,
    _program: OwnedFd,
    _map: OwnedFd,
}

/// One receive queue of a device.
#[derive(Debug)]
pub struct AfXdp {
    name: String,
    mac: Mac,
    mtu: usize,
    index: i32,
    _program: Arc<Program>,
    socket: OwnedFd,
    umem: Umem,
    receive: Ring<libc::xdp_desc>,
    transmit: Ring<libc::xdp_desc>,
    fill: Ring<u64>,
    completion: Ring<u64>,
    /// Chunks for sending that are not with the kernel.
    free: Vec<u64>,
    counters: Counters,
}

impl AfXdp {
    /// Attaches to all receive queues of the device `name` of the caller's network namespace, one port each.
    ///
    /// # Errors
    /// No such device (`ENODEV`), another XDP program is attached (`EBUSY`), packets of its MTU do not fit (`EMSGSIZE`), no CAP_BPF and
    /// CAP_NET_ADMIN (`EPERM`), or a kernel without AF_XDP (`EAFNOSUPPORT`).
    pub fn open(name: &str, select: Select) -> Result<Vec<AfXdp>, OpenError> {
        let fail = |action| OpenError::new(name, action);
        let control = sys::control_socket().map_err(fail("open control socket"))?;
        let index = sys::index(control.as_fd(), name).map_err(fail("find device"))?;
        let mac = sys::mac(control.as_fd(), name).map_err(fail("read hardware address"))?;
        let mtu = sys::mtu(control.as_fd(), name).map_err(fail("read MTU"))?;
        if mtu + ETHERNET_LEN + KERNEL_HEADROOM > CHUNK_LEN as usize {
            let error = io::Error::from_raw_os_error(libc::EMSGSIZE);
            return Err(fail("fit packets of the device's MTU into shared memory")(
                error,
            ));
        }
        let queues =
            sys::receive_queues(control.as_fd(), name).map_err(fail("count receive queues"))?;
        let map = bpf::socket_map(queues).map_err(fail("make socket map"))?;
        let mut sockets = Vec::new();
        for queue in 0..queues {
            let opened = open_socket(index as u32, queue).map_err(fail("open AF_XDP socket"))?;
            bpf::insert(map.as_fd(), queue, opened.0.as_fd()).map_err(fail("enter socket"))?;
            sockets.push(opened);
        }
        let program =
            bpf::load(Place::Xdp, &program(select, map.as_fd())).map_err(fail("load program"))?;
        let link = bpf::attach(Place::Xdp, program.as_fd(), index as u32, 0)
            .or_else(|_| bpf::attach(Place::Xdp, program.as_fd(), index as u32, GENERIC))
            .map_err(fail("attach program"))?;
        let program = Arc::new(Program {
            _link: link,
            _program: program,
            _map: map,
        });
        let port = |(socket, umem, receive, transmit, fill, completion)| AfXdp {
            name: name.to_owned(),
            mac,
            mtu,
            index,
            _program: Arc::clone(&program),
            socket,
            umem,
            receive,
            transmit,
            fill,
            completion,
            free: (CHUNKS..2 * CHUNKS)
                .map(|chunk| chunk * u64::from(CHUNK_LEN))
                .collect(),
            counters: Counters::default(),
        };
        Ok(sockets.into_iter().map(port).collect())
    }

    fn exists(&self) -> bool {
        sys::control_socket()
            .and_then(|control| sys::index(control.as_fd(), &self.name))
            .is_ok_and(|index| index == self.index)
    }

    fn reclaim(&mut self) {
        while let Some(address) = self.completion.pop() {
            self.free.push(address);
        }
        self.completion.release();
    }

    /// Puts a finished frame of two parts into the transmit ring.
    fn queue(&mut self, [head, tail]: [&[u8]; 2]) -> bool {
        let length = head.len() + tail.len();
        if length > self.mtu + ETHERNET_LEN {
            self.counters.tx_oversize += 1;
            return false;
        }
        if self.free.is_empty() {
            self.kick();
            self.reclaim();
        }
        let Some(address) = self.free.pop() else {
            self.counters.tx_full += 1;
            return false;
        };
        let written = self.umem.write(address, head)
            && self.umem.write(address + head.len() as u64, tail)
            && self.transmit.push(libc::xdp_desc {
                addr: address,
                len: length as u32,
                options: 0,
            });
        if written {
            self.counters.sent(length);
        } else {
            self.free.push(address);
            self.counters.tx_full += 1;
        }
        written
    }

    fn queue_packet(&mut self, packet: &mut Frame) -> bool {
        if let Some(cut) = segment::cut(packet) {
            let mut segment = Segment::EMPTY;
            return (0..cut.count()).fold(true, |all, number| {
                let queued = cut.write(packet.frame(), number, &mut segment)
                    && self.queue(segment.parts(packet.frame()));
                all && queued
            });
        }
        if segment::finish(packet) {
            return self.queue([packet.frame(), &[]]);
        }
        self.counters.tx_errors += 1;
        false
    }

    /// Makes the kernel send what is in the ring.
    fn kick(&mut self) {
        self.transmit.publish();
        for _ in 0..KICKS_MAX {
            if self.transmit.outstanding() == 0 || !self.transmit.needs_wakeup() {
                break;
            }
            match xsk::kick_transmit(self.socket.as_fd()) {
                Ok(()) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => {}
                    // No memory for packets: the next burst asks again. Other causes concern a device that is down or gone.
                    _ => break,
                },
            }
        }
    }
}

type Opened = (
    OwnedFd,
    Umem,
    Ring<libc::xdp_desc>,
    Ring<libc::xdp_desc>,
    Ring<u64>,
    Ring<u64>,
);

fn open_socket(index: u32, queue: u32) -> io::Result<Opened> {
    let socket = xsk::socket()?;
    let fd = socket.as_fd();
    let umem = Umem::register(fd, 2 * CHUNKS as usize, CHUNK_LEN)?;
    let mut fill = Ring::open(fd, libc::XDP_UMEM_FILL_RING, RING_LEN)?;
    let completion = Ring::open(fd, libc::XDP_UMEM_COMPLETION_RING, RING_LEN)?;
    let receive = Ring::open(fd, libc::XDP_RX_RING, RING_LEN)?;
    let transmit = Ring::open(fd, libc::XDP_TX_RING, RING_LEN)?;
    for chunk in 0..CHUNKS {
        fill.push(chunk * u64::from(CHUNK_LEN));
    }
    fill.publish();
    xsk::bind(fd, index, queue)?;
    Ok((socket, umem, receive, transmit, fill, completion))
}

/// The XDP program: redirects what `select` names to the socket of the receive queue, and passes everything else on.
fn program(select: Select, map: BorrowedFd<'_>) -> Vec<Instruction> {
    const REDIRECT_MAP: i32 = 51;
    const PASS: i32 = 2;
    // Register 6 keeps the context; 2 and 3 are start and end of the packet, 5 is what was loaded last.
    let mut text = vec![code(MOVE_REGISTER, 6, 1, 0, 0)];
    if let Select::Underlay(host) = select {
        let [a, b, c, d, e, f, g, h, ..] = host.octets();
        let tests = [
            code(LOAD_32, 2, 1, 0, 0),
            code(LOAD_32, 3, 1, 4, 0),
            code(MOVE_REGISTER, 4, 2, 0, 0),
            code(ADD, 4, 0, 0, 54),
            // Jumps to "pass" behind the redirection, which is six instructions long.
            code(IF_GREATER_REGISTER, 4, 3, 18, 0),
            code(LOAD_16, 5, 2, 12, 0),
            code(IF_NOT_EQUAL, 5, 0, 16, i32::from(0x86dd_u16.to_be())),
            code(LOAD_32, 5, 2, 38, 0),
            code(IF_NOT_EQUAL_32, 5, 0, 14, i32::from_ne_bytes([a, b, c, d])),
            code(LOAD_32, 5, 2, 42, 0),
            code(IF_NOT_EQUAL_32, 5, 0, 12, i32::from_ne_bytes([e, f, g, h])),
            code(LOAD_8, 5, 2, 20, 0),
            code(IF_EQUAL, 5, 0, 4, i32::from(protocol::IPV4)),
            code(IF_EQUAL, 5, 0, 3, i32::from(protocol::IPV6)),
            code(LOAD_8, 5, 2, 46, 0),
            code(AND, 5, 0, 0, 0xf0),
            code(IF_NOT_EQUAL, 5, 0, 6, 0xd0),
        ];
        text.extend(tests);
    }
    text.extend([
        code(LOAD_32, 2, 6, 16, 0),
        code(LOAD_MAP, 1, 1, 0, map.as_raw_fd()),
        code(0, 0, 0, 0, 0),
        // What happens if the queue has no socket.
        code(MOVE, 3, 0, 0, PASS),
        code(CALL, 0, 0, 0, REDIRECT_MAP),
        code(EXIT, 0, 0, 0, 0),
    ]);
    // The kernel refuses what cannot be reached.
    if select != Select::All {
        text.extend([code(MOVE, 0, 0, 0, PASS), code(EXIT, 0, 0, 0, 0)]);
    }
    text
}

impl Port for AfXdp {
    fn name(&self) -> &str {
        &self.name
    }

    fn mac(&self) -> Mac {
        self.mac
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn rx_burst(&mut self, packets: &mut [Frame]) -> Result<usize, Gone> {
        let mut filled = 0;
        while let Some(packet) = packets.get_mut(filled) {
            let Some(found) = self.receive.pop() else {
                break;
            };
            let length = found.len as usize;
            let copied = packet
                .receive_area()
                .get_mut(..length)
                .is_some_and(|area| self.umem.read(found.addr, area));
            // The chunk goes back whole: the kernel wants its beginning.
            self.fill.push(found.addr & !u64::from(CHUNK_LEN - 1));
            if copied {
                packet.set_received(length);
                self.counters.received(length);
                filled += 1;
            } else {
                self.counters.rx_unusable += 1;
            }
        }
        self.receive.release();
        self.fill.publish();
        if self.fill.needs_wakeup() {
            xsk::kick_receive(self.socket.as_fd());
        }
        // Readable without a packet: an error is pending.
        if filled == 0 && !self.exists() {
            return Err(Gone);
        }
        Ok(filled)
    }

    fn tx_burst(&mut self, packets: &mut [&mut Frame]) -> usize {
        self.reclaim();
        let queued = packets
            .iter_mut()
            .map(|packet| usize::from(self.queue_packet(packet)))
            .sum();
        self.kick();
        queued
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}

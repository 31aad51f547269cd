//! An existing network device through packet sockets, beside the kernel's own stack.
//!
//! The kernel keeps everything it would get without us; the port gets copies of what its filter selects. Two sockets: one that receives
//! with the kernel's offload header, so that unfinished checksums and super-frames of a veth peer (or of GRO) are seen and repaired,
//! and one that only sends, past the queueing discipline (`PACKET_QDISC_BYPASS`): our bursts are paced by the machines' own
//! transports, and a queue here would only add latency and a lock.

use crate::segment::{self, Offload};
use crate::sys::{self, Message};
use crate::{BATCH_MAX, Counters, Gone, OpenError, Port};
use dataplane::PacketBuf;
use net::Mac;
use socket2::{Domain, SockFilter, Socket, Type};
use std::collections::VecDeque;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes of frames that may wait in the kernel for us; beyond, frames are lost and counted as `rx_full`.
const RECEIVE_BUFFER_BYTES: i32 = 8 << 20;
/// Bytes of frames that may be on their way out.
const SEND_BUFFER_BYTES: i32 = 4 << 20;
/// Largest super-frame that the kernel builds (64 KiB) plus its Ethernet header.
const SUPER_FRAME_MAX: usize = 65_536 + 64;

const ETHERTYPE_ALL: u16 = 0x0003;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Which frames the port receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// Everything that comes in, for other hardware addresses too: the port is a machine's wire.
    All,
    /// An uplink: IPv6 towards this /64, if it is IP-in-IPv6 or goes to the part `d000::/68` of generated addresses.
    Underlay(Ipv6Addr),
}

/// An open device.
#[derive(Debug)]
pub struct AfPacket {
    name: String,
    mac: Mac,
    mtu: usize,
    index: i32,
    receiver: Socket,
    sender: Socket,
    messages: [Message; BATCH_MAX],
    overflows: Vec<Box<[u8]>>,
    /// Frames that were received but not handed out, because a super-frame before them became many.
    backlog: VecDeque<Vec<u8>>,
    counters: Counters,
}

impl AfPacket {
    /// Attaches to the device `name` of the caller's network namespace, which must exist; it may be down.
    ///
    /// # Errors
    /// No such device (`ENODEV`) or no CAP_NET_RAW (`EPERM`).
    pub fn open(name: &str, select: Select) -> Result<AfPacket, OpenError> {
        let control = sys::control_socket().map_err(OpenError::new(name, "open control socket"))?;
        let index =
            sys::index(control.as_fd(), name).map_err(OpenError::new(name, "find device"))?;
        let mac = sys::mac(control.as_fd(), name)
            .map_err(OpenError::new(name, "read hardware address"))?;
        let mtu = sys::mtu(control.as_fd(), name).map_err(OpenError::new(name, "read MTU"))?;
        let receiver = open_receiver(index, select)
            .map_err(OpenError::new(name, "open receiving packet socket"))?;
        let sender =
            open_sender(index).map_err(OpenError::new(name, "open sending packet socket"))?;
        let overflows = (0..BATCH_MAX)
            .map(|_| vec![0; SUPER_FRAME_MAX].into_boxed_slice())
            .collect();
        Ok(AfPacket {
            name: name.to_owned(),
            mac,
            mtu,
            index,
            receiver,
            sender,
            messages: [Message::default(); BATCH_MAX],
            overflows,
            backlog: VecDeque::new(),
            counters: Counters::default(),
        })
    }

    fn exists(&self) -> bool {
        sys::control_socket()
            .and_then(|control| sys::index(control.as_fd(), &self.name))
            .is_ok_and(|index| index == self.index)
    }

    fn drain_backlog(&mut self, packets: &mut [PacketBuf]) -> usize {
        let mut filled = 0;
        while let Some(packet) = packets.get_mut(filled) {
            let Some(frame) = self.backlog.pop_front() else {
                break;
            };
            if packet.fill(&frame) {
                self.counters.received(frame.len());
                filled += 1;
            } else {
                self.counters.rx_unusable += 1;
            }
        }
        filled
    }

    /// Finishes one received message in place; `None` if the frame cannot stay in its buffer and went to the backlog (or nowhere).
    fn settle(&mut self, slot: usize, packet: &mut PacketBuf) -> Option<()> {
        let message = self.messages.get(slot)?;
        let Message { header, frame_len } = *message;
        let Some(offload) = Offload::parse(&header) else {
            self.counters.rx_unusable += 1;
            return None;
        };
        let area_len = packet.receive_area().len();
        if frame_len <= area_len && matches!(offload.segments, segment::Segments::None) {
            packet.set_received(frame_len);
            if !segment::finish_checksum(&offload, packet.frame_mut()) {
                self.counters.rx_unusable += 1;
                return None;
            }
            return Some(());
        }
        let mut frame = packet.receive_area().to_vec();
        frame.truncate(frame_len);
        let overflow = self.overflows.get(slot)?;
        let rest = frame_len.saturating_sub(area_len);
        frame.extend_from_slice(overflow.get(..rest)?);
        match segment::cut(&offload, &frame) {
            Some(segments) => {
                self.counters.rx_segmented += 1;
                self.backlog.extend(segments);
            }
            None => self.counters.rx_unusable += 1,
        }
        None
    }
}

fn open_receiver(index: i32, select: Select) -> io::Result<Socket> {
    // Protocol 0 at creation, the real one at bind: nothing unfiltered can come in between.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    sys::packet_option(socket.as_fd(), libc::PACKET_VNET_HDR)?;
    // Without CAP_NET_ADMIN the buffer stays at the system's limit, which only costs frames under load.
    if sys::force_receive_buffer(socket.as_fd(), RECEIVE_BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES as usize)?;
    }
    match select {
        Select::All => {
            sys::packet_option(socket.as_fd(), libc::PACKET_IGNORE_OUTGOING)?;
            sys::promiscuous(socket.as_fd(), index)?;
            sys::bind_packet(socket.as_fd(), index, ETHERTYPE_ALL)?;
        }
        Select::Underlay(host) => {
            socket.attach_filter(&underlay_filter(host))?;
            sys::bind_packet(socket.as_fd(), index, ETHERTYPE_IPV6)?;
        }
    }
    Ok(socket)
}

fn open_sender(index: i32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    sys::packet_option(socket.as_fd(), libc::PACKET_QDISC_BYPASS)?;
    if sys::force_send_buffer(socket.as_fd(), SEND_BUFFER_BYTES).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER_BYTES as usize)?;
    }
    sys::bind_packet(socket.as_fd(), index, 0)?;
    Ok(socket)
}

/// A classic BPF program over the whole Ethernet frame. Offsets: 20 next header, 38 destination address. A load beyond the frame rejects.
fn underlay_filter(host: Ipv6Addr) -> [SockFilter; 12] {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let [a, b, c, d, e, f, g, h, ..] = host.octets();
    let high = u32::from_be_bytes([a, b, c, d]);
    let low = u32::from_be_bytes([e, f, g, h]);
    [
        SockFilter::new(LOAD_WORD, 0, 0, 38),
        SockFilter::new(IF_EQUAL, 0, 9, high),
        SockFilter::new(LOAD_WORD, 0, 0, 42),
        SockFilter::new(IF_EQUAL, 0, 7, low),
        SockFilter::new(LOAD_BYTE, 0, 0, 20),
        SockFilter::new(IF_EQUAL, 4, 0, u32::from(net::protocol::IPV4)),
        SockFilter::new(IF_EQUAL, 3, 0, u32::from(net::protocol::IPV6)),
        SockFilter::new(LOAD_BYTE, 0, 0, 46),
        SockFilter::new(AND, 0, 0, 0xf0),
        // Falls through to "accept" on a tunnel (jumps above) or on d000::/68.
        SockFilter::new(IF_EQUAL, 0, 1, 0xd0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

impl Port for AfPacket {
    fn name(&self) -> &str {
        &self.name
    }

    fn mac(&self) -> Mac {
        self.mac
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    fn backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    fn rx_burst(&mut self, packets: &mut [PacketBuf]) -> Result<usize, Gone> {
        if !self.backlog.is_empty() {
            return Ok(self.drain_backlog(packets));
        }
        let received = match sys::receive(
            self.receiver.as_fd(),
            &mut self.messages,
            packets,
            &mut self.overflows,
        ) {
            Ok(received) => received,
            // A frame whose offload the kernel cannot describe: it is gone, the next ones are fine.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.counters.rx_unusable += 1;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // Down is not gone: the device may come up again.
            Err(_) if self.exists() => 0,
            Err(_) => return Err(Gone),
        };
        let mut filled = 0;
        for slot in 0..received {
            let Some((before, rest)) = packets.split_at_mut_checked(slot) else {
                break;
            };
            let Some(packet) = rest.first_mut() else {
                break;
            };
            if self.settle(slot, packet).is_none() {
                continue;
            }
            if !self.backlog.is_empty() {
                // Behind a super-frame: order is kept by queueing behind its segments.
                self.backlog.push_back(packet.frame().to_vec());
                continue;
            }
            self.counters.received(packet.len());
            if let Some(target) = before.get_mut(filled) {
                std::mem::swap(target, packet);
            }
            filled += 1;
        }
        if filled == 0 && !self.backlog.is_empty() {
            return Ok(self.drain_backlog(packets));
        }
        Ok(filled)
    }

    fn tx_burst(&mut self, packets: &[&PacketBuf]) -> usize {
        let mut sent = 0;
        let mut rest = packets;
        while let Some(first) = rest.first() {
            match sys::send(self.sender.as_fd(), rest) {
                Ok(count) => {
                    let count = count.clamp(1, rest.len());
                    let (done, left) = rest.split_at(count);
                    for packet in done {
                        self.counters.sent(packet.len());
                    }
                    sent += count;
                    rest = left;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    debug_assert!(!first.is_empty(), "an empty frame was sent");
                    self.counters.not_sent(&error);
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
        sent
    }

    fn counters(&mut self) -> Counters {
        // The kernel resets its counter at each reading.
        let lost = sys::packet_drops(self.receiver.as_fd()).unwrap_or(0);
        self.counters.rx_full += u64::from(lost);
        self.counters
    }
}

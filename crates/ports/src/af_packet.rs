//! An existing network device through packet sockets, beside the kernel's own stack.
//!
//! The kernel keeps everything it would get without us; the port gets copies of what its filter selects. Two sockets: one that receives
//! with the kernel's offload header, so that unfinished checksums and super-frames of a veth peer (or of GRO) are recognized, and one that
//! sends. What that one does with super-frames is [`Segmentation`]: leave them to the kernel, or send only finished frames, past the
//! queueing discipline (`PACKET_QDISC_BYPASS`): our bursts are paced by the machines' own transports, and a queue here would only add
//! latency and a lock.

use crate::segment::{self, Segment};
use crate::sys::{self, Message, VNET_HEADER_LEN};
use crate::tunnel::{self, Cutter};
use crate::{BATCH_MAX, Counters, ETHERNET_LEN, Frame, Gone, OpenError, Port};
use net::Mac;
use socket2::{Domain, SockFilter, Socket, Type};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Bytes of frames that may wait in the kernel for us; beyond, frames are lost and counted as `rx_full`.
const RECEIVE_BUFFER_BYTES: i32 = 8 << 20;
/// Bytes of frames that may be on their way out.
const SEND_BUFFER_BYTES: i32 = 4 << 20;

/// The header of a frame of which nothing is left to do.
const PLAIN: [u8; VNET_HEADER_LEN] = [0; VNET_HEADER_LEN];

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

/// Who cuts TCP super-frames into frames of the device's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// We do, and every checksum is finished.
    Here,
    /// The kernel, or the NIC for it, or nobody if the frame never leaves the machine; tunnels included. Where it cannot, we do. The kernel on
    /// the other end of a veth gets unfinished checksums then, as from any kernel: XDP programs and DPDK there cannot tell.
    Kernel,
}

/// An open device, or one of several receivers that share its flows.
#[derive(Debug)]
pub struct AfPacket {
    name: String,
    mac: Mac,
    mtu: usize,
    index: i32,
    receiver: Socket,
    sender: Socket,
    /// The kernel cuts super-frames.
    cutter: Option<Arc<Cutter>>,
    messages: [Message; BATCH_MAX],
    /// Working space for cutting super-frames.
    segments: Vec<Segment>,
    counters: Counters,
}

impl AfPacket {
    /// Attaches to the device `name` of the caller's network namespace, which must exist; it may be down. Super-frames are cut here.
    ///
    /// # Errors
    /// No such device (`ENODEV`) or no CAP_NET_RAW (`EPERM`).
    pub fn open(name: &str, select: Select) -> Result<AfPacket, OpenError> {
        AfPacket::attach(name, select, None)
    }

    /// Attaches `queues` times; the kernel spreads the flows over the receivers, both directions of a flow to the same one.
    ///
    /// # Errors
    /// As [`AfPacket::open`].
    pub fn open_queues(
        name: &str,
        select: Select,
        queues: usize,
        segmentation: Segmentation,
    ) -> Result<Vec<AfPacket>, OpenError> {
        let cutter = match segmentation {
            Segmentation::Here => None,
            // A kernel that cannot: we do it.
            Segmentation::Kernel => {
                let index = sys::control_socket()
                    .and_then(|control| sys::index(control.as_fd(), name))
                    .map_err(OpenError::new(name, "find device"))?;
                Cutter::attach(index as u32).ok().map(Arc::new)
            }
        };
        let mut group = None;
        (0..queues.max(1))
            .map(|_| {
                let port = AfPacket::attach(name, select, cutter.clone())?;
                if queues > 1 {
                    let joined = sys::join_fanout(port.receiver.as_fd(), group)
                        .map_err(OpenError::new(name, "share flows among packet sockets"))?;
                    group = Some(joined);
                }
                Ok(port)
            })
            .collect()
    }

    fn attach(
        name: &str,
        select: Select,
        cutter: Option<Arc<Cutter>>,
    ) -> Result<AfPacket, OpenError> {
        let control = sys::control_socket().map_err(OpenError::new(name, "open control socket"))?;
        let index =
            sys::index(control.as_fd(), name).map_err(OpenError::new(name, "find device"))?;
        let mac = sys::mac(control.as_fd(), name)
            .map_err(OpenError::new(name, "read hardware address"))?;
        let mtu = sys::mtu(control.as_fd(), name).map_err(OpenError::new(name, "read MTU"))?;
        let receiver = open_receiver(index, select)
            .map_err(OpenError::new(name, "open receiving packet socket"))?;
        let sender = open_sender(index, cutter.is_some())
            .map_err(OpenError::new(name, "open sending packet socket"))?;
        Ok(AfPacket {
            name: name.to_owned(),
            mac,
            mtu,
            index,
            receiver,
            sender,
            cutter,
            messages: [Message::default(); BATCH_MAX],
            segments: vec![Segment::EMPTY; BATCH_MAX],
            counters: Counters::default(),
        })
    }

    /// Who cuts super-frames that this port sends.
    #[must_use]
    pub fn segmentation(&self) -> Segmentation {
        match self.cutter {
            Some(_) => Segmentation::Kernel,
            None => Segmentation::Here,
        }
    }

    fn exists(&self) -> bool {
        sys::control_socket()
            .and_then(|control| sys::index(control.as_fd(), &self.name))
            .is_ok_and(|index| index == self.index)
    }

    /// Declares one received message to be a frame; false if it cannot be used.
    fn settle(&mut self, slot: usize, packet: &mut Frame) -> bool {
        let Some(Message { header, frame_len }) = self.messages.get(slot).copied() else {
            return false;
        };
        packet.set_received(frame_len);
        let usable = packet.len() == frame_len && segment::accept(&header, packet);
        if usable {
            self.counters.received(frame_len);
            self.counters.rx_super +=
                u64::from(packet.pending.is_some_and(segment::Pending::is_super));
        } else {
            self.counters.rx_unusable += 1;
        }
        usable
    }

    /// The kernel's header of a frame that can leave as it is, which finishes it as far as the kernel does not; `None` if it has to be cut
    /// (or refused) here.
    fn describe(&self, packet: &mut Frame) -> Option<[u8; VNET_HEADER_LEN]> {
        if !packet.pending.is_some_and(segment::Pending::is_super) {
            return segment::finish(packet).then_some(PLAIN);
        }
        let fits = segment::wire_len(packet) <= self.mtu + ETHERNET_LEN;
        (self.cutter.is_some() && fits)
            .then(|| segment::describe_tunnelled(packet))
            .flatten()
    }

    /// What the kernel wants in front of each frame.
    fn front<'a>(&self, header: &'a [u8; VNET_HEADER_LEN]) -> &'a [u8] {
        match self.cutter {
            Some(_) => header,
            None => &[],
        }
    }

    /// Sends frames, each in two parts behind the kernel's header.
    fn send(&mut self, frames: &[[&[u8]; 3]]) -> usize {
        let mut sent = 0;
        let mut rest = frames;
        while !rest.is_empty() {
            match sys::send(self.sender.as_fd(), rest) {
                Ok(count) => {
                    let (done, left) = rest.split_at(count.clamp(1, rest.len()));
                    for [_, head, tail] in done {
                        self.counters.sent(head.len() + tail.len());
                    }
                    sent += done.len();
                    rest = left;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.counters.not_sent(&error);
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
        sent
    }

    /// Cuts a super-frame and sends its parts. True if all left.
    fn send_super(&mut self, packet: &Frame) -> bool {
        let Some(cut) = segment::cut(packet) else {
            self.counters.tx_errors += 1;
            return false;
        };
        let mut segments = std::mem::take(&mut self.segments);
        let mut sent = 0;
        let mut number = 0;
        while number < cut.count() {
            let mut batched = 0;
            for segment in segments.iter_mut().take(cut.count() - number) {
                if !cut.write(packet.frame(), number + batched, segment) {
                    self.counters.tx_errors += 1;
                    break;
                }
                batched += 1;
            }
            let mut batch: [[&[u8]; 3]; BATCH_MAX] = [[&[]; 3]; BATCH_MAX];
            for (slot, segment) in batch.iter_mut().zip(segments.iter().take(batched)) {
                let [head, tail] = segment.parts(packet.frame());
                *slot = [self.front(&PLAIN), head, tail];
            }
            sent += self.send(batch.get(..batched).unwrap_or_default());
            number += batched.max(1);
        }
        self.segments = segments;
        sent == cut.count()
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

fn open_sender(index: i32, describes: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    if describes {
        // Through the device's exit, where the program is; all frames take this way, so that none overtakes another.
        sys::packet_option(socket.as_fd(), libc::PACKET_VNET_HDR)?;
        socket.set_mark(tunnel::MARK)?;
    } else {
        sys::packet_option(socket.as_fd(), libc::PACKET_QDISC_BYPASS)?;
    }
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

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.receiver.as_fd())
    }

    fn rx_burst(&mut self, packets: &mut [Frame]) -> Result<usize, Gone> {
        let received = match sys::receive(self.receiver.as_fd(), &mut self.messages, packets) {
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
            let usable = packets
                .get_mut(slot)
                .is_some_and(|packet| self.settle(slot, packet));
            if usable {
                packets.swap(filled, slot);
                filled += 1;
            }
        }
        Ok(filled)
    }

    fn tx_burst(&mut self, packets: &mut [&mut Frame]) -> usize {
        let mut sent = 0;
        let mut rest = packets;
        while !rest.is_empty() {
            // The longest run of frames that need no cutting goes out at once.
            let mut headers = [PLAIN; BATCH_MAX];
            let mut run = 0;
            for (packet, slot) in rest.iter_mut().zip(&mut headers) {
                let Some(header) = self.describe(packet) else {
                    break;
                };
                *slot = header;
                run += 1;
            }
            let (plain, left) = std::mem::take(&mut rest).split_at_mut(run);
            let mut batch: [[&[u8]; 3]; BATCH_MAX] = [[&[]; 3]; BATCH_MAX];
            for ((slot, packet), header) in batch.iter_mut().zip(plain.iter()).zip(&headers) {
                *slot = [self.front(header), packet.frame(), &[]];
            }
            sent += self.send(batch.get(..run).unwrap_or_default());
            rest = left;
            if run < BATCH_MAX
                && let Some((packet, behind)) = std::mem::take(&mut rest).split_first_mut()
            {
                if segment::wire_len(packet) > self.mtu + ETHERNET_LEN {
                    self.counters.tx_oversize += 1;
                } else {
                    sent += usize::from(self.send_super(packet));
                }
                rest = behind;
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

//! Every system call that has no safe wrapper, one function each. Nothing here keeps state or decides.
#![allow(unsafe_code, reason = "the one place of this project for system calls")]

use crate::BATCH_MAX;
use crate::frame::Frame;
use net::Mac;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of the header that the kernel puts before each frame to tell about unfinished checksums and super-frames
/// (`struct virtio_net_hdr`, VIRTIO 1.2 §5.1.6; host byte order here).
pub(crate) const VNET_HEADER_LEN: usize = 10;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_TUN_EXCL: libc::c_short = 0x8000_u16 as libc::c_short;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const IFF_MULTI_QUEUE: libc::c_short = 0x0100;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// Checksums may be left unfinished, and TCP over IPv4 and IPv6 may come in super-frames.
const TUN_F_CSUM_TSO: libc::c_ulong = 0x01 | 0x02 | 0x04;

fn check(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An `ifreq` for a device name.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero bytes are a valid `ifreq`: integers, byte arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    Ok(request)
}

fn ioctl(fd: BorrowedFd<'_>, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: `request` is a live, exclusively borrowed `ifreq`, which is what each `code` used in this file reads or writes; the one that
    // follows a pointer in it (SIOCETHTOOL) is given a live array of the size that its command demands.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code, std::ptr::from_mut(request)) }).map(drop)
}

/// A socket that is only good for device ioctls.
pub(crate) fn control_socket() -> io::Result<socket2::Socket> {
    socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)
}

/// Makes `fd` (an open `/dev/net/tun`) a queue of the TAP device `name`: of a new device, or a further one of a device with several.
///
/// Each frame has a header of [`VNET_HEADER_LEN`] bytes in front, in both directions.
pub(crate) fn tap_create(
    fd: BorrowedFd<'_>,
    name: &str,
    first: bool,
    several: bool,
) -> io::Result<()> {
    let mut request = request(name)?;
    let mut flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    flags |= if first { IFF_TUN_EXCL } else { 0 };
    flags |= if several { IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = flags;
    ioctl(fd, TUNSETIFF, &mut request)?;
    // SAFETY: this ioctl takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, TUN_F_CSUM_TSO) }).map(drop)
}

/// Makes `fd` (an open `/dev/net/tun`) a queue of the TAP device `name`, which is created if there is none. Frames have no header in front.
pub(crate) fn tap_attach(fd: BorrowedFd<'_>, name: &str, several: bool) -> io::Result<()> {
    let mut request = request(name)?;
    let several = if several { IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | several;
    ioctl(fd, TUNSETIFF, &mut request)
}

/// Whether the device behind `fd`, a queue of a TAP device, exists.
pub(crate) fn tap_is_attached(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: all-zero bytes are a valid `ifreq`: integers, byte arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    ioctl(fd, TUNGETIFF, &mut request).is_ok()
}

pub(crate) fn set_up(control: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    ioctl(control, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel filled in `ifru_flags`, which is the member this ioctl writes.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(control, libc::SIOCSIFFLAGS, &mut request)
}

pub(crate) fn set_mac(control: BorrowedFd<'_>, name: &str, mac: Mac) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: all-zero bytes are a valid `sockaddr`.
    let mut address: libc::sockaddr = unsafe { mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (slot, byte) in address.sa_data.iter_mut().zip(mac.0) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    ioctl(control, libc::SIOCSIFHWADDR, &mut request)
}

pub(crate) fn mac(control: BorrowedFd<'_>, name: &str) -> io::Result<Mac> {
    let mut request = request(name)?;
    ioctl(control, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: the kernel filled in `ifru_hwaddr`, which is the member this ioctl writes.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = Mac::ZERO;
    for (slot, byte) in mac.0.iter_mut().zip(address.sa_data) {
        *slot = byte as u8;
    }
    Ok(mac)
}

pub(crate) fn set_mtu(control: BorrowedFd<'_>, name: &str, mtu: usize) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu =
        libc::c_int::try_from(mtu).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    ioctl(control, libc::SIOCSIFMTU, &mut request)
}

pub(crate) fn mtu(control: BorrowedFd<'_>, name: &str) -> io::Result<usize> {
    let mut request = request(name)?;
    ioctl(control, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel filled in `ifru_mtu`, which is the member this ioctl writes.
    check(unsafe { request.ifr_ifru.ifru_mtu })
}

pub(crate) fn set_tx_queue_len(control: BorrowedFd<'_>, name: &str, length: u32) -> io::Result<()> {
    let mut request = request(name)?;
    // The kernel reads `ifr_qlen`, an int at the place of `ifru_metric`.
    request.ifr_ifru.ifru_metric =
        libc::c_int::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    ioctl(control, libc::SIOCSIFTXQLEN, &mut request)
}

pub(crate) fn index(control: BorrowedFd<'_>, name: &str) -> io::Result<libc::c_int> {
    let mut request = request(name)?;
    ioctl(control, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: the kernel filled in `ifru_ifindex`, which is the member this ioctl writes.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// Receive queues of a device that are in use; one if its driver cannot tell.
pub(crate) fn receive_queues(control: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    const ETHTOOL_GET_CHANNELS: u32 = 0x3c;
    // `struct ethtool_channels`: command, four maximums, then receive, transmit, other and combined channels.
    let mut channels = [ETHTOOL_GET_CHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = channels.as_mut_ptr().cast();
    match ioctl(control, libc::SIOCETHTOOL, &mut request) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(1),
        Err(error) => return Err(error),
    }
    // Written by the kernel through the pointer above.
    let [_, _, _, _, _, receive, _, _, combined] = channels;
    Ok((receive + combined).max(1))
}

fn set_option<T>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe the live value `value`; every option used in this file takes plain integers.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    })
    .map(drop)
}

/// Switches a boolean option of level SOL_PACKET on.
pub(crate) fn packet_option(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_PACKET, option, &1_i32)
}

/// A receive buffer beyond the system's limit, which needs CAP_NET_ADMIN.
pub(crate) fn force_receive_buffer(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
}

/// A send buffer beyond the system's limit, which needs CAP_NET_ADMIN.
pub(crate) fn force_send_buffer(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
}

/// Receives frames for other hardware addresses too, as long as `fd` is open.
pub(crate) fn promiscuous(fd: BorrowedFd<'_>, index: libc::c_int) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(
        fd,
        libc::SOL_PACKET,
        libc::PACKET_ADD_MEMBERSHIP,
        &membership,
    )
}

/// Binds a packet socket to one device and one ethertype (0: receive nothing).
pub(crate) fn bind_packet(
    fd: BorrowedFd<'_>,
    index: libc::c_int,
    ethertype: u16,
) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index;
    let length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: pointer and length describe a live `sockaddr_ll`.
    check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) })
        .map(drop)
}

/// Packets that the kernel dropped because the socket's buffer was full, since the last call.
pub(crate) fn packet_drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = mem::size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: pointer and length describe the live, exclusively borrowed `statistics`.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut statistics).cast(),
            std::ptr::from_mut(&mut length),
        )
    })?;
    Ok(statistics.tp_drops)
}

const EMPTY_IOVEC: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

fn empty_message() -> libc::mmsghdr {
    // SAFETY: all-zero bytes are a valid `mmsghdr`: null pointers and zero lengths.
    unsafe { mem::zeroed() }
}

/// What one received message brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Message {
    /// The kernel's header.
    pub(crate) header: [u8; VNET_HEADER_LEN],
    /// Bytes of the frame, header excluded; bytes beyond the packet buffer are in the overflow area.
    pub(crate) frame_len: usize,
}

/// Receives frames, each scattered over a [`Message`] header and a frame's receive area. Never blocks.
///
/// As many as the shortest of the slices and [`BATCH_MAX`] allow; returns how many.
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    messages: &mut [Message],
    frames: &mut [Frame],
) -> io::Result<usize> {
    let mut vectors = [[EMPTY_IOVEC; 2]; BATCH_MAX];
    let mut headers = [empty_message(); BATCH_MAX];
    let mut count = 0;
    for ((message, frame), (vector, header)) in messages
        .iter_mut()
        .zip(frames)
        .zip(vectors.iter_mut().zip(&mut headers))
    {
        let [first, second] = vector;
        *first = iovec(&mut message.header);
        *second = iovec(frame.receive_area());
        header.msg_hdr.msg_iov = vector.as_mut_ptr();
        header.msg_hdr.msg_iovlen = 2;
        count += 1;
    }
    // SAFETY: the first `count` headers point to two vectors each, which point to disjoint live buffers that are exclusively
    // borrowed until this function returns.
    let received = check(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            std::ptr::null_mut(),
        )
    })?;
    for (message, header) in messages.iter_mut().zip(&headers).take(received) {
        message.frame_len = (header.msg_len as usize).saturating_sub(VNET_HEADER_LEN);
    }
    Ok(received)
}

fn iovec(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// Sends frames of up to three parts in order until one fails. Never blocks. Returns how many left; an error concerns the first one.
pub(crate) fn send(fd: BorrowedFd<'_>, frames: &[[&[u8]; 3]]) -> io::Result<usize> {
    let mut vectors = [[EMPTY_IOVEC; 3]; BATCH_MAX];
    let mut headers = [empty_message(); BATCH_MAX];
    let mut count = 0;
    for (parts, (vector, header)) in frames.iter().zip(vectors.iter_mut().zip(&mut headers)) {
        for (part, slot) in parts.iter().zip(vector.iter_mut()) {
            // The kernel only reads through this pointer: `iovec` serves both directions and has no const form.
            slot.iov_base = part.as_ptr().cast_mut().cast();
            slot.iov_len = part.len();
        }
        header.msg_hdr.msg_iov = vector.as_mut_ptr();
        header.msg_hdr.msg_iovlen = 3;
        count += 1;
    }
    // SAFETY: the first `count` headers point to three vectors each, which point to live borrowed bytes that the kernel only reads.
    check(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
        )
    })
}

/// Lets the kernel spread frames over several packet sockets by flow; all join `group`, whose number the first one (0) draws.
pub(crate) fn join_fanout(fd: BorrowedFd<'_>, group: Option<u16>) -> io::Result<u16> {
    const HASH: i32 = 0;
    const UNIQUE: i32 = 0x2000;
    let value: i32 = match group {
        Some(group) => i32::from(group) | HASH << 16,
        None => (HASH | UNIQUE) << 16,
    };
    set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &value)?;
    let mut value = 0_i32;
    let mut length = mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: pointer and length describe the live, exclusively borrowed `value`.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_FANOUT,
            std::ptr::from_mut(&mut value).cast(),
            std::ptr::from_mut(&mut length),
        )
    })?;
    Ok(value as u16)
}

//! BPF programs: loaded, which makes the kernel check them, and attached to devices. No program is written here.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;

/// Where a program runs: the kernel's numbers of the program type and of the place of attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On packets that a device has received, before the kernel makes anything of them.
    Xdp,
    /// On packets that are about to leave by a device, before they are cut and queued (Linux 6.6).
    Egress,
}

impl Place {
    fn program_type(self) -> u32 {
        match self {
            Place::Xdp => 6,
            Place::Egress => 3,
        }
    }

    fn attach_type(self) -> u32 {
        match self {
            Place::Xdp => 37,
            Place::Egress => 47,
        }
    }
}

// Operations (RFC 9669 §4, §5) of the programs of this crate.
pub(crate) const LOAD_32: u8 = 0x61;
pub(crate) const LOAD_16: u8 = 0x69;
pub(crate) const LOAD_8: u8 = 0x71;
pub(crate) const STORE_32: u8 = 0x63;
pub(crate) const MOVE: u8 = 0xb7;
pub(crate) const MOVE_REGISTER: u8 = 0xbf;
pub(crate) const ADD: u8 = 0x07;
pub(crate) const AND: u8 = 0x57;
pub(crate) const IF_EQUAL: u8 = 0x15;
pub(crate) const IF_NOT_EQUAL: u8 = 0x55;
pub(crate) const IF_NOT_EQUAL_32: u8 = 0x56;
pub(crate) const IF_GREATER_REGISTER: u8 = 0x2d;
pub(crate) const LOAD_MAP: u8 = 0x18;
pub(crate) const CALL: u8 = 0x85;
pub(crate) const EXIT: u8 = 0x95;

/// One instruction of BPF: operation, registers, offset, constant.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Instruction {
    pub operation: u8,
    pub registers: u8,
    pub offset: i16,
    pub constant: i32,
}

/// An instruction; register 10 is the end of the program's stack.
pub(crate) fn code(operation: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
    Instruction {
        operation,
        registers: to | from << 4,
        offset,
        constant,
    }
}

fn bpf(command: libc::c_long, attributes: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are laid out as `union bpf_attr` documents for each command used in this file; addresses in them point to memory
    // that the callers keep alive during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            mem::size_of_val(attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all commands used here but updates (see `insert`) return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

const fn pair(low: u32, high: u32) -> u64 {
    (low as u64) | ((high as u64) << 32)
}

/// A map from receive queue to AF_XDP socket.
pub(crate) fn socket_map(entries: u32) -> io::Result<OwnedFd> {
    bpf(
        BPF_MAP_CREATE,
        &[pair(BPF_MAP_TYPE_XSKMAP, 4), pair(4, entries), 0, 0],
    )
}

/// Enters a socket for a queue.
pub(crate) fn insert(map: BorrowedFd<'_>, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = socket.as_raw_fd() as u32;
    let attributes = [
        map.as_raw_fd() as u64,
        ptr::from_ref(&queue) as u64,
        ptr::from_ref(&value) as u64,
        0,
    ];
    // SAFETY: a map with keys and values of four bytes, and the addresses of two live such values.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            attributes.as_ptr(),
            mem::size_of_val(&attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Loads a program; the kernel checks that it is safe.
pub(crate) fn load(place: Place, program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    bpf(
        BPF_PROG_LOAD,
        &[
            pair(place.program_type(), program.len() as u32),
            program.as_ptr() as u64,
            license.as_ptr() as u64,
            0,
            0,
            0,
        ],
    )
}

/// Attaches a program to a device as long as the link lives.
pub(crate) fn attach(
    place: Place,
    program: BorrowedFd<'_>,
    index: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    bpf(
        BPF_LINK_CREATE,
        &[
            pair(program.as_raw_fd() as u32, index),
            pair(place.attach_type(), flags),
            0,
            0,
        ],
    )
}

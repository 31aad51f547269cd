//! Lets the kernel cut TCP super-frames inside our tunnel, or its NIC, or nobody where the other end is a kernel on the same machine.
//!
//! A packet socket can describe a TCP super-frame, but not that it is inside a tunnel: the kernel refuses it. A program at the device's
//! exit makes up for that: it takes the outer header off and puts it on again in the one way by which the kernel notes a tunnel
//! (`SKB_GSO_IPXIP6`), so the bytes stay what they were and everything behind knows how to cut them. It touches only frames of the sockets
//! that carry [`MARK`], and takes the mark away, so that a second instance on the same device finds nothing left to do.

use crate::bpf::{
    self, ADD, CALL, EXIT, IF_EQUAL, IF_NOT_EQUAL, IF_NOT_EQUAL_32, Instruction, LOAD_8, LOAD_32,
    MOVE, MOVE_REGISTER, Place, STORE_32, code,
};
use net::protocol;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Mark of the sockets whose frames the program looks at.
pub(crate) const MARK: u32 = 0x6f6b_6d31;

/// The program at work on a device; it is detached when the last holder is gone.
#[derive(Debug)]
pub(crate) struct Cutter {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl Cutter {
    /// Puts the program at the exit of a device.
    ///
    /// # Errors
    /// No CAP_BPF and CAP_NET_ADMIN (`EPERM`), or a kernel before 6.6 (`EINVAL`).
    pub(crate) fn attach(index: u32) -> io::Result<Cutter> {
        let program = bpf::load(Place::Egress, &program())?;
        let link = bpf::attach(Place::Egress, program.as_fd(), index, 0)?;
        Ok(Cutter {
            _link: link,
            _program: program,
        })
    }
}

fn program() -> [Instruction; 42] {
    // Offsets in `struct __sk_buff`.
    const SKB_MARK: i16 = 8;
    const SKB_GSO_SIZE: i16 = 176;
    // Helpers and their flags.
    const LOAD_BYTES: i32 = 26;
    const STORE_BYTES: i32 = 9;
    const ADJUST_ROOM: i32 = 50;
    const BEHIND_ETHERNET: i32 = 1;
    const KEEP_SEGMENT_LEN: i32 = 1;
    const PUT_IPV6: i32 = 1 << 2;
    const TAKE_TO_IPV4: i32 = 1 << 7;
    const TAKE_TO_IPV6: i32 = 1 << 8;
    // Verdicts: leave it to the next program, drop.
    const NEXT: i32 = -1;
    const DROP: i32 = 2;
    const ETHERNET: i32 = 14;
    const OUTER: i32 = 40;
    // Register 6 keeps the context; the outer header is kept at the end of the stack. Jumps lead to "next" (38) and "drop" (40).
    [
        code(MOVE_REGISTER, 6, 1, 0, 0),
        code(LOAD_32, 2, 6, SKB_MARK, 0),
        code(IF_NOT_EQUAL_32, 2, 0, 35, MARK as i32),
        code(MOVE, 2, 0, 0, 0),
        code(STORE_32, 6, 2, SKB_MARK, 0),
        code(LOAD_32, 2, 6, SKB_GSO_SIZE, 0),
        code(IF_EQUAL, 2, 0, 31, 0),
        code(MOVE_REGISTER, 1, 6, 0, 0),
        code(MOVE, 2, 0, 0, ETHERNET),
        code(MOVE_REGISTER, 3, 10, 0, 0),
        code(ADD, 3, 0, 0, -OUTER),
        code(MOVE, 4, 0, 0, OUTER),
        code(CALL, 0, 0, 0, LOAD_BYTES),
        code(IF_NOT_EQUAL, 0, 0, 26, 0),
        // What the tunnel holds.
        code(LOAD_8, 7, 10, 6 - OUTER as i16, 0),
        code(MOVE, 4, 0, 0, KEEP_SEGMENT_LEN | TAKE_TO_IPV4),
        code(IF_EQUAL, 7, 0, 2, protocol::IPV4 as i32),
        code(IF_NOT_EQUAL, 7, 0, 20, protocol::IPV6 as i32),
        code(MOVE, 4, 0, 0, KEEP_SEGMENT_LEN | TAKE_TO_IPV6),
        code(MOVE_REGISTER, 1, 6, 0, 0),
        code(MOVE, 2, 0, 0, -OUTER),
        code(MOVE, 3, 0, 0, BEHIND_ETHERNET),
        code(CALL, 0, 0, 0, ADJUST_ROOM),
        code(IF_NOT_EQUAL, 0, 0, 16, 0),
        code(MOVE_REGISTER, 1, 6, 0, 0),
        code(MOVE, 2, 0, 0, OUTER),
        code(MOVE, 3, 0, 0, BEHIND_ETHERNET),
        code(MOVE, 4, 0, 0, KEEP_SEGMENT_LEN | PUT_IPV6),
        code(CALL, 0, 0, 0, ADJUST_ROOM),
        code(IF_NOT_EQUAL, 0, 0, 10, 0),
        code(MOVE_REGISTER, 1, 6, 0, 0),
        code(MOVE, 2, 0, 0, ETHERNET),
        code(MOVE_REGISTER, 3, 10, 0, 0),
        code(ADD, 3, 0, 0, -OUTER),
        code(MOVE, 4, 0, 0, OUTER),
        code(MOVE, 5, 0, 0, 0),
        code(CALL, 0, 0, 0, STORE_BYTES),
        code(IF_NOT_EQUAL, 0, 0, 2, 0),
        code(MOVE, 0, 0, 0, NEXT),
        code(EXIT, 0, 0, 0, 0),
        code(MOVE, 0, 0, 0, DROP),
        code(EXIT, 0, 0, 0, 0),
    ]
}

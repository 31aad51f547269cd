//! TCP (RFC 9293) as a checked view of the header; the overlay never looks at the stream.

use crate::Malformed;

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// The acknowledgement field is significant.
pub const ACK: u8 = 0x10;

/// A segment whose data offset agrees with the bytes at hand.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    header: &'a [u8; HEADER_LEN],
}

impl<'a> Tcp<'a> {
    /// Checks the data offset.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Tcp<'a>, Malformed> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(Malformed::Length);
        }
        if header_len > bytes.len() {
            return Err(Malformed::Truncated);
        }
        Ok(Tcp { header })
    }

    /// Source port.
    #[must_use]
    pub const fn source(&self) -> u16 {
        u16::from_be_bytes([self.header[0], self.header[1]])
    }

    /// Destination port.
    #[must_use]
    pub const fn destination(&self) -> u16 {
        u16::from_be_bytes([self.header[2], self.header[3]])
    }

    /// The eight control bits (CWR, ECE, URG, ACK, PSH, RST, SYN, FIN).
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.header[13]
    }
}

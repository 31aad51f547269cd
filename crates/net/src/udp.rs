//! UDP (RFC 768) as a checked view.

use crate::Malformed;

/// Length of the header.
pub const HEADER_LEN: usize = 8;

/// A datagram whose length field agrees with the bytes at hand.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Checks the length field and cuts the payload to it.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Udp<'a>, Malformed> {
        let (header, rest) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        let header: &[u8; HEADER_LEN] = header;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let payload_len = length.checked_sub(HEADER_LEN).ok_or(Malformed::Length)?;
        let payload = rest.get(..payload_len).ok_or(Malformed::Truncated)?;
        Ok(Udp { header, payload })
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

    /// Checksum field; zero means "none" over IPv4 (RFC 768) and is illegal over IPv6 (RFC 8200 §8.1).
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.header[6], self.header[7]])
    }

    /// The datagram's data.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

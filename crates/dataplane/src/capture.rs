//! Packet capture: frames that come in on chosen ports are mirrored, whole, inside UDP over IPv6 to a receiver on the underlay.

use crate::objects::CaptureSpec;
use crate::packet::Packet;
use crate::tables::{Tables, Uplink};
use crate::verdict::PortId;
use core::net::Ipv6Addr;
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::{ipv6, protocol};

const UDP_LEN: usize = 8;
/// Bytes in front of a mirrored frame.
pub(crate) const CAPTURE_HEADER_LEN: usize = ETHERNET_LEN + ipv6::HEADER_LEN + UDP_LEN;
/// Outer hop limit.
const HOP_LIMIT: u8 = 64;

/// A capture in force.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    pub spec: CaptureSpec,
    /// What is captured, ascending.
    pub ports: Vec<PortId>,
}

impl Capture {
    /// Whether frames of a port are mirrored.
    pub(crate) fn covers(&self, port: PortId) -> bool {
        self.ports.binary_search(&port).is_ok()
    }

    /// The header of a mirrored frame of `length` bytes; `None` if it is too long for the outer length field. There is no UDP
    /// checksum, as RFC 6935 allows for tunnels.
    pub(crate) fn header(
        &self,
        host: Ipv6Addr,
        uplink: &Uplink,
        length: usize,
    ) -> Option<[u8; CAPTURE_HEADER_LEN]> {
        let payload_len = u16::try_from(length + UDP_LEN).ok()?;
        let outer = ipv6::Header {
            payload_len,
            next_header: protocol::UDP,
            hop_limit: HOP_LIMIT,
            source: host,
            destination: self.spec.sink,
        };
        let next_hop = uplink.next_hop.unwrap_or_default();
        let mut bytes = [0; CAPTURE_HEADER_LEN];
        let (front, rest) = bytes.split_at_mut(ETHERNET_LEN);
        let (middle, udp) = rest.split_at_mut(ipv6::HEADER_LEN);
        front.copy_from_slice(&ethernet::header(next_hop, uplink.mac, ethernet::TYPE_IPV6));
        middle.copy_from_slice(&outer.emit());
        let words = [
            self.spec.source_port,
            self.spec.destination_port,
            payload_len,
            0,
        ];
        for (to, word) in udp.chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        Some(bytes)
    }
}

impl Tables {
    /// Whether frames that come in on a port are mirrored: the callers' cheap test before [`Tables::mirror`].
    #[must_use]
    #[inline]
    pub fn is_capturing(&self, port: PortId) -> bool {
        let capture = self.capture.as_ref();
        capture.is_some_and(|capture| capture.covers(port))
    }

    /// Writes the mirror of a frame that came in on `port` to `packet` and returns the uplink to send it from. `None` if the port is not
    /// captured, no uplink can be used, or the mirror does not fit.
    #[must_use]
    pub fn mirror(&self, port: PortId, frame: &[u8], packet: &mut dyn Packet) -> Option<PortId> {
        let capture = self.capture.as_ref()?;
        if !capture.covers(port) {
            return None;
        }
        let usable = self.uplinks.iter().flatten();
        let uplink = usable
            .filter(|uplink| uplink.link && uplink.next_hop.is_some())
            .min_by_key(|uplink| uplink.port)?;
        let header = capture.header(self.settings.host, uplink, frame.len())?;
        packet.clear();
        if !packet.resize(CAPTURE_HEADER_LEN + frame.len()) {
            packet.clear();
            return None;
        }
        let (front, rest) = packet
            .frame_mut()
            .split_first_chunk_mut::<CAPTURE_HEADER_LEN>()?;
        *front = header;
        rest.copy_from_slice(frame);
        Some(uplink.port)
    }
}

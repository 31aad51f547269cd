//! Holds the wire format in place: bytes written by hand from the field numbers of the protocols, never by our own encoder.

mod code;
mod golden;

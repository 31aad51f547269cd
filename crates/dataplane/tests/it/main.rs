//! Behaviour of the engine at its boundary: bytes in, verdict, bytes and counters out.

mod arp_nd;
mod bed;
mod build;
mod forward;

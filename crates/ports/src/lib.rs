//! The Port trait and its drivers: memory, TAP, AF_PACKET.

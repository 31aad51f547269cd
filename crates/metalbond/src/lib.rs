//! metalbond: codec, peer machine, hub and route table; a Tokio driver around them.

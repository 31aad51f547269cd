//! apinetlet: user API to OpenKCM-net.

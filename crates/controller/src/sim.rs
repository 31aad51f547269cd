//! An API server of a few lines, in memory, for tests of plans: it carries out operations on JSON objects and drives
//! controllers until nothing is left to do. No network, clock or randomness; uids and versions are counters.
//!
//! It is deliberately coarse (an apply merges maps and replaces lists, nothing is validated or defaulted); what the real
//! server adds is tested against the real server.

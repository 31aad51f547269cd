//! The packet engine: tables, pipeline, flows, replies and counters. Pure.

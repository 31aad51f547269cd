//! Integration tests of the API server.

#[cfg(test)]
mod store;

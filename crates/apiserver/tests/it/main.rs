//! Integration tests of the API server.

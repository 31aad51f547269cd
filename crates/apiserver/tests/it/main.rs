//! Integration tests of the API server.

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod patch;
#[cfg(test)]
mod protobuf;
#[cfg(test)]
mod selector;
#[cfg(test)]
mod store;
#[cfg(test)]
mod tokens;

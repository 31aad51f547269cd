//! Integration tests of the API server.

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod http;
#[cfg(test)]
mod kube_rs;
#[cfg(test)]
mod kubectl;
#[cfg(test)]
mod patch;
#[cfg(test)]
mod protobuf;
#[cfg(test)]
mod rights;
#[cfg(test)]
mod selector;
#[cfg(test)]
mod store;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tokens;

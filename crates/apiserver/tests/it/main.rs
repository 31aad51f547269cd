//! Integration tests of the API server.

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod client;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod flags;
#[cfg(test)]
mod http;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod kube_rs;
#[cfg(test)]
mod kubectl;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod patch;
#[cfg(test)]
mod process;
#[cfg(test)]
mod protobuf;
#[cfg(test)]
mod python;
#[cfg(test)]
mod rights;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod selector;
#[cfg(test)]
mod signing;
#[cfg(test)]
mod store;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tokens;

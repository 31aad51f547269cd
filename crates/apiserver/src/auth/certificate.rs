//! The user named by a client certificate: CN is the name, every O is a group.
//!
//! The certificate has been verified by the TLS layer against the region CA (signature, validity, client usage) before it comes here.

use super::User;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The user of a verified certificate; none when it has no common name.
pub fn user(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok().map(str::to_owned));
    let groups = groups.collect();
    (!name.is_empty()).then(|| User::new(name, groups))
}

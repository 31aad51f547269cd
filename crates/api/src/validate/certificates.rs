//! Rules of `certificates.k8s.io`. What the encoded request says is the API server's to read.

use serde_json::Value;

use super::{At, Errors, IMMUTABLE, same, unique};
use crate::field::FieldError;

/// Uses of a key that a request may name, in the words of Kubernetes.
pub const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Shortest life of a certificate that may be asked for, in seconds.
pub const LIFE_SECONDS_MIN: i64 = 600;

/// Decisions: they are made by the approval subresource only, and never taken back.
pub const DECISIONS: [&str; 2] = ["Approved", "Denied"];

/// A new CertificateSigningRequest.
pub fn request(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    if spec.field("request").is_empty() {
        errors.push(FieldError::required(
            "spec.request",
            "PEM block of type CERTIFICATE REQUEST",
        ));
    }
    signer_name(&spec.field("signerName"), &mut errors);
    let usages = spec.field("usages");
    if usages.is_empty() {
        errors.push(FieldError::required(
            "spec.usages",
            "say what the key is for, such as \"client auth\"",
        ));
    }
    unique(&usages, &mut errors);
    for usage in usages.items() {
        if !USAGES.contains(&usage.text()) {
            errors.push(FieldError::not_supported(
                usage.path.clone(),
                usage.text(),
                &USAGES,
            ));
        }
    }
    let life = spec.field("expirationSeconds");
    if let Some(seconds) = life.int().filter(|seconds| *seconds < LIFE_SECONDS_MIN) {
        errors.push(FieldError::invalid(
            life.path,
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        ));
    }
    errors
}

/// `domain/path`, as in `kubernetes.io/kube-apiserver-client`.
fn signer_name(at: &At<'_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.push(FieldError::required(at.path.clone(), ""));
        return;
    }
    let domain = at.text().split_once('/').filter(|(domain, path)| {
        domain.contains('.') && super::dns_subdomain(domain).is_none() && !path.is_empty()
    });
    if domain.is_none() {
        errors.push(FieldError::invalid(
            at.path.clone(),
            at.text(),
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ));
    }
}

/// A changed CertificateSigningRequest: what was asked stays.
pub fn request_update(new: &Value, old: &Value) -> Errors {
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    match same(&new, &old) {
        true => Vec::new(),
        false => vec![FieldError::forbidden("spec", IMMUTABLE)],
    }
}

/// A changed status, by the signer or by who approves.
pub fn request_status(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let (new, old) = (At::root(new).field("status"), At::root(old).field("status"));
    let certificate = (new.field("certificate"), old.field("certificate"));
    if !certificate.1.is_empty() && !same(&certificate.0, &certificate.1) {
        errors.push(FieldError::forbidden(certificate.0.path, IMMUTABLE));
    }
    let conditions = new.field("conditions");
    let has = |list: &At<'_>, word: &str| list.items().any(|c| c.field("type").text() == word);
    let before = old.field("conditions");
    for word in DECISIONS.iter().chain(&["Failed"]) {
        if has(&before, word) && !has(&conditions, word) {
            errors.push(FieldError::forbidden(
                conditions.path.clone(),
                format!("the condition {word} may not be removed"),
            ));
        }
    }
    if DECISIONS.iter().all(|word| has(&conditions, word)) {
        errors.push(FieldError::invalid(
            conditions.path.clone(),
            "Approved, Denied",
            "Approved and Denied conditions are mutually exclusive",
        ));
    }
    for condition in conditions.items() {
        let (word, status) = (condition.field("type"), condition.field("status"));
        let decided = DECISIONS.contains(&word.text()) || word.text() == "Failed";
        if decided && status.text() != "True" {
            errors.push(FieldError::not_supported(
                status.path.clone(),
                status.text(),
                &["True"],
            ));
        }
    }
    errors
}

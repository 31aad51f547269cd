//! What a PEM certificate request asks for, as far as anybody decides by it. Pure.

use thiserror::Error;
use x509_parser::prelude::{
    AttributeTypeAndValue, FromDer as _, ParsedExtension, X509CertificationRequest,
};

/// The wishes of a certificate request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    /// User names.
    pub common_names: Vec<String>,
    /// Groups.
    pub organizations: Vec<String>,
    /// Whether it asks for names besides those of the subject.
    pub has_alternative_names: bool,
}

/// Why a text is no certificate request. Nothing but another text helps.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateRequestError {
    /// No PEM.
    #[error("not a PEM block: {0}")]
    Pem(String),
    /// PEM of something else.
    #[error("PEM block of type {0:?}, must be \"CERTIFICATE REQUEST\"")]
    Label(String),
    /// The block cannot be parsed.
    #[error("not a certificate request: {0}")]
    Der(String),
    /// The block holds more than one request.
    #[error("bytes after the certificate request")]
    Rest,
    /// A name in an odd encoding: others might read it differently.
    #[error("a name in the subject is not readable: {0}")]
    Name(String),
}

impl CertificateRequest {
    /// Parses the PEM text of exactly one request. The signature is not checked.
    pub fn parse(pem: &[u8]) -> Result<CertificateRequest, CertificateRequestError> {
        use CertificateRequestError as Error;
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pem).map_err(|error| Error::Pem(error.to_string()))?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err(Error::Label(block.label));
        }
        let (rest, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| Error::Der(error.to_string()))?;
        if !rest.is_empty() {
            return Err(Error::Rest);
        }
        let mut wishes = request.requested_extensions().into_iter().flatten();
        let subject = &request.certification_request_info.subject;
        Ok(CertificateRequest {
            common_names: readable(subject.iter_common_name())?,
            organizations: readable(subject.iter_organization())?,
            has_alternative_names: wishes
                .any(|wish| matches!(wish, ParsedExtension::SubjectAlternativeName(_))),
        })
    }
}

fn readable<'a>(
    names: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<Vec<String>, CertificateRequestError> {
    let texts = names.map(|name| name.as_str().map(str::to_owned));
    let texts: Result<_, _> = texts.collect();
    texts.map_err(|error| CertificateRequestError::Name(error.to_string()))
}

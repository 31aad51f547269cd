//! The region CA, certificates of the parts, and kubeconfig files.
//!
//! Everything lives in one folder (`<state>/pki`): `ca.crt`, `ca.key`, and per identity `<file>.crt`, `<file>.key`,
//! `<file>.kubeconfig`. Keys are P-256 and files with keys have mode 0600.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Life of the region CA.
pub const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Default life of the certificates of the parts. A region without rotation must survive a year.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Certificates are valid from this much before now, for clocks that are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Why key material could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Permanent: the parameters make no certificate.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Permanent until the operator repairs the file system.
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Permanent: the CA folder is damaged.
    #[error("{path}: {what}")]
    Damaged { path: PathBuf, what: &'static str },
    /// Permanent: a name that must not become a file name.
    #[error("not an identity: {0:?}")]
    Identity(String),
}

/// A user name (CN) and groups (O) of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

/// A certificate and its key, PEM encoded.
#[derive(Clone)]
pub struct KeyAndCertificate {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for KeyAndCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyAndCertificate").finish_non_exhaustive()
    }
}

/// The certificate authority of a region.
pub struct Ca {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

fn window(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
}

impl Ca {
    /// A new CA. Returns it with its key in PEM form, which the caller must keep.
    pub fn create(now: SystemTime) -> Result<(Ca, String), PkiError> {
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "openkcm-region-ca");
        window(&mut params, now, CA_LIFE);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok((
            Ca {
                certificate_pem,
                issuer: Issuer::new(params, key),
            },
            key_pem,
        ))
    }

    /// A CA from its certificate and key.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Ca, PkiError> {
        let key = KeyPair::from_pem(key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)?;
        Ok(Ca {
            certificate_pem: certificate_pem.to_owned(),
            issuer,
        })
    }

    /// The CA kept in `folder`; made there when the folder has none.
    pub fn load_or_create(folder: &Path, now: SystemTime) -> Result<Ca, PkiError> {
        let (certificate, key) = (folder.join("ca.crt"), folder.join("ca.key"));
        match (certificate.exists(), key.exists()) {
            (true, true) => Ca::from_pem(&read(&certificate)?, &read(&key)?),
            (false, false) => {
                std::fs::create_dir_all(folder).map_err(|source| PkiError::File {
                    path: folder.to_owned(),
                    source,
                })?;
                let (ca, key_pem) = Ca::create(now)?;
                // The key first: a certificate without its key would look like a damaged folder.
                write_private(&key, &key_pem)?;
                write_public(&certificate, &ca.certificate_pem)?;
                Ok(ca)
            }
            (true, false) => Err(PkiError::Damaged {
                path: key,
                what: "the CA key is missing",
            }),
            // The process died between the two writes: nothing was issued yet, start again.
            (false, true) => {
                std::fs::remove_file(&key)
                    .map_err(|source| PkiError::File { path: key, source })?;
                Ca::load_or_create(folder, now)
            }
        }
    }

    /// A secret for one purpose, which only holders of the CA key can compute. Stays the same over restarts.
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.issuer.key().serialize_der());
        let mut secret = [0; 32];
        for (to, from) in secret
            .iter_mut()
            .zip(ring::hmac::sign(&key, purpose.as_bytes()).as_ref())
        {
            *to = *from;
        }
        secret
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A client certificate for an identity.
    pub fn issue_client(
        &self,
        identity: &Identity,
        now: SystemTime,
        life: Duration,
    ) -> Result<KeyAndCertificate, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, identity.user.as_str());
        for group in &identity.groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group.as_str());
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, now, life)
    }

    /// A serving certificate for names and addresses.
    pub fn issue_server(
        &self,
        names: &[String],
        now: SystemTime,
        life: Duration,
    ) -> Result<KeyAndCertificate, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "openkcm-apiserver");
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, now, life)
    }

    /// A client certificate for the subject, alternative names and key of a request (PEM). The signature of the request is
    /// checked; what else it wishes for is not granted.
    pub fn sign_client(
        &self,
        request_pem: &str,
        usages: Vec<KeyUsagePurpose>,
        now: SystemTime,
        life: Duration,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = request.params.distinguished_name;
        params.subject_alt_names = request.params.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        window(&mut params, now, life);
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        now: SystemTime,
        life: Duration,
    ) -> Result<KeyAndCertificate, PkiError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        window(&mut params, now, life);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(KeyAndCertificate {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// A kubeconfig with everything inlined.
pub fn kubeconfig(server: &str, ca_pem: &str, user: &str, pair: &KeyAndCertificate) -> String {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: openkcm\nclusters:\n- name: openkcm\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    \
         client-key-data: {key}\ncontexts:\n- name: openkcm\n  context:\n    cluster: openkcm\n    user: {user}\n    namespace: default\n",
        server = text(server),
        ca = STANDARD.encode(ca_pem),
        user = text(user),
        certificate = STANDARD.encode(&pair.certificate_pem),
        key = STANDARD.encode(&pair.key_pem),
    )
}

/// Issues a client certificate and writes a kubeconfig to `path` (mode 0600).
pub fn issue_kubeconfig(
    ca: &Ca,
    identity: &Identity,
    server: &str,
    path: &Path,
    now: SystemTime,
    life: Duration,
) -> Result<(), PkiError> {
    if identity.user.is_empty() {
        return Err(PkiError::Identity(identity.user.clone()));
    }
    let pair = ca.issue_client(identity, now, life)?;
    write_private(
        path,
        &kubeconfig(server, ca.certificate_pem(), &identity.user, &pair),
    )
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes through a temporary file, so that a reader never sees half a file.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let error = |source| PkiError::File {
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension(format!("tmp-{}", uuid::Uuid::new_v4().simple()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(error)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(error)?;
    std::fs::rename(&temporary, path).map_err(error)
}

/// Writes a file that anybody may read.
pub fn write_public(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o644)
}

/// Writes a file that only the owner may read.
pub fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o600)
}

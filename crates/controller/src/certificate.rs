//! Client certificates that a part asks for itself: the first one through a bootstrap kubeconfig, later ones with the one it has,
//! by certificate signing requests that somebody at the API server approves.
//!
//! Everything ends up in one kubeconfig file, replaced as a whole, which the part is started with like with any other.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use api::names::certificate::CLIENT_SIGNER;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, api::PostParams, config::Kubeconfig};
use rand::Rng as _;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::args;

/// How long a request may wait for its certificate before another one is made.
const ISSUED_WAIT_MAX: Duration = Duration::from_secs(900);
/// Time between two looks at a request that waits.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time between two tries to renew.
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// Where the client certificate comes from.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CertificateArgs {
    /// Kubeconfig that may only ask for the first client certificate. What comes of it is written to the kubeconfig of the
    /// OpenKCM-net API if that is missing or its certificate is over.
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Renew the client certificate in the kubeconfig of the OpenKCM-net API before it ends.
    #[arg(long)]
    pub rotate_certificates: bool,
}

/// A part's client certificate: who it is for, and the kubeconfig that holds it.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub user: String,
    pub group: String,
    pub kubeconfig: PathBuf,
    pub bootstrap: Option<PathBuf>,
    pub rotate: bool,
}

/// When a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Validity {
    /// When to renew: at `share` of the life, which callers draw between 0.7 and 0.9 so that parts made together do not all
    /// come at once.
    pub fn due(&self, share: f64) -> SystemTime {
        let life = self.until.duration_since(self.from).unwrap_or_default();
        self.from + life.mul_f64(share.clamp(0.0, 1.0))
    }
}

impl CertificateArgs {
    /// The certificate of `kubeconfig`, if this part looks after it itself.
    pub fn certificate(
        &self,
        kubeconfig: Option<&PathBuf>,
        user: String,
        group: &str,
    ) -> anyhow::Result<Option<Certificate>> {
        if self.bootstrap_kubeconfig.is_none() && !self.rotate_certificates {
            return Ok(None);
        }
        let kubeconfig = kubeconfig
            .cloned()
            .context("--bootstrap-kubeconfig and --rotate-certificates need a kubeconfig file to keep the certificate in")?;
        Ok(Some(Certificate {
            user,
            group: group.to_owned(),
            kubeconfig,
            bootstrap: self.bootstrap_kubeconfig.clone(),
            rotate: self.rotate_certificates,
        }))
    }
}

/// Runs `part` with a certificate that holds, and once more whenever it was renewed, until shutdown. Without `certificate` the part
/// runs with what it is given.
pub async fn run<F>(
    certificate: Option<Certificate>,
    shutdown: CancellationToken,
    part: impl Fn(CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let Some(certificate) = certificate else {
        return part(shutdown).await;
    };
    loop {
        tokio::select! {
            done = certificate.ensure() => done?,
            () = shutdown.cancelled() => return Ok(()),
        }
        let stop = shutdown.child_token();
        let rotation = async {
            certificate.renewed(&stop).await;
            stop.cancel();
            Ok(())
        };
        tokio::try_join!(rotation, async {
            let ended = part(stop.clone()).await;
            stop.cancel();
            ended
        })?;
        if shutdown.is_cancelled() {
            return Ok(());
        }
        tracing::info!(user = certificate.user, "client certificate renewed");
    }
}

impl Certificate {
    /// Asks for the first certificate if there is none that holds.
    pub async fn ensure(&self) -> anyhow::Result<()> {
        let now = SystemTime::now();
        if validity(&self.kubeconfig).is_ok_and(|validity| validity.until > now) {
            return Ok(());
        }
        let Some(bootstrap) = &self.bootstrap else {
            return Ok(());
        };
        tracing::info!(user = self.user, "asking for the first client certificate");
        self.obtain(bootstrap)
            .await
            .context("--bootstrap-kubeconfig")
    }

    /// Returns when the certificate was renewed, or at `stop`.
    async fn renewed(&self, stop: &CancellationToken) {
        let share = rand::rng().random_range(0.7..0.9);
        let work = async {
            if !self.rotate {
                return std::future::pending().await;
            }
            loop {
                let due = validity(&self.kubeconfig)
                    .map(|validity| validity.due(share))
                    .ok();
                // A file without certificate (a token, or one that somebody is writing) is looked at again.
                let wait = due.map_or(RETRY_EVERY, |due| {
                    due.duration_since(SystemTime::now()).unwrap_or_default()
                });
                tokio::time::sleep(wait).await;
                if due.is_none() {
                    continue;
                }
                match self.obtain(&self.kubeconfig).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "client certificate not renewed, will be tried again"
                        );
                        tokio::time::sleep(RETRY_EVERY).await;
                    }
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    /// Asks for a certificate as whoever `with` says, and writes the kubeconfig.
    pub async fn obtain(&self, with: &Path) -> anyhow::Result<()> {
        let client = args::client(Some(&with.to_owned())).await?;
        let key = KeyPair::generate().context("key")?;
        let requests = Api::<CertificateSigningRequest>::all(client);
        let request = serde_json::from_value(self.request(&key)?).context("request")?;
        let made = requests.create(&PostParams::default(), &request).await?;
        let name = made.metadata.name.context("a request without name")?;
        tracing::info!(
            request = name,
            user = self.user,
            "waiting for the certificate"
        );
        let waiting = tokio::time::timeout(ISSUED_WAIT_MAX, issued(&requests, &name));
        let pem = waiting.await.with_context(|| {
            format!(
                "request {name}: nobody has approved and signed it; see `kubectl get csr {name}`"
            )
        })??;
        let file = self.kubeconfig(with, &pem, &key.serialize_pem())?;
        write(&self.kubeconfig, &file)
    }

    fn request(&self, key: &KeyPair) -> anyhow::Result<Value> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, self.user.as_str());
        subject.push(DnType::OrganizationName, self.group.as_str());
        let pem = params
            .serialize_request(key)
            .and_then(|request| request.pem())
            .context("certificate request")?;
        Ok(json!({
            "metadata": { "generateName": "csr-" },
            "spec": {
                "request": STANDARD.encode(pem),
                "signerName": CLIENT_SIGNER,
                "usages": ["digital signature", "client auth"],
            },
        }))
    }

    /// The kubeconfig `from`, with this certificate in place of whatever it says who we are.
    fn kubeconfig(&self, from: &Path, pem: &str, key_pem: &str) -> anyhow::Result<Value> {
        let cluster = current(from)?.0;
        Ok(json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "openkcm",
            "clusters": [{ "name": "openkcm", "cluster": cluster }],
            "users": [{ "name": self.user, "user": {
                "client-certificate-data": STANDARD.encode(pem), "client-key-data": STANDARD.encode(key_pem),
            }}],
            "contexts": [{ "name": "openkcm", "context": { "cluster": "openkcm", "user": self.user } }],
        }))
    }
}

/// The certificate of a request, once it is there.
async fn issued(requests: &Api<CertificateSigningRequest>, name: &str) -> anyhow::Result<String> {
    loop {
        let request = requests.get(name).await?;
        let status = request.status.unwrap_or_default();
        if let Some(certificate) = status.certificate {
            return String::from_utf8(certificate.0).context("the certificate is no PEM text");
        }
        let end = status
            .conditions
            .into_iter()
            .flatten()
            .find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
        if let Some(end) = end {
            let why = end.message.unwrap_or_default();
            bail!("request {name}: {}: {why}", end.type_);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Cluster and user of the current context of a kubeconfig.
fn current(path: &Path) -> anyhow::Result<(Value, Value)> {
    let file = Kubeconfig::read_from(path).with_context(|| path.display().to_string())?;
    let value = serde_json::to_value(file)?;
    let named = |list: &str, name: &str, member: &str| {
        let entries = value.get(list).and_then(Value::as_array);
        let mut entries = entries.into_iter().flatten();
        let entry = entries.find(|entry| entry.get("name").and_then(Value::as_str) == Some(name));
        entry.and_then(|entry| entry.get(member).cloned())
    };
    let text = |value: &Value, pointer: &str| {
        let text = value.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let context = named("contexts", &text(&value, "/current-context"), "context")
        .with_context(|| format!("{}: no current context", path.display()))?;
    let cluster = named("clusters", &text(&context, "/cluster"), "cluster")
        .with_context(|| format!("{}: the current context has no cluster", path.display()))?;
    let user = named("users", &text(&context, "/user"), "user").unwrap_or_default();
    Ok((cluster, user))
}

/// When the client certificate of a kubeconfig holds.
pub fn validity(path: &Path) -> anyhow::Result<Validity> {
    let (_, user) = current(path)?;
    let text = |member: &str| user.get(member).and_then(Value::as_str);
    let pem = match (text("client-certificate-data"), text("client-certificate")) {
        (Some(data), _) => STANDARD.decode(data)?,
        (None, Some(file)) => std::fs::read(path.with_file_name(file))?,
        (None, None) => bail!("{}: no client certificate", path.display()),
    };
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).context("client certificate")?;
    let certificate = block.parse_x509().context("client certificate")?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    let validity = certificate.validity();
    Ok(Validity {
        from: time(validity.not_before.timestamp()),
        until: time(validity.not_after.timestamp()),
    })
}

/// Replaces a file as a whole; only the owner may read it.
fn write(path: &Path, document: &Value) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = path.with_extension("new");
    let error = || format!("cannot write {}", temporary.display());
    if temporary.exists() {
        std::fs::remove_file(&temporary).with_context(error)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(error)?;
    file.write_all(&serde_json::to_vec_pretty(document)?)
        .and_then(|()| file.sync_all())
        .with_context(error)?;
    std::fs::rename(&temporary, path).with_context(error)
}

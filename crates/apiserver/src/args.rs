//! The process: flags, state folder, certificates, and the server until it is told to stop.

use crate::pki::{self, Ca, Identity};
use crate::region::Ranges;
use crate::start::{Config, start};
use crate::store::redb::{Options, RedbStore};
use anyhow::Context as _;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;

/// The API server of a region.
///
/// Serves the groups of OpenKCM and what Kubernetes clients expect around them over HTTPS with client certificates. Keeps everything
/// in one folder: the store (`store.redb`), the region CA and the administrator's kubeconfig (`pki/`).
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder of the store and the region CA; made when it does not exist.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/openkcm/apiserver")]
    pub state: PathBuf,

    /// Address to listen on. `::` serves IPv4 and IPv6.
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub bind_address: IpAddr,

    /// Port to listen on; 0 picks a free one.
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,

    /// URL under which clients reach this server, written into kubeconfigs. Default: https://127.0.0.1:PORT.
    #[arg(long, value_name = "URL")]
    pub advertise: Option<String>,

    /// Further names and addresses for the serving certificate.
    #[arg(long = "tls-san", value_name = "NAME", value_delimiter = ',')]
    pub tls_sans: Vec<String>,

    /// Prefixes from which public addresses are given out, in this order. Repeatable; both families.
    #[arg(long = "public-prefix", value_name = "CIDR", value_delimiter = ',')]
    pub public_prefixes: Vec<IpNet>,

    /// Lowest network identifier (VNI) to give out.
    #[arg(long, value_name = "VNI", default_value_t = 200)]
    pub min_vni: u32,

    /// Highest network identifier (VNI) to give out.
    #[arg(long, value_name = "VNI", default_value_t = (1 << 24) - 1)]
    pub max_vni: u32,

    /// Print the kinds of a group, such as networking.metalnet.openkcm.dev, as CustomResourceDefinitions and end.
    #[arg(long, value_name = "GROUP")]
    pub print_crds: Option<String>,
}

/// The kinds of a group as a stream of YAML documents.
fn definitions(group: &str) -> anyhow::Result<String> {
    let mut out = String::new();
    let kinds = api::table::kinds().iter();
    for kind in kinds.filter(|kind| kind.group == group && !kind.builtin) {
        out.push_str("---\n");
        out.push_str(&serde_saphyr::to_string(&api::crd::definition(kind))?);
    }
    anyhow::ensure!(!out.is_empty(), "no kinds in the group {group:?}");
    Ok(out)
}

impl Args {
    fn ranges(&self) -> anyhow::Result<Ranges> {
        anyhow::ensure!(
            self.min_vni < self.max_vni,
            "--min-vni must be less than --max-vni"
        );
        anyhow::ensure!(
            self.max_vni < 1 << 24,
            "--max-vni must be less than 2^24: a VNI has 24 bits"
        );
        for (index, prefix) in self.public_prefixes.iter().enumerate() {
            let earlier = self.public_prefixes.iter().take(index);
            let overlaps =
                |other: &&IpNet| other.contains(&prefix.addr()) || prefix.contains(&other.addr());
            if let Some(other) = earlier.into_iter().find(overlaps) {
                anyhow::bail!("--public-prefix {prefix} overlaps {other}");
            }
        }
        Ok(Ranges {
            vni_min: self.min_vni,
            vni_max: self.max_vni,
            public: self.public_prefixes.clone(),
        })
    }

    /// Names under which the certificate must hold.
    fn names(&self) -> Vec<String> {
        let mut names = vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
            "openkcm-apiserver".to_owned(),
        ];
        if !self.bind_address.is_unspecified() {
            names.push(self.bind_address.to_string());
        }
        names.extend(self.advertise.as_deref().and_then(host_of));
        names.extend(self.tls_sans.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// The host of a URL, without brackets and port.
fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    Some(uri.host()?.trim_matches(['[', ']']).to_owned())
}

/// Where the CA lives inside the state folder.
pub const PKI_FOLDER: &str = "pki";

/// Runs the server until `shutdown`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Some(group) = &args.print_crds {
        use std::io::Write as _;
        let text = definitions(group)?;
        return Ok(std::io::stdout().lock().write_all(text.as_bytes())?);
    }
    let ranges = args.ranges()?;
    let names = args.names();
    let folder = args.state.join(PKI_FOLDER);
    std::fs::create_dir_all(&args.state)
        .with_context(|| format!("cannot make {}", args.state.display()))?;
    let ca = Ca::load_or_create(&folder, SystemTime::now()).context("region CA")?;
    let state = args.state.clone();
    let store = tokio::task::spawn_blocking(move || RedbStore::open(&state, Options::default()))
        .await?
        .with_context(|| format!("cannot open the store in {}", args.state.display()))?;
    let address = SocketAddr::new(args.bind_address, args.secure_port);
    let mut running = start(Config {
        store: Arc::new(store),
        ranges,
        ca: Arc::new(ca),
        address,
        names,
    })
    .await?;
    let url = args
        .advertise
        .clone()
        .unwrap_or_else(|| format!("https://127.0.0.1:{}", running.address.port()));
    let (user, group) = api::names::identity::ADMIN;
    let admin = Identity {
        user: user.into(),
        groups: vec![group.into()],
    };
    let kubeconfig = running.kubeconfig(&url, &admin)?;
    pki::write_private(&folder.join("admin.kubeconfig"), &kubeconfig)?;
    tracing::info!(address = %running.address, url, rev = running.region.cache.progress(), "ready");
    running
        .until(&shutdown)
        .await
        .context("the store failed; the process must end")?;
    tracing::info!("stopped");
    Ok(())
}

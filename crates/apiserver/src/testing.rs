//! A server in the process, for tests: memory store, free port, real TLS.

use crate::pki::{Ca, Identity, PkiError};
use crate::region::Ranges;
use crate::start::{Config, Running, StartError, start};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// A running test server. Dropping it stops it.
#[derive(Debug)]
pub struct TestServer {
    pub running: Running,
    pub url: String,
}

/// The administrator.
pub fn admin() -> Identity {
    let (user, group) = api::names::identity::ADMIN;
    Identity {
        user: user.into(),
        groups: vec![group.into()],
    }
}

/// Ranges with public prefixes for tests: 203.0.113.0/24 and 2001:db8:1::/64.
pub fn ranges() -> Ranges {
    let public = ["203.0.113.0/24", "2001:db8:1::/64"]
        .iter()
        .filter_map(|prefix| prefix.parse().ok())
        .collect();
    Ranges {
        public,
        ..Ranges::default()
    }
}

/// Starts a server over an empty memory store.
pub async fn spawn() -> Result<TestServer, StartError> {
    spawn_with(Arc::new(MemoryStore::default()), ranges()).await
}

/// Starts a server over a store.
pub async fn spawn_with(store: Arc<dyn Store>, ranges: Ranges) -> Result<TestServer, StartError> {
    let (ca, _) = Ca::create(SystemTime::now())?;
    spawn_at(store, ranges, Arc::new(ca), 0).await
}

/// Starts a server over a store with a known CA and port (0 picks a free one), as after a restart.
pub async fn spawn_at(
    store: Arc<dyn Store>,
    ranges: Ranges,
    ca: Arc<Ca>,
    port: u16,
) -> Result<TestServer, StartError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let running = start(Config {
        store,
        ranges,
        ca,
        address,
        names,
    })
    .await?;
    let url = format!("https://127.0.0.1:{}", running.address.port());
    Ok(TestServer { running, url })
}

impl TestServer {
    /// A kubeconfig for the administrator.
    pub fn kubeconfig(&self) -> Result<String, PkiError> {
        self.kubeconfig_for(&admin())
    }

    /// A kubeconfig for any identity.
    pub fn kubeconfig_for(&self, identity: &Identity) -> Result<String, PkiError> {
        self.running.kubeconfig(&self.url, identity)
    }

    /// Writes the administrator's kubeconfig to a file.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<(), PkiError> {
        crate::pki::write_private(path, &self.kubeconfig()?)
    }
}

//! Bringing a server up: cache, tasks, bootstrap, listener; and down again.

use crate::bootstrap;
use crate::pki::{Ca, Identity};
use crate::region::{Ranges, Region};
use crate::server;
use crate::store::{Store, StoreError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a server is started with.
#[derive(Debug)]
pub struct Config {
    pub store: Arc<dyn Store>,
    pub ranges: Ranges,
    pub ca: Arc<Ca>,
    pub address: SocketAddr,
    /// Names and addresses of the serving certificate.
    pub names: Vec<String>,
}

/// Why a server did not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pki(#[from] crate::pki::PkiError),
    #[error(transparent)]
    Listen(#[from] server::ListenError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("bootstrap: {}", .0.message)]
    Bootstrap(crate::status::Failure),
}

/// A running server. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Running {
    pub region: Arc<Region>,
    pub address: SocketAddr,
    pub ca: Arc<Ca>,
    listener: JoinSet<()>,
    tasks: JoinSet<StoreError>,
}

/// Starts a server. It answers as soon as this returns.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let Config {
        store,
        ranges,
        ca,
        address,
        names,
    } = config;
    let region = Arc::new(Region::new(store, ranges, CancellationToken::new()));
    region
        .tokens
        .get_or_init(|| crate::auth::token::Tokens::new(&ca.secret("service account tokens")));
    let changes = region.cache.load(region.store.as_ref()).await?;
    let mut tasks = JoinSet::new();
    let follower = Arc::clone(&region);
    tasks.spawn(async move { follower.cache.follow(changes).await });
    bootstrap::run(&region)
        .await
        .map_err(StartError::Bootstrap)?;
    region.fresh().await.map_err(StartError::Bootstrap)?;
    let collector = Arc::clone(&region);
    tasks.spawn(crate::gc::run(collector));
    tasks.spawn(crate::namespace::run(Arc::clone(&region)));
    tasks.spawn(crate::events::sweep(Arc::clone(&region)));
    tasks.spawn(crate::certificates::run(
        Arc::clone(&region),
        Arc::clone(&ca),
    ));
    region.documents();
    let pair = ca.issue_server(&names, SystemTime::now(), crate::pki::CERTIFICATE_LIFE)?;
    let acceptor = server::tls(&ca, &pair)?;
    let socket = server::listen(address)?;
    let address = socket.local_addr()?;
    let mut listener = JoinSet::new();
    region.set_loaded();
    listener.spawn(server::serve(Arc::clone(&region), socket, acceptor));
    Ok(Running {
        region,
        address,
        ca,
        listener,
        tasks,
    })
}

impl Running {
    /// A kubeconfig for an identity.
    pub fn kubeconfig(
        &self,
        server: &str,
        identity: &Identity,
    ) -> Result<String, crate::pki::PkiError> {
        let pair =
            self.ca
                .issue_client(identity, SystemTime::now(), crate::pki::CERTIFICATE_LIFE)?;
        Ok(crate::pki::kubeconfig(
            server,
            self.ca.certificate_pem(),
            &identity.user,
            &pair,
        ))
    }

    /// Runs until `stop` or until the store fails; in the second case the process must exit.
    pub async fn until(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        let store = Arc::clone(&self.region.store);
        let outcome = tokio::select! {
            () = stop.cancelled() => Ok(()),
            error = store.stopped() => Err(error),
            ended = self.tasks.join_next() => match ended {
                Some(Ok(error)) => Err(error),
                Some(Err(error)) => Err(StoreError::Stopped { cause: format!("a task of the server died: {error}").into() }),
                None => Ok(()),
            },
        };
        if outcome.is_err() {
            self.region.set_failed();
        }
        self.stop().await;
        outcome
    }

    /// Ends watches, finishes requests in flight, closes connections.
    pub async fn stop(&mut self) {
        self.region.stop.cancel();
        while self.listener.join_next().await.is_some() {}
        self.tasks.shutdown().await;
    }
}

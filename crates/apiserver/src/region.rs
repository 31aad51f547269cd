//! What all requests share: storage, cache, kinds, limits and counters.

use crate::cache::Cache;
use crate::kinds::Kinds;
use crate::metrics::Metrics;
use crate::nature::Nature;
use crate::store::Store;
use ipnet::IpNet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Ranges that the server allocates from.
#[derive(Debug, Clone)]
pub struct Ranges {
    pub vni_min: u32,
    pub vni_max: u32,
    /// Public prefixes in the order in which they are used.
    pub public: Vec<IpNet>,
}

impl Default for Ranges {
    fn default() -> Ranges {
        Ranges {
            vni_min: 200,
            vni_max: (1 << 24) - 1,
            public: Vec::new(),
        }
    }
}

/// The server's state.
#[derive(Debug)]
pub struct Region {
    pub store: Arc<dyn Store>,
    pub kinds: Kinds,
    pub cache: Cache,
    pub ranges: Ranges,
    pub metrics: Metrics,
    pub authorizer: crate::auth::rbac::Authorizer,
    /// Made when the first one asks.
    documents: std::sync::OnceLock<crate::discovery::Documents>,
    pub limits: Limits,
    pub nature: Nature,
    /// Set at start, from the region CA.
    pub tokens: std::sync::OnceLock<crate::auth::token::Tokens>,
    /// Cancelled when the server stops: ends watches.
    pub stop: CancellationToken,
    loaded: AtomicBool,
    failed: AtomicBool,
}

/// Slots of requests in flight.
#[derive(Debug)]
pub struct Limits {
    pub reads: Semaphore,
    pub writes: Semaphore,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            reads: Semaphore::new(crate::handler::READS_MAX),
            writes: Semaphore::new(crate::handler::WRITES_MAX),
        }
    }
}

impl Region {
    pub fn new(store: Arc<dyn Store>, ranges: Ranges, stop: CancellationToken) -> Region {
        let kinds = Kinds::new();
        let cache = Cache::new(&kinds);
        Region {
            store,
            cache,
            ranges,
            metrics: Metrics::default(),
            authorizer: crate::auth::rbac::Authorizer::default(),
            documents: std::sync::OnceLock::new(),
            kinds,
            limits: Limits::default(),
            nature: Nature::real(),
            tokens: std::sync::OnceLock::new(),
            stop,
            loaded: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    /// What the server offers. Costs a moment at the first call.
    pub fn documents(&self) -> &crate::discovery::Documents {
        self.documents
            .get_or_init(|| crate::discovery::Documents::new(&self.kinds))
    }

    /// Whether the server has its state and may answer.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    pub fn set_loaded(&self) {
        self.loaded.store(true, Ordering::Release);
    }

    /// Whether the storage has failed for good.
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub fn set_failed(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Waits until the cache holds everything that was committed before the call: reads are then linearizable.
    pub async fn fresh(&self) -> Result<(), crate::status::Failure> {
        let current = self.store.current().await;
        self.cache.wait_for(current).await
    }
}

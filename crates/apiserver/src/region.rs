//! What all requests share: storage, cache, kinds, limits and counters.

use crate::cache::Cache;
use crate::kinds::Kinds;
use crate::metrics::Metrics;
use crate::store::Store;
use ipnet::IpNet;
use std::sync::Arc;
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
        Ranges { vni_min: 200, vni_max: (1 << 24) - 1, public: Vec::new() }
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
    pub documents: crate::discovery::Documents,
    /// Cancelled when the server stops: ends watches.
    pub stop: CancellationToken,
}

impl Region {
    pub fn new(store: Arc<dyn Store>, ranges: Ranges, stop: CancellationToken) -> Region {
        let kinds = Kinds::new();
        let cache = Cache::new(&kinds);
        let documents = crate::discovery::Documents::new(&kinds);
        Region {
            store,
            cache,
            ranges,
            metrics: Metrics::default(),
            authorizer: crate::auth::rbac::Authorizer::default(),
            documents,
            kinds,
            stop,
        }
    }

    /// Waits until the cache holds everything that was committed before the call: reads are then linearizable.
    pub async fn fresh(&self) -> Result<(), crate::status::Failure> {
        let current = self.store.current().await;
        self.cache.wait_for(current).await
    }
}

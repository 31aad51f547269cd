//! Simulated disks under the embedded engine: power cuts that tear unsynced writes, and failing syncs.
//!
//! The disk keeps what was synced, and what was written since as a set of dirty 512-byte sectors. A cut lets each dirty sector
//! survive or not at random, between calls or in the middle of a commit. A disk that lies about syncs is the negative control:
//! the same harness must see damage there.

use apiserver::store::redb::{Options, RedbStore};
use apiserver::store::{At, Store, StoreError, Txn, TxnOutcome};
use redb::StorageBackend;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;
const CUTS_PER_SEED: usize = 4;

/// SplitMix64: small, seeded, good enough to choose sectors.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Debug, Default)]
struct Disk {
    synced: Vec<u8>,
    written: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// Writes and syncs until the power goes.
    calls_left: Option<u64>,
    /// Every n-th sync does nothing.
    lie_every: Option<u64>,
    /// The n-th sync from now fails.
    fail_sync_in: Option<u64>,
    syncs: u64,
}

impl Disk {
    fn tick(&mut self) -> io::Result<()> {
        match &mut self.calls_left {
            Some(0) => Err(io::Error::other("power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.tick()?;
        self.syncs += 1;
        if let Some(left) = &mut self.fail_sync_in {
            if *left == 0 {
                return Err(io::Error::from_raw_os_error(5));
            }
            *left -= 1;
        }
        if self
            .lie_every
            .is_some_and(|every| self.syncs.is_multiple_of(every))
        {
            return Ok(());
        }
        self.synced = self.written.clone();
        self.dirty.clear();
        Ok(())
    }

    /// What is on the platter after the power came back.
    fn cut(&mut self, random: &mut Random) -> Disk {
        let len = match random.below(2) {
            0 => self.synced.len(),
            _ => self.written.len(),
        };
        let mut image = self.synced.clone();
        image.resize(len, 0);
        // From "almost nothing survived" to "almost everything did".
        let odds = 1 + random.below(9);
        for sector in &self.dirty {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(len).min(self.written.len());
            if start < end && random.below(10) < odds {
                image[start..end].copy_from_slice(&self.written[start..end]);
            }
        }
        Disk {
            synced: image.clone(),
            written: image,
            ..Disk::default()
        }
    }
}

#[derive(Debug, Clone)]
struct SimDisk(Arc<Mutex<Disk>>);

impl StorageBackend for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().written.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let start = offset as usize;
        let bytes = disk.written.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.tick()?;
        disk.written.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.lock().unwrap().sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.tick()?;
        let (start, end) = (offset as usize, offset as usize + data.len());
        disk.written[start..end].copy_from_slice(data);
        disk.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }
}

/// Damage that a run found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Damage {
    lost: usize,
    phantom: usize,
    torn: usize,
    open_failed: usize,
}

/// What was written and whether it was acknowledged.
type Ledger = BTreeMap<String, bool>;

async fn write_until_the_cut(store: &RedbStore, ledger: &mut Ledger, random: &mut Random) {
    for round in 0u64.. {
        let group = 1 + random.below(6);
        let texts: Vec<String> = (0..group)
            .map(|i| format!("{}-{round}-{i}", ledger.len()))
            .collect();
        let txns = texts.iter().map(|text| {
            let size = 20 + random.below(900) as usize;
            store.txn(
                Txn::new()
                    .put(format!("/a/{text}"), vec![7; size])
                    .put(format!("/b/{text}"), vec![7; size]),
            )
        });
        let outcomes = futures::future::join_all(txns).await;
        let mut off = false;
        for (text, outcome) in texts.iter().zip(outcomes) {
            let acknowledged = matches!(outcome, Ok(TxnOutcome::Committed(_)));
            off |= !acknowledged;
            ledger.insert(text.clone(), acknowledged);
        }
        if off {
            return;
        }
        if random.below(20) == 0 {
            let floor = store.current().await.saturating_sub(random.below(10));
            let _ = store.compact(floor).await;
        }
    }
}

async fn audit(store: &RedbStore, ledger: &mut Ledger, damage: &mut Damage) {
    for (text, acknowledged) in ledger.iter_mut() {
        let a = store
            .get(format!("/a/{text}").as_bytes(), At::Latest)
            .await
            .unwrap();
        let b = store
            .get(format!("/b/{text}").as_bytes(), At::Latest)
            .await
            .unwrap();
        match (a.is_some(), b.is_some()) {
            (true, true) => *acknowledged = true,
            (false, false) if *acknowledged => damage.lost += 1,
            (false, false) => {}
            _ => damage.torn += 1,
        }
    }
    let page = store.range(b"/a/", None, 0, At::Latest).await.unwrap();
    let known = page.kvs.iter().filter(|kv| {
        let text = String::from_utf8_lossy(&kv.key[3..]).into_owned();
        ledger.contains_key(&text)
    });
    damage.phantom += page.kvs.len() - known.count();
    // Whatever was not there at this opening must not come back later.
    ledger.retain(|_, acknowledged| *acknowledged);
}

async fn live_through(seed: u64, lie_every: Option<u64>, damage: &mut Damage) {
    let mut random = Random(seed);
    let mut ledger = Ledger::new();
    let mut disk = Disk::default();
    for _ in 0..CUTS_PER_SEED {
        disk.lie_every = lie_every;
        let shared = SimDisk(Arc::new(Mutex::new(disk)));
        let store = match RedbStore::open_backend(shared.clone(), Options::default()) {
            Ok(store) => store,
            Err(_) => {
                damage.open_failed += 1;
                return;
            }
        };
        audit(&store, &mut ledger, damage).await;
        shared.0.lock().unwrap().calls_left = Some(1 + random.below(400));
        write_until_the_cut(&store, &mut ledger, &mut random).await;
        drop(store);
        disk = shared.0.lock().unwrap().cut(&mut random);
    }
    let store =
        match RedbStore::open_backend(SimDisk(Arc::new(Mutex::new(disk))), Options::default()) {
            Ok(store) => store,
            Err(_) => {
                damage.open_failed += 1;
                return;
            }
        };
    audit(&store, &mut ledger, damage).await;
}

fn seeds(default: u64) -> u64 {
    let given = std::env::var("OPENKCM_POWER_CUT_SEEDS").ok();
    given
        .and_then(|given| given.parse().ok())
        .unwrap_or(default)
}

#[tokio::test]
async fn acknowledged_writes_survive_power_cuts() {
    let mut damage = Damage::default();
    for seed in 0..seeds(60) {
        live_through(seed, None, &mut damage).await;
        assert_eq!(damage, Damage::default(), "seed {seed}");
    }
}

#[tokio::test]
async fn a_lying_disk_is_noticed() {
    let mut damage = Damage::default();
    for seed in 0..40 {
        live_through(seed, Some(5), &mut damage).await;
    }
    assert_ne!(damage, Damage::default(), "the harness is blind");
}

#[tokio::test]
async fn a_failed_sync_stops_the_store() {
    let shared = SimDisk(Arc::default());
    let store = RedbStore::open_backend(shared.clone(), Options::default()).unwrap();
    let put = |i: u32| store.txn(Txn::new().put(format!("/{i}"), "x"));
    assert!(matches!(put(0).await, Ok(TxnOutcome::Committed(1))));
    let mut watch = store.watch(b"/", 1).await.unwrap();
    shared.0.lock().unwrap().fail_sync_in = Some(0);
    assert!(matches!(put(1).await, Err(StoreError::Stopped { .. })));
    // The disk works again, but what it kept is unknown: nothing is accepted any more.
    shared.0.lock().unwrap().fail_sync_in = None;
    assert!(matches!(put(2).await, Err(StoreError::Stopped { .. })));
    assert!(matches!(
        watch.next().await,
        Err(StoreError::Stopped { .. })
    ));
    assert!(matches!(
        store.get(b"/0", At::Latest).await,
        Err(StoreError::Stopped { .. })
    ));
    let cause = store.stopped().await.to_string();
    assert!(cause.contains("os error 5"), "{cause}");
}

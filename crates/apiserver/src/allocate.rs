//! Numbers and addresses that may exist once: reserved, claimed and released inside the write that needs them.
//!
//! A scarce value is an object named after it (NetworkID, IPAddress). A write that needs one adds "this lock is absent" to its guards
//! and the lock to its operations, so owner and lock appear and vanish together, and a failed or repeated request leaves nothing
//! behind. Which values are free is read from the cache; a stale reading only makes the transaction fail and try again.

mod address;
mod public;

pub use public::{entries, is_released};

use crate::kinds::Kind;
use crate::object::{self, Encoded};
use crate::region::Region;
use crate::registry::{Write, store_key};
use crate::status::{Cause, Failure, Outcome, Reason};
use crate::store::{At, Expect, Guard, Op, Rev};
use api::names::APINET;
use serde_json::{Value, json};

/// Values looked at for one reservation before giving up.
const PROBES_MAX: u32 = 1 << 20;

/// Conditions and writes that go into a transaction beside the object itself.
#[derive(Debug, Default)]
pub struct Draft {
    pub guards: Vec<Guard>,
    pub ops: Vec<Op>,
}

impl Draft {
    /// A new object that must not exist yet.
    fn insert(&mut self, kind: &Kind, namespace: &str, object: &Value) {
        let key = store_key(kind, namespace, object::metadata_text(object, "name"));
        self.guards.push(Guard {
            key: key.clone(),
            expect: Expect::Absent,
        });
        self.ops.push(Op::Put {
            key,
            value: Encoded::from_value(object).stored(),
        });
    }

    fn replace(&mut self, kind: &Kind, namespace: &str, object: &Value, rev: Rev) {
        let key = store_key(kind, namespace, object::metadata_text(object, "name"));
        self.guards.push(Guard {
            key: key.clone(),
            expect: Expect::ModRev(rev),
        });
        self.ops.push(Op::Put {
            key,
            value: Encoded::from_value(object).stored(),
        });
    }

    fn remove(&mut self, kind: &Kind, namespace: &str, name: &str, rev: Rev) {
        let key = store_key(kind, namespace, name);
        self.guards.push(Guard {
            key: key.clone(),
            expect: Expect::ModRev(rev),
        });
        self.ops.push(Op::Delete { key });
    }

    fn has(&self, key: &[u8]) -> bool {
        self.ops.iter().any(|op| op.key() == key)
    }
}

/// Reserves what a new object needs.
pub async fn create(write: &Write<'_>, object: &mut Value, draft: &mut Draft) -> Outcome<()> {
    if write.kind.group != APINET {
        return Ok(());
    }
    match write.kind.plural {
        "networks" => reserve_vni(write, object, draft),
        "ips" => {
            let claim = claim_of(write.kind.plural, write.namespace, object);
            address::reserve(write.region, object, claim, draft)
        }
        _ => {
            address::reserve_own(write, object, draft)?;
            public::change(write, None, object, draft).await
        }
    }
}

/// Reserves and releases what the change of an object needs.
pub async fn update(
    write: &Write<'_>,
    old: &Value,
    new: &mut Value,
    draft: &mut Draft,
) -> Outcome<()> {
    match write.kind.group {
        APINET => public::change(write, Some(old), new, draft).await,
        _ => Ok(()),
    }
}

/// Releases what a vanishing object holds.
pub async fn delete(write: &Write<'_>, old: &Value, draft: &mut Draft) -> Outcome<()> {
    if write.kind.group != APINET {
        return Ok(());
    }
    let locked_by_spec = match write.kind.plural {
        "networks" => Some(("networkids", "/spec/id")),
        "ips" => Some(("ipaddresses", "/spec/ip")),
        _ => None,
    };
    match locked_by_spec {
        Some((locks, field)) => {
            let name = old.pointer(field).and_then(Value::as_str);
            release_lock(
                write.region,
                locks,
                name.unwrap_or_default(),
                object::metadata_text(old, "uid"),
                draft,
            )
            .await
        }
        None => {
            address::release_own(write, old, draft).await?;
            public::release_all(write, old, draft).await
        }
    }
}

/// One of our kinds of the apinet group.
fn apinet<'r>(region: &'r Region, plural: &str) -> Outcome<&'r Kind> {
    let kind = region.kinds.find(APINET, api::names::VERSION, plural);
    kind.map(|kind| &**kind)
        .ok_or_else(|| Failure::internal(format!("kind {plural} is missing")))
}

/// A newest version and its revision.
async fn read(
    region: &Region,
    kind: &Kind,
    namespace: &str,
    name: &str,
) -> Outcome<Option<(Value, Rev)>> {
    let key = store_key(kind, namespace, name);
    let Some(kv) = region.store.get(&key, At::Latest).await? else {
        return Ok(None);
    };
    let encoded = Encoded::restore(kv.value)
        .map_err(|damaged| Failure::internal(format!("{name}: {damaged}")))?;
    Ok(Some((encoded.to_value(kv.mod_rev), kv.mod_rev)))
}

/// The reference from a lock to its owner.
fn claim_of(resource: &str, namespace: &str, owner: &Value) -> Value {
    json!({
        "group": APINET,
        "resource": resource,
        "namespace": namespace,
        "name": object::metadata_text(owner, "name"),
        "uid": object::metadata_text(owner, "uid"),
    })
}

fn lock_object(region: &Region, kind: &Kind, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "uid": region.nature.uid(),
            "creationTimestamp": region.nature.now_text(),
        },
        "spec": spec,
    })
}

/// Deletes a lock if it still belongs to the owner.
async fn release_lock(
    region: &Region,
    plural: &str,
    name: &str,
    owner: &str,
    draft: &mut Draft,
) -> Outcome<()> {
    if name.is_empty() {
        return Ok(());
    }
    let kind = apinet(region, plural)?;
    if let Some((lock, rev)) = read(region, kind, "", name).await?
        && lock.pointer("/spec/claimRef/uid").and_then(Value::as_str) == Some(owner)
    {
        draft.remove(kind, "", name, rev);
    }
    Ok(())
}

fn set_spec(object: &mut Value, member: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        let spec = map.entry("spec").or_insert_with(|| json!({}));
        if let Some(spec) = spec.as_object_mut() {
            spec.insert(member.to_owned(), value);
        }
    }
}

/// A value that the user chose and cannot have.
fn refused(write_kind: (&str, &str), name: &str, field: &str, value: &str, why: &str) -> Failure {
    let (group, kind) = write_kind;
    Failure::invalid(
        group,
        kind,
        name,
        vec![Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: \"{value}\": {why}"),
            field: field.into(),
        }],
    )
}

fn reserve_vni(write: &Write<'_>, object: &mut Value, draft: &mut Draft) -> Outcome<()> {
    let region = write.region;
    let kind = apinet(region, "networkids")?;
    let (min, max) = (region.ranges.vni_min, region.ranges.vni_max);
    let given = object
        .pointer("/spec/id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let taken = |id: &str| region.cache.get(kind.id, id).is_some();
    let id = if given.is_empty() {
        let span = max.saturating_sub(min).saturating_add(1);
        let start = region.nature.below(span.into()) as u32;
        let free = (0..span.min(PROBES_MAX))
            .map(|step| (min + (start + step) % span).to_string())
            .find(|id| !taken(id));
        free.ok_or_else(|| {
            Failure::new(
                Reason::Conflict,
                format!("all network ids from {min} to {max} are allocated"),
            )
        })?
    } else {
        let name = object::metadata_text(object, "name");
        let refuse = |why: &str| {
            refused(
                (write.kind.group, write.kind.kind),
                name,
                "spec.id",
                &given,
                why,
            )
        };
        match given.parse::<u32>() {
            Ok(id) if id.to_string() != given => {
                return Err(refuse("must be a canonical decimal number"));
            }
            Ok(id) if !(min..=max).contains(&id) => {
                return Err(refuse(&format!("must be in the range from {min} to {max}")));
            }
            Ok(_) if taken(&given) => return Err(refuse("is already allocated")),
            Ok(_) => given.clone(),
            Err(_) => return Err(refuse("must be a decimal number")),
        }
    };
    let lock = lock_object(
        region,
        kind,
        &id,
        json!({ "claimRef": claim_of("networks", write.namespace, object) }),
    );
    draft.insert(kind, "", &lock);
    set_spec(object, "id", json!(id));
    Ok(())
}

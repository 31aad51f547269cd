//! Certificate signing requests: who asks is written down by the server, who decides needs a right on the signer, and the region
//! CA signs what is approved for `kubernetes.io/kube-apiserver-client`. Requests that are over are swept.

use crate::auth::{Action, MASTERS, User};
use crate::kinds::Kind;
use crate::object;
use crate::pki::{CERTIFICATE_LIFE, Ca};
use crate::query::Query;
use crate::region::Region;
use crate::registry::delete::DeleteOptions;
use crate::registry::update::Proposal;
use crate::registry::{Part, Write};
use crate::status::{Failure, Outcome, Reason};
use crate::store::StoreError;
use api::csr::CertificateRequest;
use api::field::FieldError;
use api::names::certificate::CLIENT_SIGNER;
use api::validate::certificates::{DECISIONS, LIFE_SECONDS_MIN};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyUsagePurpose;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use api::names::certificate::GROUP;
pub(crate) const REQUESTS: &str = "certificatesigningrequests";
/// Requests that were decided are kept this long, for people to look at.
pub const DECIDED_LIFE: Duration = Duration::from_secs(3600);
/// Requests that nobody decides are kept this long.
pub const PENDING_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Time between two looks for requests that are over, or that could not be signed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Uses of a client's key, in the words of the API and of the certificate.
const CLIENT_USAGES: [(&str, Option<KeyUsagePurpose>); 3] = [
    ("digital signature", Some(KeyUsagePurpose::DigitalSignature)),
    ("key encipherment", Some(KeyUsagePurpose::KeyEncipherment)),
    ("client auth", None),
];

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn texts<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = object.pointer(pointer).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// The PEM text inside `spec.request`.
fn request_pem(object: &Value) -> Result<String, String> {
    let bytes = STANDARD
        .decode(text(object, "/spec/request"))
        .map_err(|error| format!("not base64: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "not a PEM text".to_owned())
}

fn subject(pem: &str) -> Result<CertificateRequest, String> {
    CertificateRequest::parse(pem.as_bytes()).map_err(|error| error.to_string())
}

/// Writes down who asks, in place of whatever the body says about it, and drops decisions.
pub(crate) fn own(user: &User, object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    map.remove("status");
    if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("uid");
        spec.remove("extra");
        spec.insert("username".into(), json!(user.name));
        spec.insert("groups".into(), json!(user.groups));
    }
}

/// Rules about what the request itself says.
pub(crate) fn check_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    if (kind.group, kind.plural) != (GROUP, REQUESTS) || text(object, "/spec/request").is_empty() {
        return Vec::new();
    }
    let wrong = |detail: String| vec![FieldError::invalid("spec.request", "<PEM>", detail)];
    match request_pem(object).and_then(|pem| subject(&pem)) {
        Err(detail) => wrong(detail),
        Ok(subject)
            if text(object, "/spec/signerName") == CLIENT_SIGNER
                && subject.organizations.iter().any(|group| group == MASTERS) =>
        {
            wrong(format!(
                "use of {CLIENT_SIGNER} with the organization {MASTERS} is not allowed"
            ))
        }
        Ok(_) => Vec::new(),
    }
}

fn conditions(object: &Value) -> Vec<Value> {
    object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

fn is_decision(condition: &Value) -> bool {
    DECISIONS.contains(&text(condition, "/type"))
}

/// Who approves changes conditions only, and who signs does not change decisions. New conditions get their times.
pub(crate) fn keep_parts(write: &Write<'_>, old: &Value, new: &mut Value) {
    if (write.kind.group, write.kind.plural) != (GROUP, REQUESTS) {
        return;
    }
    let approval = write.part == Part::Approval;
    let (before, wanted) = (conditions(old), conditions(new));
    // What belongs to the other side stays as it was.
    let theirs = |condition: &&Value| is_decision(condition) != approval;
    let mine = |condition: &&Value| is_decision(condition) == approval;
    let now = write.region.nature.now_text();
    let kept = before.iter().filter(theirs).cloned();
    let changed = wanted.iter().filter(mine).map(|condition| {
        let known = before
            .iter()
            .find(|known| text(known, "/type") == text(condition, "/type"));
        stamped(condition.clone(), known, &now)
    });
    let merged: Vec<Value> = kept.chain(changed).collect();
    let mut status = match approval {
        true => old.get("status").cloned(),
        false => new.get("status").cloned(),
    }
    .unwrap_or_else(|| json!({}));
    if let (Some(status), Some(map)) = (status.as_object_mut(), new.as_object_mut()) {
        match merged.is_empty() {
            true => status.remove("conditions"),
            false => status.insert("conditions".into(), json!(merged)),
        };
        map.insert("status".into(), json!(status));
    }
}

fn stamped(mut condition: Value, known: Option<&Value>, now: &str) -> Value {
    let same_status = known.filter(|known| text(known, "/status") == text(&condition, "/status"));
    let since = same_status.map_or(now, |known| match text(known, "/lastTransitionTime") {
        "" => now,
        time => time,
    });
    let since = json!(since);
    if let Some(map) = condition.as_object_mut() {
        for (field, time) in [
            ("lastUpdateTime", json!(now)),
            ("lastTransitionTime", since),
        ] {
            if map.get(field).is_none_or(Value::is_null) {
                map.insert(field.into(), time);
            }
        }
    }
    condition
}

/// Deciding needs the right to `approve` at the signer, signing the right to `sign`.
pub(crate) fn permit(write: &Write<'_>, old: &Value, new: &Value) -> Outcome<()> {
    let certificate = |object: &Value| text(object, "/status/certificate").to_owned();
    let verb = match write.part {
        Part::Approval => "approve",
        Part::Status
            if certificate(old) != certificate(new) || conditions(old) != conditions(new) =>
        {
            "sign"
        }
        _ => return Ok(()),
    };
    let signer = text(old, "/spec/signerName");
    let domain = signer.split_once('/').map_or("", |(domain, _)| domain);
    let every = format!("{domain}/*");
    let allowed = [signer, every.as_str()].into_iter().any(|name| {
        let action = Action {
            verb,
            group: GROUP,
            resource: "signers",
            name,
            ..Action::default()
        };
        let authorizer = &write.region.authorizer;
        authorizer.allows(write.region, write.user, &action)
    });
    if allowed {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName \"{signer}\"");
    Err(Failure::forbidden(GROUP, REQUESTS, write.name, &why))
}

/// What the signer has to do about a request.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Sign,
    Delete,
    Nothing,
}

fn step(object: &Value, now: jiff::Timestamp) -> Step {
    let has = |word: &str| conditions(object).iter().any(|c| text(c, "/type") == word);
    let (denied, failed, approved) = (has("Denied"), has("Failed"), has("Approved"));
    let issued = !text(object, "/status/certificate").is_empty();
    let over = issued || denied || failed;
    let life = if over { DECIDED_LIFE } else { PENDING_LIFE };
    let made: Option<jiff::Timestamp> = text(object, "/metadata/creationTimestamp").parse().ok();
    let old = made.is_some_and(|made| now.duration_since(made).unsigned_abs() > life);
    match () {
        () if object::is_deleting(object) => Step::Nothing,
        () if old => Step::Delete,
        () if approved && !over && text(object, "/spec/signerName") == CLIENT_SIGNER => Step::Sign,
        () => Step::Nothing,
    }
}

/// The certificate for an approved request, or why there is none.
fn signed(ca: &Ca, object: &Value, now: SystemTime) -> Result<String, String> {
    let usages = texts(object, "/spec/usages");
    let known = |usage: &&str| CLIENT_USAGES.iter().find(|(name, _)| name == usage);
    if let Some(usage) = usages.iter().find(|usage| known(usage).is_none()) {
        return Err(format!(
            "{CLIENT_SIGNER} gives no certificate for the usage {usage:?}"
        ));
    }
    if !usages.contains(&"client auth") {
        return Err(format!("{CLIENT_SIGNER} needs the usage \"client auth\""));
    }
    let pem = request_pem(object)?;
    let subject = subject(&pem)?;
    if subject.common_names.len() != 1 || subject.common_names.iter().any(String::is_empty) {
        return Err("the subject must have exactly one common name".to_owned());
    }
    if subject.organizations.len() > 1 {
        return Err("the subject may have one organization at most".to_owned());
    }
    let wanted = object
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64)
        .map(|seconds| seconds.max(LIFE_SECONDS_MIN).unsigned_abs());
    let life = wanted.map_or(CERTIFICATE_LIFE, Duration::from_secs);
    let key_usages = usages
        .iter()
        .filter_map(known)
        .filter_map(|(_, usage)| *usage)
        .collect();
    ca.sign_client(&pem, key_usages, now, life.min(CERTIFICATE_LIFE))
        .map_err(|error| error.to_string())
}

/// Signs and sweeps, for as long as the server runs.
pub async fn run(region: Arc<Region>, ca: Arc<Ca>) -> StoreError {
    let Some(kind) = region.kinds.find(GROUP, "v1", REQUESTS).cloned() else {
        return region.store.stopped().await;
    };
    let Some((_, mut cursor)) = region.cache.list_and_watch(kind.id, None) else {
        return region.store.stopped().await;
    };
    loop {
        for entry in region.cache.list(kind.id, None).entries {
            let object = entry.value();
            let done = match step(&object, jiff::Timestamp::now()) {
                Step::Sign => sign(&region, &kind, &ca, &object).await,
                Step::Delete => sweep(&region, &kind, entry.name()).await,
                Step::Nothing => Ok(()),
            };
            if let Err(failure) = done {
                tracing::warn!(request = entry.name(), failure = %failure.message, "certificate signing request: will be tried again");
            }
        }
        if let crate::cache::Turn::Lagged = region.cache.turn(&mut cursor)
            && let Some((_, fresh)) = region.cache.list_and_watch(kind.id, None)
        {
            cursor = fresh;
        }
        tokio::select! {
            () = region.cache.ready(&mut cursor) => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn sign(region: &Arc<Region>, kind: &Arc<Kind>, ca: &Ca, object: &Value) -> Outcome<()> {
    let user = User::server();
    let name = object::metadata_text(object, "name");
    let place = ("", name, Part::Status);
    let write = Write::new(region, kind, place, &user, &Query::default(), "apiserver")?;
    let result = signed(ca, object, SystemTime::now());
    if let Err(why) = &result {
        tracing::info!(request = name, why, "not signed");
    }
    let written = write.change(|live| {
        let live = live.ok_or_else(|| write.not_found())?;
        // Somebody was faster, or this is another request of the same name.
        let same =
            object::metadata_text(&live.value, "uid") == object::metadata_text(object, "uid");
        let mut new = live.value.clone();
        if same && step(&live.value, jiff::Timestamp::now()) == Step::Sign {
            record(&mut new, &result);
        }
        Ok(Proposal {
            object: new,
            warnings: Vec::new(),
            track: true,
        })
    });
    match written.await {
        Ok(_) => Ok(()),
        Err(failure) if failure.reason == Reason::NotFound => Ok(()),
        Err(failure) => Err(failure),
    }
}

fn record(object: &mut Value, result: &Result<String, String>) {
    let mut all = conditions(object);
    let Some(map) = object.as_object_mut() else {
        return;
    };
    let status = map.entry("status").or_insert_with(|| json!({}));
    let Some(status) = status.as_object_mut() else {
        return;
    };
    match result {
        Ok(pem) => {
            status.insert("certificate".into(), json!(STANDARD.encode(pem)));
        }
        Err(why) => {
            all.push(json!({
                "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why,
            }));
            status.insert("conditions".into(), json!(all));
        }
    }
}

async fn sweep(region: &Arc<Region>, kind: &Arc<Kind>, name: &str) -> Outcome<()> {
    let user = User::server();
    let place = ("", name, Part::Main);
    let write = Write::new(region, kind, place, &user, &Query::default(), "apiserver")?;
    match write.delete(&DeleteOptions::default()).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.reason == Reason::NotFound => Ok(()),
        Err(failure) => Err(failure),
    }
}

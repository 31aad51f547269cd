//! Bearer tokens of service accounts: JSON Web Tokens (RFC 7519) signed by this region with HMAC-SHA256 (RFC 7518 section 3.2).
//!
//! Only this server issues and checks them, so a symmetric key suffices; it is derived from the region CA's key. A token names its
//! account by uid and dies with it. `TokenRequest` issues one, `TokenReview` tells whose it is, and a request may carry one instead
//! of a client certificate.

use super::{User, bootstrap_token};
use crate::handler::Call;
use crate::region::Region;
use crate::status::{Cause, Failure, Outcome};
use crate::store::At;
use crate::wire::Reply;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap};
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// Who speaks in our tokens.
pub const ISSUER: &str = "https://openkcm.dev";
/// Audience of a token that is meant for this server.
pub const AUDIENCE: &str = ISSUER;
/// Shortest life that a client may ask for.
pub const LIFE_MIN: Duration = Duration::from_secs(600);
/// Longest life that is given.
pub const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
const LIFE_DEFAULT: Duration = Duration::from_secs(3600);
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// The only header our tokens have. Comparing it as text leaves no choice of algorithm to the sender.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    /// Seconds since 1970.
    pub exp: u64,
    pub iat: u64,
    pub nbf: u64,
    #[serde(rename = "kubernetes.io")]
    pub account: Account,
}

/// The account that a token belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Account {
    pub fn user_name(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    pub fn user(&self) -> User {
        let groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", self.namespace),
        ];
        User::new(self.user_name(), groups)
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("not a token of this server")]
    Foreign,
    #[error("token has expired")]
    Expired,
    #[error("token is not valid yet")]
    Early,
    #[error("token audiences are not accepted here")]
    Audience,
    #[error("the service account of the token is gone")]
    Account,
}

/// Issues and checks tokens.
#[derive(Debug)]
pub struct Tokens(hmac::Key);

impl Tokens {
    pub fn new(secret: &[u8; 32]) -> Tokens {
        Tokens(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    pub fn issue(&self, claims: &Claims) -> Result<String, serde_json::Error> {
        let payload = serde_json::to_vec(claims)?;
        let signed = format!("{}.{}", BASE64.encode(HEADER), BASE64.encode(payload));
        let signature = hmac::sign(&self.0, signed.as_bytes());
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }

    /// Checks signature and times; audience and account are the caller's to check.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Foreign)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Foreign)?;
        if token.len() > TOKEN_BYTES_MAX || header != BASE64.encode(HEADER) {
            return Err(TokenError::Foreign);
        }
        let signature = BASE64.decode(signature).map_err(|_| TokenError::Foreign)?;
        // Compares in constant time.
        hmac::verify(&self.0, signed.as_bytes(), &signature).map_err(|_| TokenError::Foreign)?;
        let payload = BASE64.decode(payload).map_err(|_| TokenError::Foreign)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenError::Foreign)?;
        match () {
            () if claims.iss != ISSUER => Err(TokenError::Foreign),
            () if now >= claims.exp => Err(TokenError::Expired),
            () if now < claims.nbf => Err(TokenError::Early),
            () => Ok(claims),
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The user of a request's bearer token, if it has one.
pub fn authenticate(region: &Region, headers: &HeaderMap) -> Outcome<Option<User>> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| Failure::unauthorized())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(Failure::unauthorized)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Failure::unauthorized());
    }
    if let Some((id, secret)) = bootstrap_token::parse(token.trim()) {
        let user = bootstrap_token::user(region, id, secret, jiff::Timestamp::now());
        return user.map(Some).ok_or_else(Failure::unauthorized);
    }
    match check(region, token.trim(), &[AUDIENCE.to_owned()]) {
        Ok((claims, _)) => Ok(Some(claims.account.user())),
        Err(error) => {
            tracing::debug!(%error, "bearer token refused");
            Err(Failure::unauthorized())
        }
    }
}

/// Checks a token in full; tells which of the wanted audiences it has.
fn check(
    region: &Region,
    token: &str,
    wanted: &[String],
) -> Result<(Claims, Vec<String>), TokenError> {
    let tokens = region.tokens.get().ok_or(TokenError::Foreign)?;
    let claims = tokens.verify(token, now())?;
    let shared: Vec<String> = wanted
        .iter()
        .filter(|audience| claims.aud.contains(audience))
        .cloned()
        .collect();
    if shared.is_empty() {
        return Err(TokenError::Audience);
    }
    let Account {
        namespace,
        name,
        uid,
    } = &claims.account;
    let kind = region
        .kinds
        .find("", "v1", "serviceaccounts")
        .ok_or(TokenError::Account)?;
    let entry = region.cache.get(kind.id, &format!("{namespace}/{name}"));
    let alive = entry.is_some_and(|entry| *entry.uid == **uid);
    if alive {
        Ok((claims, shared))
    } else {
        Err(TokenError::Account)
    }
}

/// Status of a `TokenReview`.
pub(crate) fn review(region: &Region, review: &Value) -> Value {
    let token = review
        .pointer("/spec/token")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mut wanted = texts(review, "/spec/audiences");
    if wanted.is_empty() {
        wanted.push(AUDIENCE.to_owned());
    }
    match check(region, token, &wanted) {
        Ok((claims, audiences)) => {
            let user = claims.account.user();
            json!({
                "authenticated": true,
                "user": { "username": user.name, "uid": claims.account.uid, "groups": user.groups },
                "audiences": audiences,
            })
        }
        Err(error) => json!({ "authenticated": false, "error": error.to_string() }),
    }
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Answers a `TokenRequest` for the account `namespace`/`name`.
pub(crate) async fn request(
    call: &Call<'_>,
    namespace: &str,
    name: &str,
    mut request: Value,
) -> Outcome<Reply> {
    let region = call.region;
    let life = life(&request, name)?;
    if request
        .pointer("/spec/boundObjectRef")
        .is_some_and(|bound| !bound.is_null())
    {
        return Err(Failure::bad_request(
            "tokens bound to other objects are not supported",
        ));
    }
    let mut aud = texts(&request, "/spec/audiences");
    if aud.is_empty() {
        aud.push(AUDIENCE.to_owned());
    }
    let uid = account_uid(region, namespace, name).await?;
    let account = Account {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid,
    };
    let iat = now();
    let exp = iat + life.as_secs();
    let sub = account.user_name();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        sub,
        aud: aud.clone(),
        exp,
        iat,
        nbf: iat,
        account,
    };
    let tokens = region
        .tokens
        .get()
        .ok_or_else(|| Failure::internal("no key to sign tokens with"))?;
    let token = tokens
        .issue(&claims)
        .map_err(|error| Failure::internal(error.to_string()))?;
    let until = i64::try_from(exp)
        .ok()
        .and_then(|exp| jiff::Timestamp::from_second(exp).ok());
    let until = until.map(|until| until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    if let Some(map) = request.as_object_mut() {
        map.insert("apiVersion".into(), "authentication.k8s.io/v1".into());
        map.insert("kind".into(), "TokenRequest".into());
        map.insert(
            "metadata".into(),
            json!({ "name": name, "namespace": namespace }),
        );
        map.insert(
            "spec".into(),
            json!({ "audiences": aud, "expirationSeconds": life.as_secs() }),
        );
        map.insert(
            "status".into(),
            json!({ "token": token, "expirationTimestamp": until }),
        );
    }
    Ok(Reply::value(StatusCode::CREATED, &request))
}

fn life(request: &Value, name: &str) -> Outcome<Duration> {
    let seconds = request
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64);
    let life = match seconds {
        None => return Ok(LIFE_DEFAULT),
        Some(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
    };
    if life < LIFE_MIN {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!(
                "Invalid value: {}: may not specify a duration less than 10 minutes",
                life.as_secs()
            ),
            field: "spec.expirationSeconds".into(),
        };
        return Err(Failure::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            name,
            vec![cause],
        ));
    }
    Ok(life.min(LIFE_MAX))
}

/// The uid of an account, from the store: it may have been made a moment ago.
async fn account_uid(region: &Region, namespace: &str, name: &str) -> Outcome<String> {
    let missing = || Failure::not_found("", "serviceaccounts", name);
    let kind = region
        .kinds
        .find("", "v1", "serviceaccounts")
        .ok_or_else(missing)?;
    let kv = region
        .store
        .get(&kind.key(namespace, name), At::Latest)
        .await?
        .ok_or_else(missing)?;
    let key = format!("{namespace}/{name}");
    let entry = crate::cache::Entry::from_kv(kv, &key).ok_or_else(missing)?;
    Ok(entry.uid.to_string())
}

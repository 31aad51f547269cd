//! Bootstrap tokens, `abcdef.0123456789abcdef`: secrets of type `bootstrap.kubernetes.io/token` in `kube-system` that let a part
//! that has nothing yet ask for its first certificate. As in Kubernetes: the secret is named `bootstrap-token-<id>`, holds
//! `token-id`, `token-secret`, optionally `expiration`, says `usage-bootstrap-authentication: "true"`, and `auth-extra-groups`
//! names groups below `system:bootstrappers:`.

use super::User;
use crate::region::Region;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Everybody with a bootstrap token belongs to this group.
pub const GROUP: &str = "system:bootstrappers";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;

/// Id and secret of something that looks like a bootstrap token.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let plain = |text: &str| {
        let mut bytes = text.bytes();
        bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let (id, secret) = token.split_once('.')?;
    let fits = id.len() == ID_BYTES && secret.len() == SECRET_BYTES;
    (fits && plain(id) && plain(secret)).then_some((id, secret))
}

/// The user of a bootstrap token; none if there is no such token, or no longer.
pub fn user(region: &Region, id: &str, secret: &str, now: jiff::Timestamp) -> Option<User> {
    let kind = region.kinds.find("", "v1", "secrets")?;
    let entry = region
        .cache
        .get(kind.id, &format!("kube-system/bootstrap-token-{id}"))?;
    let document = entry.value();
    if crate::object::is_deleting(&document)
        || document.get("type").and_then(Value::as_str) != Some(SECRET_TYPE)
    {
        return None;
    }
    let data = |key: &str| {
        let coded = document.get("data")?.get(key)?.as_str()?;
        String::from_utf8(STANDARD.decode(coded).ok()?).ok()
    };
    // The digests are compared, so that the time taken says nothing about the secret.
    let digest = |text: &str| ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let known = digest(&data("token-secret")?);
    let right = known.as_ref() == digest(secret).as_ref()
        && data("token-id").as_deref() == Some(id)
        && data("usage-bootstrap-authentication").as_deref() == Some("true");
    let over = data("expiration").is_some_and(|text| {
        // One that nobody can read has ended.
        let end = text.parse::<jiff::Timestamp>();
        end.map_or(true, |end| end <= now)
    });
    if !right || over {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',') {
        match group.trim() {
            "" => {}
            group if is_bootstrap_group(group) => groups.push(group.to_owned()),
            // A token with a group that it may not have is a mistake, and good for nothing.
            _ => return None,
        }
    }
    Some(User::new(format!("system:bootstrap:{id}"), groups))
}

fn is_bootstrap_group(group: &str) -> bool {
    let rest = group.strip_prefix("system:bootstrappers:");
    rest.is_some_and(|rest| {
        let fits = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b':' | b'-')
        };
        rest.bytes().all(fits) && rest.ends_with(|last: char| last.is_ascii_alphanumeric())
    })
}

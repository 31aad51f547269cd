//! Rules of `ipam.openkcm.dev`.

use serde_json::Value;

use super::{
    At, Errors, dns_subdomain, immutable, label_selector, reference, same, set_once, template_meta,
};
use crate::field::FieldError;
use crate::meta::{IpFamily, IpPrefix};

/// A new Prefix.
pub fn prefix(object: &Value) -> Errors {
    let mut errors = Vec::new();
    prefix_spec(&At::root(object).field("spec"), &mut errors);
    errors
}

/// A changed Prefix.
pub fn prefix_update(new: &Value, old: &Value) -> Errors {
    let mut errors = prefix(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, &["ipFamily", "parentSelector"], &mut errors);
    set_once(
        &new,
        &old,
        &["prefix", "prefixLength", "parentRef"],
        &mut errors,
    );
    let was_root = old.is_present()
        && !old.field("parentRef").is_present()
        && !old.field("parentSelector").is_present();
    let parent = new.field("parentRef");
    if was_root && parent.is_present() {
        errors.push(FieldError::forbidden(
            parent.path,
            "a root prefix cannot get a parent",
        ));
    }
    errors
}

/// A changed status of a Prefix; `new` holds the old spec.
pub fn prefix_status(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let root = At::root(new);
    let (spec, status) = (root.field("spec"), root.field("status"));
    let (phase, used) = (status.field("phase"), status.field("used"));
    let allocated = phase.text() == "Allocated";
    if At::root(old).field("status").field("phase").text() == "Allocated" && !allocated {
        errors.push(FieldError::forbidden(
            phase.path,
            "may not leave phase Allocated",
        ));
    }
    if !used.is_empty() && !allocated {
        let detail = "may only be set while phase is Allocated";
        errors.push(FieldError::invalid(
            used.path.clone(),
            used.value.cloned().unwrap_or_default(),
            detail,
        ));
    }
    let own = spec.field("prefix");
    if allocated {
        if own.is_empty() {
            errors.push(FieldError::required(
                own.path.clone(),
                "must be set when allocated",
            ));
        }
        let parent = spec.field("parentRef");
        if spec.field("parentSelector").is_present() && !parent.is_present() {
            errors.push(FieldError::required(
                parent.path,
                "must be set when allocated",
            ));
        }
    }
    used_prefixes(&used, &own, &mut errors);
    errors
}

fn used_prefixes(used: &At<'_>, own: &At<'_>, errors: &mut Errors) {
    let parsed: Vec<_> = used
        .items()
        .filter_map(|item| Some((item.prefix()?, item)))
        .collect();
    let family = parsed.first().map(|(first, _)| first.family());
    let own_prefix = own.prefix();
    for (prefix, item) in &parsed {
        if family.is_some_and(|family| family != prefix.family()) {
            let detail = "all used prefixes must be of one address family";
            errors.push(FieldError::invalid(item.path.clone(), item.text(), detail));
        }
        if own_prefix.is_some_and(|own| !own.contains(*prefix)) {
            let detail = format!("not contained in {}", own.text());
            errors.push(FieldError::forbidden(item.path.clone(), detail));
        }
    }
    // Prefixes are nested or disjoint, so in order of address an overlap is one with the widest prefix so far that has not ended.
    let mut order: Vec<(usize, IpPrefix)> = parsed
        .iter()
        .map(|(prefix, _)| *prefix)
        .enumerate()
        .collect();
    order.sort_by_key(|(_, prefix)| {
        let masked = prefix.masked();
        (masked.addr(), masked.bits())
    });
    let mut widest: Option<(usize, IpPrefix)> = None;
    for (i, prefix) in order {
        match widest {
            Some((j, other)) if other.overlaps(prefix) => {
                let (first, second) = (i.min(j), i.max(j));
                if let (Some((first, _)), Some((_, item))) = (parsed.get(first), parsed.get(second))
                {
                    let detail = format!("overlaps with {first}");
                    errors.push(FieldError::invalid(item.path.clone(), item.text(), detail));
                }
            }
            Some(_) | None => widest = Some((i, prefix)),
        }
    }
}

/// Spec of a Prefix, also inside templates.
pub fn prefix_spec(spec: &At<'_>, errors: &mut Errors) {
    let (family, prefix, length) = (
        spec.field("ipFamily"),
        spec.field("prefix"),
        spec.field("prefixLength"),
    );
    family_and_value(&family, &prefix, &length, errors);
    let (parent, selector) = (spec.field("parentRef"), spec.field("parentSelector"));
    if !parent.is_present() && !selector.is_present() {
        if prefix.is_empty() {
            errors.push(FieldError::required(
                prefix.path,
                "a root prefix must give its prefix",
            ));
        }
        if let Some(length) = length.int().filter(|length| *length != 0) {
            let detail = "may not be set on a root prefix";
            errors.push(FieldError::invalid(
                format!("{}.prefixLength", spec.path),
                length,
                detail,
            ));
        }
        return;
    }
    if parent.is_present() {
        reference(&parent, dns_subdomain, errors);
    }
    label_selector(&selector, errors);
    let wanted = length.int().filter(|length| *length != 0);
    match (prefix.prefix(), wanted) {
        (None, None) if prefix.is_empty() && length.int().unwrap_or(0) == 0 => {
            let detail = "either prefix or prefixLength must be set";
            errors.push(FieldError::invalid(
                spec.path.clone(),
                spec.value.cloned().unwrap_or_default(),
                detail,
            ));
        }
        (Some(prefix), Some(length)) if i64::from(prefix.bits()) != length => {
            let detail = format!("does not match the length of {prefix}");
            errors.push(FieldError::invalid(
                format!("{}.prefixLength", spec.path),
                length,
                detail,
            ));
        }
        (None | Some(_), None | Some(_)) => {}
    }
}

/// Family, value and length fit together.
fn family_and_value(family: &At<'_>, prefix: &At<'_>, length: &At<'_>, errors: &mut Errors) {
    if family.is_empty() {
        errors.push(FieldError::required(family.path.clone(), ""));
    }
    if let (Some(family), Some(value)) = (family.family(), prefix.prefix())
        && value.family() != family
    {
        let detail = format!("must be an {family} prefix");
        errors.push(FieldError::invalid(
            prefix.path.clone(),
            prefix.text(),
            detail,
        ));
    }
    let longest = family.family().unwrap_or(IpFamily::IPv6).bits();
    if let Some(n) = length.int().filter(|n| *n < 0 || *n > i64::from(longest)) {
        let detail = format!("must be greater than 0 and at most {longest}");
        errors.push(FieldError::invalid(length.path.clone(), n, detail));
    }
}

/// Template of a Prefix that gives `owner` one address or one prefix.
///
/// `single` holds the family of the owner when the template must yield exactly one address.
pub fn prefix_template(template: &At<'_>, single: Option<Option<IpFamily>>, errors: &mut Errors) {
    if !template.is_present() {
        errors.push(FieldError::required(template.path.clone(), ""));
        return;
    }
    template_meta(&template.field("metadata"), errors);
    let spec = template.field("spec");
    prefix_spec(&spec, errors);
    let Some(wanted) = single else { return };
    let family = spec.field("ipFamily");
    if let (Some(wanted), Some(given)) = (wanted, family.family())
        && wanted != given
    {
        errors.push(FieldError::forbidden(
            family.path.clone(),
            format!("must be {wanted}"),
        ));
    }
    let prefix = spec.field("prefix");
    if prefix.prefix().is_some_and(|prefix| !prefix.is_host()) {
        errors.push(FieldError::forbidden(
            prefix.path,
            "must be a single address",
        ));
    }
    let length = spec.field("prefixLength");
    if let (Some(n), Some(family)) = (length.int().filter(|n| *n != 0), family.family())
        && n != i64::from(family.bits())
    {
        errors.push(FieldError::forbidden(
            length.path,
            format!("must be {}", family.bits()),
        ));
    }
}

/// A new PrefixAllocation.
pub fn allocation(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = At::root(object).field("spec");
    let (family, prefix, length) = (
        spec.field("ipFamily"),
        spec.field("prefix"),
        spec.field("prefixLength"),
    );
    family_and_value(&family, &prefix, &length, &mut errors);
    let whole = || spec.value.cloned().unwrap_or_default();
    match (prefix.is_present(), length.int().is_some_and(|n| n != 0)) {
        (true, true) => {
            errors.push(FieldError::forbidden(
                length.path,
                "may not be set together with prefix",
            ));
        }
        (false, false) => {
            let detail = "either prefix or prefixLength must be set";
            errors.push(FieldError::invalid(spec.path.clone(), whole(), detail));
        }
        (true, false) | (false, true) => {}
    }
    let (source, selector) = (spec.field("prefixRef"), spec.field("prefixSelector"));
    if !source.is_present() && !selector.is_present() {
        let detail = "either prefixRef or prefixSelector must be set";
        errors.push(FieldError::invalid(spec.path.clone(), whole(), detail));
    }
    if source.is_present() {
        reference(&source, dns_subdomain, &mut errors);
    }
    label_selector(&selector, &mut errors);
    errors
}

/// A changed PrefixAllocation.
pub fn allocation_update(new: &Value, old: &Value) -> Errors {
    let mut errors = allocation(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(
        &new,
        &old,
        &["ipFamily", "prefix", "prefixLength", "prefixSelector"],
        &mut errors,
    );
    set_once(&new, &old, &["prefixRef"], &mut errors);
    errors
}

/// A changed status of a PrefixAllocation; `new` holds the old spec.
pub fn allocation_status(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let root = At::root(new);
    let (spec, status) = (root.field("spec"), root.field("status"));
    let (phase, result) = (status.field("phase"), status.field("prefix"));
    let before = At::root(old).field("status");
    let was = before.field("phase").text();
    if matches!(was, "Allocated" | "Failed") && phase.text() != was {
        errors.push(FieldError::forbidden(
            phase.path.clone(),
            format!("may not leave phase {was}"),
        ));
    }
    if was == "Allocated" && !same(&result, &before.field("prefix")) {
        errors.push(FieldError::forbidden(result.path.clone(), super::IMMUTABLE));
    }
    if phase.text() != "Allocated" {
        if !result.is_empty() {
            errors.push(FieldError::forbidden(
                result.path,
                "may only be set in phase Allocated",
            ));
        }
        return errors;
    }
    let Some(given) = result.prefix() else {
        if result.is_empty() {
            errors.push(FieldError::required(
                result.path,
                "must be set in phase Allocated",
            ));
        }
        return errors;
    };
    if spec
        .field("ipFamily")
        .family()
        .is_some_and(|family| family != given.family())
    {
        let detail = format!("must be of family {}", spec.field("ipFamily").text());
        errors.push(FieldError::invalid(
            result.path.clone(),
            result.text(),
            detail,
        ));
    }
    let mut forbid =
        |detail: String| errors.push(FieldError::forbidden(result.path.clone(), detail));
    if spec
        .field("prefix")
        .prefix()
        .is_some_and(|wanted| wanted != given)
    {
        forbid(format!(
            "must be the requested {}",
            spec.field("prefix").text()
        ));
    }
    if let Some(length) = spec.field("prefixLength").int()
        && length != 0
        && length != i64::from(given.bits())
    {
        forbid(format!("must have the requested length {length}"));
    }
    if !spec.field("prefixRef").is_present() {
        forbid("spec.prefixRef must be set first".into());
    }
    errors
}

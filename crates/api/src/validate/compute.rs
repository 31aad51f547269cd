//! Rules of `compute.openkcm.dev`.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    At, Errors, dns_label, dns_subdomain, immutable, networking, object_name, reference, set_once,
    syntax,
};
use crate::field::FieldError;
use crate::{ids, quantity};

/// A new Machine.
pub fn machine(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let name = object_name(object);
    let spec = At::root(object).field("spec");
    reference(&spec.field("machineClassRef"), dns_subdomain, &mut errors);
    let pool = spec.field("machinePoolRef");
    if pool.is_present() {
        reference(&pool, dns_subdomain, &mut errors);
    }
    for entry in spec.field("networkInterfaces").items() {
        syntax(&entry.field("name"), dns_subdomain, &mut errors);
        interface_source(&entry, name, &mut errors);
    }
    let mut devices = HashSet::new();
    for volume in spec.field("volumes").items() {
        syntax(&volume.field("name"), dns_label, &mut errors);
        let device = volume.field("device");
        if !device.is_empty() && !devices.insert(device.text()) {
            errors.push(FieldError::duplicate(device.path.clone(), device.text()));
        }
        match (
            volume.field("volumeRef").is_present(),
            volume.field("localDisk").is_present(),
        ) {
            (true, true) => {
                let detail = "may not specify more than one volume source";
                errors.push(FieldError::forbidden(
                    volume.field("localDisk").path,
                    detail,
                ));
            }
            (false, false) => {
                let detail = "must specify at least one volume source";
                errors.push(FieldError::invalid(
                    volume.path.clone(),
                    volume.value.cloned().unwrap_or_default(),
                    detail,
                ));
            }
            (true, false) | (false, true) => {}
        }
    }
    let hostname = spec.field("guestConfig").field("hostname");
    if !hostname.is_empty() {
        syntax(&hostname, dns_label, &mut errors);
    }
    errors
}

fn interface_source(entry: &At<'_>, machine: &str, errors: &mut Errors) {
    let (existing, ephemeral) = (entry.field("networkInterfaceRef"), entry.field("ephemeral"));
    match (existing.is_present(), ephemeral.is_present()) {
        (true, true) => {
            let detail = "may not specify more than one network interface source";
            errors.push(FieldError::forbidden(ephemeral.path, detail));
        }
        (false, false) => {
            let detail = "must specify at least one network interface source";
            errors.push(FieldError::invalid(
                entry.path.clone(),
                entry.value.cloned().unwrap_or_default(),
                detail,
            ));
        }
        (true, false) => reference(&existing, dns_subdomain, errors),
        (false, true) => {
            let template = ephemeral.field("networkInterfaceTemplate");
            if !template.is_present() {
                errors.push(FieldError::required(template.path, ""));
                return;
            }
            super::meta::labels_and_annotations(&template.field("metadata"), errors);
            let nic = match machine {
                "" => String::new(),
                machine => ids::ephemeral_nic_name(machine, entry.field("name").text()),
            };
            networking::nic_spec(&template.field("spec"), &nic, errors);
        }
    }
}

/// A changed Machine.
pub fn machine_update(new: &Value, old: &Value) -> Errors {
    let mut errors = machine(new);
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    immutable(&new, &old, &["machineClassRef"], &mut errors);
    set_once(&new, &old, &["machinePoolRef"], &mut errors);
    immutable(
        &new.field("guestConfig"),
        &old.field("guestConfig"),
        &["hostname"],
        &mut errors,
    );
    errors
}

/// A new MachineClass.
pub fn machine_class(object: &Value) -> Errors {
    let mut errors = Vec::new();
    let capabilities = At::root(object).field("capabilities");
    for name in ["cpu", "memory"] {
        let field = capabilities.field(name);
        if !field.is_present() {
            errors.push(FieldError::required(field.path, ""));
        }
    }
    for (name, value) in capabilities.entries() {
        let path = format!("{}.{name}", capabilities.path);
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        match quantity::parse(&text) {
            None => errors.push(FieldError::invalid(
                path,
                value.clone(),
                "must be a quantity",
            )),
            Some(amount) if amount <= 0 => {
                errors.push(FieldError::invalid(
                    path,
                    value.clone(),
                    "must be greater than zero",
                ));
            }
            Some(_) => {}
        }
    }
    errors
}

/// A changed MachineClass.
pub fn machine_class_update(new: &Value, old: &Value) -> Errors {
    let mut errors = machine_class(new);
    immutable(
        &At::root(new),
        &At::root(old),
        &["capabilities"],
        &mut errors,
    );
    errors
}

/// A new MachinePool.
pub fn machine_pool(_object: &Value) -> Errors {
    Vec::new()
}

/// A changed MachinePool.
pub fn machine_pool_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let (new, old) = (At::root(new).field("spec"), At::root(old).field("spec"));
    set_once(&new, &old, &["providerID"], &mut errors);
    errors
}

//! Objects in files: the form that `-o json` and `-o yaml` print.

use super::CliError;
use super::args::{Create, CreateInterface, CreatePrefix, CreateRoute, Delete, Prefix};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Objects in one call at most.
const OBJECTS_MAX: usize = 10_000;

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Manifest {
    Interface {
        metadata: InterfaceMeta,
        spec: InterfaceSpec,
    },
    Prefix {
        metadata: PrefixMeta,
        spec: PrefixSpec,
    },
    Route {
        metadata: RouteMeta,
        spec: RouteSpec,
    },
}

#[derive(Deserialize)]
struct InterfaceMeta {
    id: String,
}

#[derive(Deserialize)]
struct PrefixMeta {
    interface_id: String,
}

#[derive(Deserialize)]
struct RouteMeta {
    vni: u32,
}

#[derive(Deserialize)]
struct InterfaceSpec {
    vni: u32,
    device: String,
    primary_ipv4: Option<Ipv4Addr>,
    primary_ipv6: Option<Ipv6Addr>,
    underlay_route: Option<Ipv6Addr>,
    #[serde(default)]
    pxe: PxeSpec,
    #[serde(default)]
    metering: MeteringSpec,
    #[serde(default)]
    hostname: String,
}

#[derive(Default, Deserialize)]
struct PxeSpec {
    #[serde(default)]
    next_server: String,
    #[serde(default)]
    boot_filename: String,
}

#[derive(Default, Deserialize)]
struct MeteringSpec {
    #[serde(default)]
    total_rate: u64,
    #[serde(default)]
    public_rate: u64,
}

#[derive(Deserialize)]
struct PrefixSpec {
    prefix: String,
    underlay_route: Option<Ipv6Addr>,
}

#[derive(Deserialize)]
struct RouteSpec {
    prefix: String,
    next_hop: Option<NextHop>,
}

#[derive(Deserialize)]
struct NextHop {
    vni: u32,
    address: IpAddr,
}

impl Create {
    /// Kind and name.
    pub(super) fn identity(&self) -> (&'static str, String) {
        match self {
            Create::Interface(args) => ("Interface", args.id.clone()),
            Create::Prefix(args) => ("Prefix", args.prefix.to_string()),
            Create::Route(args) => ("Route", args.prefix.to_string()),
        }
    }

    pub(super) fn into_delete(self) -> Delete {
        match self {
            Create::Interface(args) => Delete::Interface { id: args.id },
            Create::Prefix(args) => Delete::Prefix {
                prefix: args.prefix,
                interface_id: args.interface_id,
            },
            Create::Route(args) => Delete::Route {
                prefix: args.prefix,
                vni: args.vni,
            },
        }
    }
}

/// Reads all objects of files and of the files in directories, in order.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Create>, CliError> {
    let mut objects = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = std::fs::read_to_string(&file).map_err(|error| at(&file, &error))?;
            for document in documents(&text) {
                let manifest: Manifest =
                    serde_saphyr::from_str(document).map_err(|error| at(&file, &error))?;
                objects.push(convert(manifest).map_err(|error| at(&file, &error))?);
                if objects.len() > OBJECTS_MAX {
                    return Err(CliError::client(format!("more than {OBJECTS_MAX} objects")));
                }
            }
        }
    }
    Ok(objects)
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::client(format!("{}: {error}", path.display()))
}

fn files(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| at(path, &error))?;
    let mut found = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| at(path, &error))?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("json" | "yaml" | "yml")) {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

/// YAML documents of a text; JSON is one of them.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n---")
        .map(|document| document.trim_start_matches("---"))
        .filter(|document| {
            document
                .lines()
                .any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        })
}

fn convert(manifest: Manifest) -> Result<Create, String> {
    let prefix = |text: String| {
        text.parse::<Prefix>()
            .map_err(|error| format!("{text}: {error}"))
    };
    Ok(match manifest {
        Manifest::Interface { metadata, spec } => Create::Interface(CreateInterface {
            id: metadata.id,
            vni: spec.vni,
            ipv4: spec.primary_ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            ipv6: spec.primary_ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED),
            device: spec.device,
            underlay: spec.underlay_route,
            pxe_server: spec.pxe.next_server,
            pxe_file_name: spec.pxe.boot_filename,
            total_meter_rate: spec.metering.total_rate,
            public_meter_rate: spec.metering.public_rate,
            hostname: spec.hostname,
        }),
        Manifest::Prefix { metadata, spec } => Create::Prefix(CreatePrefix {
            prefix: prefix(spec.prefix)?,
            interface_id: metadata.interface_id,
            underlay: spec.underlay_route,
        }),
        Manifest::Route { metadata, spec } => {
            let hop = spec.next_hop.ok_or("spec.next_hop is missing")?;
            Create::Route(CreateRoute {
                prefix: prefix(spec.prefix)?,
                next_hop_vni: hop.vni,
                next_hop_ip: hop.address,
                vni: metadata.vni,
            })
        }
    })
}

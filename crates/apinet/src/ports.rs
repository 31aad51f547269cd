//! Port blocks of a NAT gateway: who gets which. A pure function of the addresses, the table so far and the interfaces.
//!
//! Slot k of an address is the ports `1024 + k·p` to `1024 + (k+1)·p − 1`. A block that fits the grid stays where it is as long as
//! its interface exists and its address is listed: adding addresses or interfaces moves nobody. A new interface gets the lowest free
//! slot of the first address that takes new ones. A slot that some data plane still reports is not free, whoever had it.
//! A block that must move stays in the table until its interface has let go of it, and only then the interface gets another one.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    apinet::{NAT_PORT_FIRST, NAT_PORTS, NatTableIp, NatTableSection, TargetReference},
    meta::Ip,
};

/// An address of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: Ip,
    /// Nobody new gets a slot here.
    pub draining: bool,
}

/// An interface that wants a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    pub target: TargetReference,
    /// Its address in the network.
    pub ip: Ip,
}

/// Ports that a data plane still uses, by whoever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    pub uid: String,
    pub ip: Ip,
    pub port: i32,
    pub end_port: i32,
}

/// Blocks of one address.
pub fn slots(ports: i32) -> i32 {
    if ports < 1 { 0 } else { NAT_PORTS / ports }
}

/// The slot of a block on the grid of `ports`; nothing if it does not lie on it.
fn slot(port: i32, end_port: i32, ports: i32) -> Option<i32> {
    let offset = port.checked_sub(i32::from(NAT_PORT_FIRST))?;
    let on_grid = ports > 0
        && offset >= 0
        && offset % ports == 0
        && end_port.checked_sub(port) == Some(ports - 1);
    (on_grid && offset / ports < slots(ports)).then(|| offset / ports)
}

fn block(slot: i32, ports: i32) -> (i32, i32) {
    let port = i32::from(NAT_PORT_FIRST) + slot * ports;
    (port, port + ports - 1)
}

/// What comes of the wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The table, sorted by address and port.
    pub rows: Vec<NatTableIp>,
    /// The interfaces that may use their block, by uid. The others in the table must let go of theirs.
    pub served: BTreeSet<String>,
}

/// Who is where: address and slot by uid of the interface.
type Places = BTreeMap<String, (Ip, i32)>;

/// Gives every interface its block, as far as there are any. `wants` are served in order of their uid. `is_tied` says of an
/// interface and its block whether a data plane may still have it, or may still be given it.
pub fn assign(
    addresses: &[Address],
    ports: i32,
    table: &[NatTableIp],
    wants: &[Want],
    reported: &[Reported],
    is_tied: impl Fn(&str, Ip, &NatTableSection) -> bool,
) -> Assigned {
    let wanted: BTreeMap<&str, &Want> = wants
        .iter()
        .map(|want| (want.target.uid.as_str(), want))
        .collect();
    let mut places = keep(addresses, ports, table, &wanted);
    let leaving = leaving(ports, table, &places, is_tied);
    let tied: Vec<Reported> = leaving
        .iter()
        .map(|(ip, section)| tie(*ip, section))
        .collect();
    let leavers: BTreeSet<&str> = tied.iter().map(|one| one.uid.as_str()).collect();
    let mut used: BTreeSet<(Ip, i32)> = places.values().copied().collect();
    let mut busy: BTreeMap<Ip, Vec<&Reported>> = BTreeMap::new();
    for one in reported.iter().chain(&tied) {
        busy.entry(one.ip).or_default().push(one);
    }
    // Slots below these are taken: they are only ever taken while assigning.
    let mut lowest: BTreeMap<Ip, i32> = BTreeMap::new();
    for uid in wanted.keys() {
        if places.contains_key(*uid) || leavers.contains(uid) {
            continue;
        }
        let others = |ip: Ip, slot: i32| {
            let (first, last) = block(slot, ports);
            let mut there = busy.get(&ip).into_iter().flatten();
            there.any(|one| one.uid != **uid && one.port <= last && first <= one.end_port)
        };
        let open = addresses.iter().filter(|address| !address.draining);
        let found = open.into_iter().find_map(|address| {
            let from = lowest.get(&address.ip).copied().unwrap_or(0);
            let free =
                |slot: &i32| !used.contains(&(address.ip, *slot)) && !others(address.ip, *slot);
            Some((address.ip, (from..slots(ports)).find(free)?))
        });
        if let Some((ip, slot)) = found {
            used.insert((ip, slot));
            // What others still report below this slot may be skipped for us alone; only what is used is skipped for all.
            let next = lowest.entry(ip).or_insert(0);
            while used.contains(&(ip, *next)) {
                *next += 1;
            }
            places.insert((*uid).to_owned(), (ip, slot));
        }
    }
    let served = places.keys().cloned().collect();
    let rows = emit(addresses, ports, &wanted, &places, &leaving);
    Assigned { rows, served }
}

/// Blocks that do not stay, of interfaces that have not let go.
fn leaving(
    ports: i32,
    table: &[NatTableIp],
    places: &Places,
    is_tied: impl Fn(&str, Ip, &NatTableSection) -> bool,
) -> Vec<(Ip, NatTableSection)> {
    let all = table
        .iter()
        .flat_map(|row| row.sections.iter().map(|section| (row.ip, section)));
    let left = all.filter(|(ip, section)| {
        let target = section.target_ref.as_ref();
        let uid = target.map_or("", |target| target.uid.as_str());
        let place = slot(section.port, section.end_port, ports).map(|slot| (*ip, slot));
        let stays = place.is_some() && places.get(uid).copied() == place;
        !stays && is_tied(uid, *ip, section)
    });
    left.map(|(ip, section)| (ip, section.clone())).collect()
}

fn tie(ip: Ip, section: &NatTableSection) -> Reported {
    let target = section.target_ref.as_ref();
    Reported {
        uid: target.map_or_else(String::new, |target| target.uid.clone()),
        ip,
        port: section.port,
        end_port: section.end_port,
    }
}

/// The blocks of the table that stay.
fn keep(
    addresses: &[Address],
    ports: i32,
    table: &[NatTableIp],
    wanted: &BTreeMap<&str, &Want>,
) -> Places {
    let mut places = Places::new();
    let mut used = BTreeSet::new();
    let listed = |ip: Ip| addresses.iter().any(|address| address.ip == ip);
    for row in table.iter().filter(|row| listed(row.ip)) {
        for section in &row.sections {
            let target = section.target_ref.as_ref();
            let uid = target.map(|target| target.uid.as_str()).unwrap_or_default();
            let place = slot(section.port, section.end_port, ports).map(|slot| (row.ip, slot));
            if let (true, Some(place)) = (wanted.contains_key(uid), place)
                && !places.contains_key(uid)
                && used.insert(place)
            {
                places.insert(uid.to_owned(), place);
            }
        }
    }
    places
}

/// The table, sorted by address and port.
fn emit(
    addresses: &[Address],
    ports: i32,
    wanted: &BTreeMap<&str, &Want>,
    places: &Places,
    leaving: &[(Ip, NatTableSection)],
) -> Vec<NatTableIp> {
    let mut rows: BTreeMap<Ip, Vec<NatTableSection>> = addresses
        .iter()
        .map(|address| (address.ip, Vec::new()))
        .collect();
    for (uid, (ip, slot)) in places {
        let (Some(row), Some(want)) = (rows.get_mut(ip), wanted.get(uid.as_str())) else {
            continue;
        };
        let (port, end_port) = block(*slot, ports);
        row.push(NatTableSection {
            ip: want.ip,
            port,
            end_port,
            target_ref: Some(want.target.clone()),
        });
    }
    for (ip, section) in leaving {
        rows.entry(*ip).or_default().push(section.clone());
    }
    rows.into_iter()
        .map(|(ip, mut sections)| {
            sections.sort_by_key(|section| section.port);
            NatTableIp { ip, sections }
        })
        .collect()
}

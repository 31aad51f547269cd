//! Port blocks: never twice, never moved.

use api::{
    apinet::{NatTableIp, NatTableSection, TargetReference},
    meta::LocalObjectReference,
};
use apinet::ports::{self, Address, Reported, Want, slots};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn ip(text: &str) -> api::meta::Ip {
    text.parse().expect("an address")
}

fn target(uid: &str) -> TargetReference {
    TargetReference {
        uid: uid.to_owned(),
        name: format!("nic-{uid}"),
        node_ref: LocalObjectReference::new("lab.n1"),
    }
}

fn want(uid: &str) -> Want {
    Want {
        target: target(uid),
        ip: ip("10.0.0.1"),
    }
}

fn address(last: u8) -> Address {
    Address {
        ip: ip(&format!("203.0.113.{last}")),
        draining: false,
    }
}

/// The table, when everybody lets go at once.
fn assign(
    addresses: &[Address],
    ports: i32,
    table: &[NatTableIp],
    wants: &[Want],
    reported: &[Reported],
) -> Vec<NatTableIp> {
    ports::assign(addresses, ports, table, wants, reported, |_, _, _| false).rows
}

/// `address:port-end uid` of every section.
fn show(table: &[NatTableIp]) -> Vec<String> {
    let rows = table
        .iter()
        .flat_map(|row| row.sections.iter().map(move |section| (row, section)));
    rows.map(|(row, section)| {
        let uid = section.target_ref.as_ref().map_or("", |target| &target.uid);
        format!("{}:{}-{} {uid}", row.ip, section.port, section.end_port)
    })
    .collect()
}

fn wants(uids: &[&str]) -> Vec<Want> {
    uids.iter().map(|uid| want(uid)).collect()
}

#[test]
fn an_address_has_as_many_slots_as_blocks_fit() {
    let sizes = [
        (2048, 31),
        (64, 1008),
        (1024, 63),
        (64512, 1),
        (32257, 1),
        (2, 32256),
    ];
    for (ports, count) in sizes {
        assert_eq!(slots(ports), count, "{ports}");
    }
    // Sizes that validation refuses are no reason to fall over.
    for ports in [0, -5, 64513, i32::MAX] {
        assert_eq!(slots(ports), 0, "{ports}");
        assert!(show(&assign(&[address(1)], ports, &[], &wants(&["a"]), &[])).is_empty());
    }
}

#[test]
fn the_first_interface_gets_the_first_block_with_its_whole_name() {
    let table = assign(&[address(1)], 64, &[], &wants(&["a"]), &[]);
    let section = NatTableSection {
        ip: ip("10.0.0.1"),
        port: 1024,
        end_port: 1087,
        target_ref: Some(target("a")),
    };
    let row = NatTableIp {
        ip: ip("203.0.113.1"),
        sections: vec![section],
    };
    assert_eq!(table, vec![row]);
}

#[test]
fn full_means_that_the_rest_goes_without() {
    let table = assign(&[address(1)], 32256, &[], &wants(&["a", "b", "c"]), &[]);
    assert_eq!(
        show(&table),
        ["203.0.113.1:1024-33279 a", "203.0.113.1:33280-65535 b"]
    );
    let grown = assign(
        &[address(1), address(2)],
        32256,
        &table,
        &wants(&["a", "b", "c"]),
        &[],
    );
    assert_eq!(
        show(&grown),
        [
            "203.0.113.1:1024-33279 a",
            "203.0.113.1:33280-65535 b",
            "203.0.113.2:1024-33279 c"
        ]
    );
}

#[test]
fn a_draining_address_keeps_its_interfaces_and_gets_none() {
    let table = assign(&[address(1)], 64, &[], &wants(&["a"]), &[]);
    let drained = Address {
        draining: true,
        ..address(1)
    };
    let after = assign(&[drained, address(2)], 64, &table, &wants(&["a", "b"]), &[]);
    assert_eq!(
        show(&after),
        ["203.0.113.1:1024-1087 a", "203.0.113.2:1024-1087 b"]
    );
    assert!(show(&assign(&[drained], 64, &[], &wants(&["b"]), &[])).is_empty());
}

#[test]
fn ports_that_a_data_plane_still_uses_go_to_nobody_else() {
    let reported = [Reported {
        uid: "gone-from-the-table".to_owned(),
        ip: ip("203.0.113.1"),
        // Of an older block size, so it covers two slots of today.
        port: 1100,
        end_port: 1200,
    }];
    let table = assign(&[address(1)], 64, &[], &wants(&["a", "b"]), &reported);
    assert_eq!(
        show(&table),
        ["203.0.113.1:1024-1087 a", "203.0.113.1:1216-1279 b"]
    );
    // Its own report does not keep an interface from its block.
    let own = [Reported {
        uid: "a".to_owned(),
        port: 1024,
        end_port: 1087,
        ..reported[0].clone()
    }];
    let again = assign(&[address(1)], 64, &[], &wants(&["a"]), &own);
    assert_eq!(show(&again), ["203.0.113.1:1024-1087 a"]);
}

#[test]
fn blocks_off_the_grid_and_blocks_given_twice_are_not_kept() {
    let section = |uid: &str, port: i32, end_port: i32| NatTableSection {
        ip: ip("10.0.0.1"),
        port,
        end_port,
        target_ref: Some(target(uid)),
    };
    let table = [NatTableIp {
        ip: ip("203.0.113.1"),
        sections: vec![
            section("a", 1030, 1093),
            section("b", 1088, 1151),
            section("c", 1088, 1151),
            section("d", 960, 1023),
            section("e", 65472, 65599),
        ],
    }];
    let fixed = assign(
        &[address(1)],
        64,
        &table,
        &wants(&["a", "b", "c", "d", "e"]),
        &[],
    );
    assert_eq!(
        show(&fixed),
        [
            "203.0.113.1:1024-1087 a",
            "203.0.113.1:1088-1151 b",
            "203.0.113.1:1152-1215 c",
            "203.0.113.1:1216-1279 d",
            "203.0.113.1:1280-1343 e",
        ]
    );
}

#[test]
fn a_block_that_must_move_stays_until_its_interface_let_go_of_it() {
    let table = assign(&[address(1)], 128, &[], &wants(&["a", "b"]), &[]);
    let smaller = ports::assign(
        &[address(1)],
        64,
        &table,
        &wants(&["a", "b", "c"]),
        &[],
        |uid, _, _| uid == "a",
    );
    // What `a` still has goes to nobody, and `a` itself waits.
    assert_eq!(
        show(&smaller.rows),
        [
            "203.0.113.1:1024-1151 a",
            "203.0.113.1:1152-1215 b",
            "203.0.113.1:1216-1279 c"
        ]
    );
    assert_eq!(
        smaller.served,
        ["b", "c"].map(str::to_owned).into_iter().collect()
    );
    let later = assign(
        &[address(1)],
        64,
        &smaller.rows,
        &wants(&["a", "b", "c"]),
        &[],
    );
    assert_eq!(
        show(&later),
        [
            "203.0.113.1:1024-1087 a",
            "203.0.113.1:1152-1215 b",
            "203.0.113.1:1216-1279 c"
        ]
    );
}

/// Where everybody is, after checking that nobody shares a port.
fn places(table: &[NatTableIp]) -> Result<BTreeMap<String, (String, i32)>, TestCaseError> {
    let mut out = BTreeMap::new();
    for row in table {
        let mut last = 1023;
        for section in &row.sections {
            prop_assert!(
                section.port > last,
                "{} overlaps on {}",
                section.port,
                row.ip
            );
            prop_assert!(section.end_port > section.port && section.end_port <= 65535);
            last = section.end_port;
            let uid = section.target_ref.clone().expect("a target").uid;
            let twice = out.insert(uid, (row.ip.to_string(), section.port));
            prop_assert!(twice.is_none(), "a block each");
        }
    }
    Ok(out)
}

proptest! {
    #[test]
    fn nobody_shares_a_port_and_nobody_moves(
        ports in prop_oneof![Just(8192), Just(16000), Just(32256), 4096..40000],
        steps in prop::collection::vec((1_u8..5, prop::collection::btree_set(0_u8..30, 0..20)), 1..8),
    ) {
        let mut table = Vec::new();
        let mut before: BTreeMap<String, (String, i32)> = BTreeMap::new();
        let mut addresses_before = 0;
        for (addresses, uids) in steps {
            let list: Vec<Address> = (1..=addresses).map(address).collect();
            let wants: Vec<Want> = uids.iter().map(|uid| want(&format!("{uid:02}"))).collect();
            table = assign(&list, ports, &table, &wants, &[]);
            let now = places(&table)?;
            for (uid, place) in &before {
                let stays = uids.contains(&uid.parse::<u8>().expect("a number"));
                // Whoever still wants a block of an address that is still there has the same one.
                let listed = list.iter().any(|address| address.ip.to_string() == place_ip(place));
                if stays && listed {
                    prop_assert_eq!(now.get(uid), Some(place), "{} moved", uid);
                }
            }
            let room = usize::try_from(slots(ports)).expect("small") * usize::from(addresses);
            prop_assert_eq!(now.len(), uids.len().min(room), "everybody who can be served is");
            let again = assign(&list, ports, &table, &wants, &[]);
            prop_assert_eq!(&again, &table, "a second plan changes nothing");
            before = now;
            addresses_before = addresses;
        }
        prop_assert!(addresses_before > 0);
    }
}

fn place_ip(place: &(String, i32)) -> String {
    place.0.clone()
}

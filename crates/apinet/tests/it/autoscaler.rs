//! Scaling of NAT gateways: by ceiling, stable, and never under somebody.

use api::apinet::{NatGatewayIp, NatTableIp, NatTableSection};
use apinet::{Demand, scale};

fn demand(requests: i64, slots: i64) -> Demand {
    Demand {
        requests,
        slots,
        min: 0,
        max: None,
        settled: true,
    }
}

fn entry(name: &str, last: u8) -> NatGatewayIp {
    NatGatewayIp {
        name: name.to_owned(),
        ip: Some(format!("203.0.113.{last}").parse().expect("an address")),
        draining: false,
    }
}

fn row(last: u8, sections: i32) -> NatTableIp {
    let section = |at: i32| NatTableSection {
        ip: "10.0.0.1".parse().expect("an address"),
        port: 1024 + 64 * at,
        end_port: 1087 + 64 * at,
        target_ref: None,
    };
    NatTableIp {
        ip: format!("203.0.113.{last}").parse().expect("an address"),
        sections: (0..sections).map(section).collect(),
    }
}

/// Names, a draining one in parentheses.
fn show(ips: &[NatGatewayIp]) -> String {
    let names = ips.iter().map(|entry| match entry.draining {
        true => format!("({})", entry.name),
        false => entry.name.clone(),
    });
    names.collect::<Vec<_>>().join(" ")
}

#[test]
fn one_interface_too_many_is_worth_an_address() {
    // 31 blocks per address: a division that cuts off would leave the 32nd interface without.
    let cases = [
        (0, ""),
        (1, "ip-0"),
        (31, "ip-0"),
        (32, "ip-0 ip-1"),
        (62, "ip-0 ip-1"),
        (63, "ip-0 ip-1 ip-2"),
    ];
    for (requests, names) in cases {
        assert_eq!(
            show(&scale(&[], &[], &demand(requests, 31))),
            names,
            "{requests}"
        );
    }
}

#[test]
fn the_bounds_hold() {
    let bounded = |requests, min, max| Demand {
        min,
        max,
        ..demand(requests, 1)
    };
    assert_eq!(show(&scale(&[], &[], &bounded(0, 2, None))), "ip-0 ip-1");
    assert_eq!(
        show(&scale(&[], &[], &bounded(9, 1, Some(3)))),
        "ip-0 ip-1 ip-2"
    );
    assert_eq!(show(&scale(&[], &[], &bounded(9, 0, Some(0)))), "");
    // A gateway that has no blocks at all is not helped by addresses.
    assert_eq!(show(&scale(&[], &[], &demand(9, 0))), "");
}

#[test]
fn shrinking_drains_the_emptiest_and_takes_it_away_when_nobody_is_left() {
    let ips = [entry("a", 1), entry("b", 2), entry("c", 3)];
    let rows = [row(1, 2), row(2, 1), row(3, 2)];
    let wanted = demand(5, 31);
    let draining = scale(&ips, &rows, &wanted);
    assert_eq!(show(&draining), "a (b) (c)");
    // Somebody is there: it stays, as long as it takes.
    assert_eq!(show(&scale(&draining, &rows, &wanted)), "a (b) (c)");
    let left = [row(1, 2), row(2, 0), row(3, 2)];
    assert_eq!(show(&scale(&draining, &left, &wanted)), "a (c)");
    // The table was made before the mark: somebody may be on his way there.
    let stale = Demand {
        settled: false,
        ..wanted
    };
    assert_eq!(show(&scale(&draining, &left, &stale)), "a (b) (c)");
}

#[test]
fn an_address_is_never_marked_and_taken_in_one_step() {
    let ips = [entry("a", 1), entry("b", 2)];
    let rows = [row(1, 1), row(2, 0)];
    assert_eq!(show(&scale(&ips, &rows, &demand(1, 31))), "a (b)");
}

#[test]
fn growing_takes_back_what_is_being_drained() {
    let mut ips = [entry("a", 1), entry("b", 2), entry("c", 3)];
    ips[1].draining = true;
    ips[2].draining = true;
    let rows = [row(1, 31), row(2, 1), row(3, 9)];
    // The fuller one comes back first, and no name is used twice.
    assert_eq!(show(&scale(&ips, &rows, &demand(41, 31))), "a (b) c");
    assert_eq!(show(&scale(&ips, &rows, &demand(63, 31))), "a b c");
    assert_eq!(show(&scale(&ips, &rows, &demand(94, 31))), "a b c ip-0");
}

#[test]
fn an_interface_coming_and_going_at_the_edge_moves_nothing() {
    let ips = [entry("a", 1), entry("b", 2)];
    let rows = [row(1, 31), row(2, 1)];
    for requests in [32, 31, 30, 29] {
        assert_eq!(
            show(&scale(&ips, &rows, &demand(requests, 31))),
            "a b",
            "{requests}"
        );
    }
    assert_eq!(show(&scale(&ips, &rows, &demand(28, 31))), "a (b)");
}

#[test]
fn an_address_that_nobody_uses_drains_in_place_of_one_in_use() {
    let mut ips = [entry("a", 1), entry("b", 2)];
    ips[1].draining = true;
    // All of a's interfaces went, the one on b stayed: without the exchange b would drain for ever.
    let rows = [row(1, 0), row(2, 1)];
    let exchanged = scale(&ips, &rows, &demand(1, 31));
    assert_eq!(show(&exchanged), "(a) b");
    assert_eq!(show(&scale(&exchanged, &rows, &demand(1, 31))), "b");
    // Two in use stay as they are.
    let rows = [row(1, 1), row(2, 1)];
    assert_eq!(show(&scale(&ips, &rows, &demand(2, 31))), "a (b)");
}

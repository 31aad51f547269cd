//! The packet filter: defaults, order, every kind of match; and a naive model.

use core::net::IpAddr;
use dataplane::{
    Filter, FilterPacket, Filtered, Firewall, FirewallAction, FirewallRule, PortMatch,
    RuleDirection, RuleFilter, RulePrefix,
};
use proptest::prelude::*;

fn prefix(text: &str) -> RulePrefix {
    let (address, length) = text.split_once('/').unwrap();
    RulePrefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

fn rule(id: &str, priority: u32, action: FirewallAction, filter: RuleFilter) -> FirewallRule {
    FirewallRule {
        id: id.to_owned(),
        direction: RuleDirection::Ingress,
        action,
        priority,
        source: prefix("0.0.0.0/0"),
        destination: prefix("0.0.0.0/0"),
        filter,
    }
}

fn packet(source: &str, destination: &str, transport: Filtered) -> FilterPacket {
    FilterPacket {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        transport,
    }
}

fn ports(lower: i32, upper: i32) -> PortMatch {
    PortMatch {
        lower: u16::try_from(lower).ok(),
        upper: u16::try_from(upper).ok(),
    }
}

fn tcp_to(lower: i32, upper: i32) -> RuleFilter {
    RuleFilter::Tcp {
        source: PortMatch::ANY,
        destination: ports(lower, upper),
    }
}

const IN: RuleDirection = RuleDirection::Ingress;
const OUT: RuleDirection = RuleDirection::Egress;
use FirewallAction::{Accept, Drop};

fn decide(firewall: &Firewall, transport: Filtered) -> Filter {
    firewall.decide(IN, &packet("1.2.3.4", "10.0.0.1", transport))
}

#[test]
fn directions_default_to_accept_until_they_have_rules() {
    let mut firewall = Firewall::default();
    let syn = packet("1.2.3.4", "10.0.0.1", Filtered::Tcp(5, 80));
    assert_eq!(firewall.decide(IN, &syn), Filter::Accept);
    assert_eq!(firewall.decide(OUT, &syn), Filter::Accept);
    assert!(firewall.add(rule("a", 1000, Accept, tcp_to(443, 443))));
    assert_eq!(firewall.decide(IN, &syn), Filter::Drop);
    assert_eq!(
        firewall.decide(OUT, &syn),
        Filter::Accept,
        "egress has no rule"
    );
    assert!(firewall.remove("a") && !firewall.remove("a"));
    assert_eq!(firewall.decide(IN, &syn), Filter::Accept);
}

#[test]
fn priorities_and_deny_before_accept() {
    let mut firewall = Firewall::default();
    assert!(firewall.add(rule("late", 100, Accept, tcp_to(80, 80))));
    assert!(firewall.add(rule("deny", 100, Drop, tcp_to(80, 80))));
    assert_eq!(
        decide(&firewall, Filtered::Tcp(1, 80)),
        Filter::Drop,
        "same priority"
    );
    assert!(firewall.add(rule("early", 99, Accept, tcp_to(80, 80))));
    assert_eq!(decide(&firewall, Filtered::Tcp(1, 80)), Filter::Accept);
    let ids: Vec<_> = firewall.rules().map(|rule| rule.id.as_str()).collect();
    assert_eq!(ids, ["late", "deny", "early"], "listed as added");
    let hits: Vec<_> = firewall.hits().collect();
    assert_eq!(hits, [("late", 0), ("deny", 1), ("early", 1)]);
}

#[test]
fn matches() {
    use Filter::{Accept as Yes, Drop as No};
    let check = |filter: RuleFilter, transport: Filtered, expected: Filter| {
        let mut firewall = Firewall::default();
        assert!(firewall.add(rule("r", 0, Accept, filter)));
        assert_eq!(
            decide(&firewall, transport),
            expected,
            "{filter:?} {transport:?}"
        );
    };
    check(RuleFilter::Any, Filtered::Tcp(1, 2), Yes);
    check(RuleFilter::Any, Filtered::Icmp(8, 0), Yes);
    for (port, expected) in [(79, No), (80, Yes), (90, Yes), (91, No)] {
        check(tcp_to(80, 90), Filtered::Tcp(1, port), expected);
        check(tcp_to(80, 90), Filtered::Udp(1, port), No);
        let from = RuleFilter::Udp {
            source: ports(80, 90),
            destination: PortMatch::ANY,
        };
        check(from, Filtered::Udp(port, 1), expected);
    }
    check(tcp_to(80, -1), Filtered::Tcp(1, 65535), Yes);
    check(tcp_to(80, -1), Filtered::Tcp(1, 79), No);
    check(tcp_to(-1, 5), Filtered::Tcp(1, 6), Yes);
    let icmp = |kind, code| RuleFilter::Icmp { kind, code };
    check(icmp(None, None), Filtered::Icmp(128, 0), Yes);
    check(icmp(Some(8), None), Filtered::Icmp(8, 3), Yes);
    check(icmp(Some(8), Some(0)), Filtered::Icmp(8, 3), No);
    check(icmp(Some(0), None), Filtered::Icmp(8, 0), No);
    check(icmp(None, None), Filtered::Tcp(1, 2), No);
}

#[test]
fn addresses_are_masked_and_families_kept_apart() {
    let mut firewall = Firewall::default();
    let mut given = rule(
        "r",
        0,
        Accept,
        RuleFilter::Icmp {
            kind: None,
            code: None,
        },
    );
    given.source = prefix("1.2.3.4/16");
    assert!(firewall.add(given.clone()));
    assert_eq!(
        firewall.rule("r").unwrap().source.given(),
        "1.2.3.4".parse::<IpAddr>().unwrap()
    );
    let echo = Filtered::Icmp(8, 0);
    let decide = |source, destination| firewall.decide(IN, &packet(source, destination, echo));
    assert_eq!(decide("1.2.255.255", "10.0.0.1"), Filter::Accept);
    assert_eq!(
        decide("1.3.0.0", "10.0.0.1"),
        Filter::Drop,
        "ICMP checks addresses too"
    );
    assert_eq!(decide("fd00::1", "fd00::2"), Filter::Drop);
    let mut six = Firewall::default();
    given.source = prefix("fd00::/8");
    given.destination = prefix("::/0");
    assert!(six.add(given));
    assert_eq!(
        six.decide(IN, &packet("fd00::1", "fd00::2", echo)),
        Filter::Accept
    );
    assert_eq!(
        six.decide(IN, &packet("1.2.3.4", "10.0.0.1", echo)),
        Filter::Drop
    );
}

fn any_rule() -> impl Strategy<Value = (u32, bool, u8, Option<u16>, bool)> {
    (
        0_u32..3,
        any::<bool>(),
        0_u8..3,
        prop::option::of(1_u16..4),
        any::<bool>(),
    )
}

proptest! {
    /// The first of all matching rules, sorted as the rule says, decides.
    #[test]
    fn as_the_naive_model(given in prop::collection::vec(any_rule(), 0..12), port in 1_u16..4, host in 0_u8..3, udp: bool) {
        let mut firewall = Firewall::default();
        let mut rules = Vec::new();
        for (index, (priority, accept, source_host, destination_port, is_udp)) in given.into_iter().enumerate() {
            let destination = PortMatch { lower: destination_port, upper: destination_port };
            let filter = if is_udp {
                RuleFilter::Udp { source: PortMatch::ANY, destination }
            } else {
                RuleFilter::Tcp { source: PortMatch::ANY, destination }
            };
            let action = if accept { Accept } else { Drop };
            let mut rule = rule(&index.to_string(), priority, action, filter);
            rule.source = prefix(&format!("10.0.0.{source_host}/32"));
            prop_assert!(firewall.add(rule));
            rules.push((priority, accept, index, source_host, destination_port, is_udp));
        }
        let transport = if udp { Filtered::Udp(9, port) } else { Filtered::Tcp(9, port) };
        let got = firewall.decide(IN, &packet(&format!("10.0.0.{host}"), "10.9.9.9", transport));
        rules.sort();
        let expected = match rules.iter().find(|(_, _, _, h, p, u)| *h == host && p.is_none_or(|p| p == port) && *u == udp) {
            _ if rules.is_empty() => Filter::Accept,
            Some((_, true, ..)) => Filter::Accept,
            Some(_) | None => Filter::Drop,
        };
        prop_assert_eq!(got, expected);
    }
}

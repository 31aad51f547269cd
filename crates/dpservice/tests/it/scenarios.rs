//! Which test shows which scenario of the conformance list, and which one holds which published vector in place.
//!
//! The list is that of the reference's own suite, restated. A row without tests says what is missing. The tests are looked up in the sources, so
//! a renamed test breaks this one.

use std::path::Path;

/// A row: number, what is to happen, and the tests, as `crate/file::function`.
type Row = (u8, &'static str, &'static [&'static str]);

const SCENARIOS: &[Row] = &[
    (
        1,
        "ARP for the gateway from any sender",
        &["dataplane/arp_nd::gateway_is_answered_to_any_sender"],
    ),
    (
        2,
        "delivery to the address that a machine has told, kept over re-creation",
        &[
            "dataplane/forward::local_delivery_uses_the_learned_mac_at_once",
            "dataplane/arp_nd::only_the_machines_own_address_teaches_its_mac",
            "dataplane/oddities::delivery_follows_the_last_request_for_an_address",
        ],
    ),
    (
        3,
        "DHCPv4 discover and request",
        &["dataplane/dhcp::discover_and_request"],
    ),
    (
        4,
        "DHCPv6, network boot, and the status for interfaces without IPv6",
        &[
            "dataplane/dhcp::dhcpv6_exchange",
            "dataplane/dhcp::dhcpv6_network_boot",
            "dataplane/dhcp::dhcpv6_without_address",
        ],
    ),
    (
        5,
        "neighbour solicitation for the gateway",
        &["dataplane/arp_nd::neighbour_solicitation_for_the_gateway"],
    ),
    (
        6,
        "IPv4 to a neighbour host and back",
        &[
            "dataplane/forward::remote_ipv4_is_encapsulated_first_slowly_then_from_the_cache",
            "dataplane/forward::two_engines_back_to_back",
        ],
    ),
    (
        7,
        "the same with IPv6",
        &["dataplane/forward::remote_ipv6_has_next_header_41"],
    ),
    (
        8,
        "machines of one host",
        &[
            "dataplane/forward::local_delivery_uses_the_learned_mac_at_once",
            "dataplane/conntrack::echo_flows_are_told_apart_by_who_asks",
        ],
    ),
    (
        9,
        "a machine to another one's virtual address",
        &["dataplane/translate::vip_of_a_neighbour_on_the_same_host"],
    ),
    (
        10,
        "a virtual address towards the internet",
        &["dataplane/translate::vip_towards_the_internet_and_back"],
    ),
    (
        11,
        "network NAT with two ports",
        &["dataplane/translate::network_nat_with_two_ports"],
    ),
    (
        12,
        "network NAT of pings",
        &["dataplane/translate::network_nat_of_pings"],
    ),
    (
        13,
        "only default routes translate",
        &["dataplane/translate::only_what_a_default_route_sends_is_translated"],
    ),
    (
        14,
        "ping to a NAT address",
        &["dataplane/translate::pings_to_a_nat_address_are_answered_here"],
    ),
    (
        15,
        "ports of other hosts are relayed",
        &["dataplane/translate::ports_of_other_hosts_are_relayed"],
    ),
    (
        16,
        "a foreign address behind a NAT's underlay address",
        &["dataplane/translate::ports_of_other_hosts_are_relayed"],
    ),
    (
        17,
        "ICMP errors about translated connections",
        &["dataplane/translate::icmp_errors_about_translated_connections"],
    ),
    (
        18,
        "a NAT with another range is used at once",
        &["dataplane/translate::a_new_range_is_used_at_once"],
    ),
    (19, "NAT64", &["dataplane/translate::nat64_both_ways"]),
    (
        20,
        "load balancer with a local target",
        &["dataplane/balance::a_local_target_of_both_families"],
    ),
    (
        21,
        "load balancer with a remote target",
        &["dataplane/balance::a_remote_target_is_reached_by_the_same_uplink"],
    ),
    (
        22,
        "ping to a load balancer",
        &["dataplane/balance::pings_and_errors"],
    ),
    (
        23,
        "ICMP error about a balanced connection",
        &["dataplane/balance::pings_and_errors"],
    ),
    (
        24,
        "a machine over the router to a balancer of its own host",
        &["dataplane/balance::from_a_machine_with_vip_or_nat_over_the_router_to_a_balancer_here"],
    ),
    (
        25,
        "targets are kept, deleted ones never chosen",
        &["dataplane/balance::connections_keep_their_target_and_a_deleted_one_gets_none"],
    ),
    (
        26,
        "NAT ports come back",
        &[
            "dataplane/translate::ports_return_after_resets_and_half_open_connections",
            "dataplane/oddities::a_port_returns_after_the_connection_was_closed",
        ],
    ),
    (
        27,
        "ports of virtual services",
        &[
            "dataplane/virtual_packets::tcp_has_ports_of_its_own_and_they_are_reused",
            "dataplane/virtual_packets::udp_there_and_back",
        ],
    ),
    (
        28,
        "every create, get, repeated create, delete and miss; lists",
        &[
            "dpservice/errors::every_row_is_provoked",
            "dpservice/conformance::many_routes_are_listed_whole",
            "dpservice/conformance::interface_life",
            "dpservice/services::load_balancers",
        ],
    ),
    (
        29,
        "life of a network",
        &[
            "dpservice/conformance::networks",
            "dataplane/services::networks_live_as_long_as_their_last_user",
        ],
    ),
    (
        30,
        "two instances of which one works, and tells the other",
        &[
            "dpservice/sync::connections_survive_the_death_of_the_active_instance",
            "dpservice/sync_hosts::connections_survive_the_death_of_the_working_instance",
            "dpservice/sync::many_connections_are_told_to_a_late_listener",
            "dataplane/sync::messages_byte_for_byte",
            "dataplane/sync::translated_connections_go_on_with_their_ports",
            "dataplane/sync::nat64_and_echo_go_on",
            "dataplane/sync::connections_to_virtual_services_keep_their_ports",
            "dpservice/options::the_lock_goes_from_one_instance_to_the_other",
            "dpservice/options::an_instance_in_standby_serves_requests_and_no_packets",
        ],
    ),
    (
        31,
        "telemetry and metric names",
        &[
            "dpservice/telemetry::telemetry_commands",
            "dpservice/telemetry::stages_have_their_known_names",
            "dpservice/telemetry::metrics_of_the_exporter",
        ],
    ),
];

const VECTORS: &[Row] = &[
    (
        1,
        "hashes of connections, NAT keys, list keys and virtual services",
        &[
            "dataplane/uplinks::hash_vectors",
            "dataplane/port_map::hashes_that_all_implementations_share",
        ],
    ),
    (
        2,
        "choice of uplink by hash",
        &[
            "dataplane/uplinks::shares_follow_the_common_hash",
            "dataplane/virtual_packets::load_is_shared_between_the_uplinks",
        ],
    ),
    (
        3,
        "Maglev tables",
        &[
            "dataplane/maglev::tables_that_all_implementations_share",
            "dataplane/balance::the_choice_is_that_of_all_implementations",
        ],
    ),
    (
        4,
        "NAT ports",
        &["dataplane/port_map::ports_that_all_implementations_choose"],
    ),
    (
        5,
        "virtual services",
        &["dataplane/virtual_service::hashes_that_all_implementations_share"],
    ),
    (6, "order of listed NATs", &["dataplane/services::nats"]),
    (
        7,
        "bytes of tunnels, ARP and advertisements",
        &[
            "dataplane/forward::remote_ipv4_is_encapsulated_first_slowly_then_from_the_cache",
            "dataplane/arp_nd::periodic_announcements",
            "dataplane/arp_nd::router_solicitation",
        ],
    ),
    (
        8,
        "header of mirrored frames",
        &[
            "dpservice/capture::captured_frames_reach_the_receiver",
            "dataplane/services::captures",
        ],
    ),
];

#[test]
fn every_row_has_its_tests() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (rows, name) in [(SCENARIOS, "scenario"), (VECTORS, "vector")] {
        for (number, (row, what, tests)) in (1..).zip(rows) {
            assert_eq!(*row, number, "{name}s are in order");
            assert!(!tests.is_empty(), "{name} {row}: {what}");
            for test in *tests {
                let (place, function) = test.split_once("::").unwrap();
                let (owner, file) = place.split_once('/').unwrap();
                let path = crates
                    .join(owner)
                    .join("tests/it")
                    .join(format!("{file}.rs"));
                let text = std::fs::read_to_string(&path).unwrap();
                let is_test = text
                    .split("#[test]")
                    .chain(text.split("#[tokio::test]"))
                    .any(|part| {
                        part.trim_start()
                            .trim_start_matches("pub ")
                            .trim_start_matches("async ")
                            .starts_with(&format!("fn {function}("))
                    });
                assert!(is_test, "{name} {row}: there is no test {test}");
            }
        }
    }
    assert_eq!((SCENARIOS.len(), VECTORS.len()), (31, 8));
}

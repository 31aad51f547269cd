//! NetworkPolicyRules become packet filter rules of the interfaces that they are about, and of no others.

use api::{apinet, metalnet};
use controller::sim::{Sim, verify};
use serde_json::{Value, json};

use crate::region::{APINET_NS, METALNET_NS, network, nic, node, object, region, uid};

fn set_up(sim: &mut Sim) {
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    sim.put(&nic("a", "part.n1", "blue"));
    sim.settle().expect("settles");
}

fn policy(sim: &Sim, types: Value, ingress: Value, egress: Value) -> apinet::NetworkPolicyRule {
    object(json!({
        "metadata": { "name": "policy", "namespace": APINET_NS },
        "networkRef": { "name": "blue", "uid": uid::<apinet::Network>(sim, APINET_NS, "blue") },
        "targets": [{ "ip": "10.0.0.1", "targetRef": {
            "name": "a", "uid": uid::<apinet::NetworkInterface>(sim, APINET_NS, "a"),
        } }],
        "policyTypes": types,
        "ingressRule": ingress,
        "egressRule": egress,
    }))
}

fn rules(sim: &Sim) -> Vec<metalnet::FirewallRule> {
    let name = uid::<apinet::NetworkInterface>(sim, APINET_NS, "a");
    let made = sim.get::<metalnet::NetworkInterface>(METALNET_NS, &name);
    made.expect("made").spec.firewall_rules
}

/// Rules without their ids, as text, the closing ones left out.
fn accepted(sim: &Sim) -> Vec<String> {
    let accepts = rules(sim)
        .into_iter()
        .filter(|rule| rule.action == metalnet::FirewallAction::Accept);
    let mut lines: Vec<String> = accepts
        .map(|rule| {
            let mut rule = json!(rule);
            let fields = rule.as_object_mut().expect("an object");
            for name in ["firewallRuleID", "action", "ipFamily", "priority"] {
                fields.remove(name);
            }
            rule.to_string()
        })
        .collect();
    lines.sort();
    lines
}

fn closed(sim: &Sim) -> Vec<(metalnet::FirewallDirection, Option<i32>)> {
    let rules = rules(sim);
    let denies = rules
        .iter()
        .filter(|rule| rule.action == metalnet::FirewallAction::Deny);
    denies.map(|rule| (rule.direction, rule.priority)).collect()
}

fn with(types: Value, ingress: Value, egress: Value) -> Sim {
    verify(region, |sim| {
        set_up(sim);
        let policy = policy(sim, types.clone(), ingress.clone(), egress.clone());
        sim.put(&policy);
    })
    .expect("converges")
}

#[test]
fn an_allowed_port_is_the_destination_port_in_both_directions_and_ends_where_it_starts() {
    let rule = json!([{
        "ipBlock": [{ "cidr": "10.1.0.0/16" }],
        "networkPolicyPorts": [{ "protocol": "TCP", "port": 22 }],
    }]);
    let sim = with(json!(["Ingress", "Egress"]), rule.clone(), rule);
    let matching =
        json!({ "protocolType": "TCP", "portRange": { "dstPort": 22, "endDstPort": 22 } });
    assert_eq!(
        accepted(&sim),
        [
            json!({ "destinationPrefix": "10.1.0.0/16", "direction": "Egress", "protocolMatch": matching })
                .to_string(),
            json!({ "direction": "Ingress", "protocolMatch": matching, "sourcePrefix": "10.1.0.0/16" })
                .to_string(),
        ]
    );
}

#[test]
fn a_rule_without_ports_means_all_and_without_peers_means_everybody() {
    let block = json!([{ "ipBlock": [{ "cidr": "10.1.0.0/16" }] }]);
    let sim = with(json!(["Ingress"]), block, json!([]));
    let line = json!({ "direction": "Ingress", "sourcePrefix": "10.1.0.0/16" }).to_string();
    assert_eq!(accepted(&sim), [line]);
    let ports =
        json!([{ "networkPolicyPorts": [{ "port": 80 }, { "protocol": "UDP", "port": 0 }] }]);
    let sim = with(json!(["Egress"]), json!([]), ports);
    let lines = accepted(&sim);
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("\"::/0\"") && line.contains("\"TCP\""))
    );
    assert!(lines.iter().any(|line| line.contains("0.0.0.0/0") && line.ends_with("{\"protocolType\":\"UDP\"}}")));
}

#[test]
fn sctp_cannot_be_told_apart_and_stays_closed() {
    let rule = json!([{
        "ips": [{ "ipFamily": "IPv4", "prefix": "10.1.0.9/32" }],
        "networkPolicyPorts": [{ "protocol": "SCTP", "port": 5 }],
    }]);
    let sim = with(json!(["Ingress"]), rule, json!([]));
    assert!(accepted(&sim).is_empty());
    assert!(!closed(&sim).is_empty());
}

#[test]
fn a_restricted_direction_without_rules_is_closed_and_the_other_is_not_touched() {
    let sim = with(json!(["Ingress"]), json!([]), json!([]));
    let ingress = (metalnet::FirewallDirection::Ingress, Some(65535));
    assert_eq!(closed(&sim), [ingress, ingress], "one for each family");
    assert!(accepted(&sim).is_empty());
}

#[test]
fn a_hole_in_a_block_is_left_out_without_denying_what_another_rule_allows() {
    let rule = json!([
        { "ipBlock": [{ "cidr": "10.0.0.0/30", "except": ["10.0.0.2/32"] }] },
        { "ips": [{ "ipFamily": "IPv4", "prefix": "10.0.0.2/32" }], "networkPolicyPorts": [{ "protocol": "UDP", "port": 53 }] },
    ]);
    let sim = with(json!(["Ingress"]), rule, json!([]));
    let lines = accepted(&sim);
    let sources = ["10.0.0.0/31", "10.0.0.3/32", "10.0.0.2/32"];
    for source in sources {
        let found = lines.iter().filter(|line| line.contains(source));
        assert_eq!(found.count(), 1, "{source} in {lines:?}");
    }
    assert_eq!(lines.len(), 3);
    assert_eq!(
        closed(&sim).len(),
        2,
        "nothing is denied but everything else"
    );
}

#[test]
fn holes_of_any_size_and_family() {
    let sim = with(
        json!(["Ingress"]),
        json!([{ "ipBlock": [
            { "cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"] },
            { "cidr": "2001:db8::/32", "except": ["2001:db8::/32"] },
            { "cidr": "2001:db8:f::/48", "except": ["2001:db8:f:8000::/49"] },
        ] }]),
        json!([]),
    );
    let lines = accepted(&sim);
    let v4 = lines.iter().filter(|line| line.contains('.')).count();
    // 8 blocks around the first hole; the second takes one of them, of size 1, and leaves the 15 blocks around it.
    assert_eq!(v4, 8 - 1 + 15, "{lines:?}");
    let v6: Vec<_> = lines.iter().filter(|line| line.contains("2001")).collect();
    assert_eq!(v6.len(), 1, "{v6:?}");
    assert!(v6[0].contains("2001:db8:f::/49"));
}

#[test]
fn ids_follow_from_the_content_so_nothing_is_written_twice() {
    let rule = |port: i32| {
        json!([{ "ipBlock": [{ "cidr": "10.1.0.0/16" }, { "cidr": "10.2.0.0/16" }],
                 "networkPolicyPorts": [{ "protocol": "TCP", "port": port, "endPort": port }] }])
    };
    let mut sim = with(json!(["Ingress"]), rule(22), json!([]));
    let before = rules(&sim);
    let ids: std::collections::BTreeSet<_> = before
        .iter()
        .map(|rule| rule.firewall_rule_id.clone())
        .collect();
    assert_eq!(ids.len(), before.len());
    // The policy is written anew with one peer more: the others keep their ids.
    let mut wider = rule(22);
    wider[0]["ips"] = json!([{ "ipFamily": "IPv4", "prefix": "10.3.0.1/32" }]);
    let policy = policy(&sim, json!(["Ingress"]), wider, json!([]));
    sim.put(&policy);
    sim.settle().expect("settles");
    let after = rules(&sim);
    assert_eq!(after.len(), before.len() + 1);
    assert!(before.iter().all(|rule| after.contains(rule)));
    assert_eq!(sim.settle(), Ok(0), "no loop");
}

#[test]
fn a_policy_of_another_network_or_interface_with_the_same_address_has_no_effect() {
    let mut sim = region();
    set_up(&mut sim);
    let good = policy(&sim, json!(["Ingress"]), json!([]), json!([]));
    for change in [
        json!({ "networkRef": { "name": "red", "uid": "another" } }),
        json!({ "targets": [{ "ip": "10.0.0.1", "targetRef": { "name": "a", "uid": "another" } }] }),
        json!({ "targets": [{ "ip": "10.0.0.1" }] }),
    ] {
        let mut other = json!(good);
        for (name, value) in change.as_object().expect("fields") {
            other[name] = value.clone();
        }
        sim.put(&object::<apinet::NetworkPolicyRule>(other));
        sim.settle().expect("settles");
        assert!(rules(&sim).is_empty(), "{change}");
    }
    sim.put(&good);
    sim.settle().expect("settles");
    assert!(!rules(&sim).is_empty());
    sim.delete::<apinet::NetworkPolicyRule>(APINET_NS, "policy");
    sim.settle().expect("settles");
    assert!(rules(&sim).is_empty(), "rules go with their policy");
}

#[test]
fn priorities_are_kept_and_the_closing_rules_come_last() {
    let mut sim = region();
    set_up(&mut sim);
    let rule = json!([{ "ipBlock": [{ "cidr": "10.1.0.0/16" }] }]);
    let mut early = policy(&sim, json!(["Ingress"]), rule.clone(), json!([]));
    early.priority = Some(5);
    sim.put(&early);
    let mut late = policy(&sim, json!(["Ingress"]), rule, json!([]));
    late.metadata.name = Some("late".to_owned());
    late.priority = Some(1_000_000);
    sim.put(&late);
    sim.settle().expect("settles");
    let priorities: Vec<_> = rules(&sim).iter().map(|rule| rule.priority).collect();
    assert_eq!(priorities, [Some(5), Some(65534), Some(65535), Some(65535)]);
}

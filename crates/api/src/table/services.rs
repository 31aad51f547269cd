//! The rows of the services of a network.

use super::columns::{
    NONE, age, name_column, path, routing_targets, selected_interfaces, text, wide,
};
use super::rows::{no_update_rules, row};
use super::{KindInfo, NameRule, Scope::Namespaced, schema};
use crate::defaults;
use crate::names::NETWORKING;
use crate::validate::networking_services as rules;

/// The services.
pub(super) static SERVICES: &[KindInfo] = &[
    KindInfo {
        short_names: &["lb"],
        name_rule: NameRule::Label,
        selectable: &["spec.networkRef.name"],
        default: defaults::load_balancer,
        validate_create: rules::load_balancer,
        validate_update: rules::load_balancer_update,
        ..row(
            NETWORKING,
            [
                "LoadBalancer",
                "LoadBalancerList",
                "loadbalancers",
                "loadbalancer",
            ],
            Namespaced,
            schema!(crate::networking::LoadBalancer),
            &[
                name_column(),
                path(
                    "IPs",
                    "status.ips",
                    "None",
                    "Addresses of the load balancer.",
                ),
                wide(path("Type", "spec.type", NONE, "Public or Internal.")),
                wide(path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the targets.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["lbr", "lbrt"],
        subresources: &[],
        validate_create: rules::load_balancer_routing,
        validate_update: rules::load_balancer_routing_update,
        validate_status: no_update_rules,
        ..row(
            NETWORKING,
            [
                "LoadBalancerRouting",
                "LoadBalancerRoutingList",
                "loadbalancerroutings",
                "loadbalancerrouting",
            ],
            Namespaced,
            schema!(crate::networking::LoadBalancerRouting),
            &[
                name_column(),
                text(
                    "Targets",
                    routing_targets,
                    "Addresses that get the connections.",
                ),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["ngw"],
        name_rule: NameRule::Label,
        selectable: &["spec.networkRef.name"],
        validate_create: rules::nat_gateway,
        validate_update: rules::nat_gateway_update,
        ..row(
            NETWORKING,
            ["NATGateway", "NATGatewayList", "natgateways", "natgateway"],
            Namespaced,
            schema!(crate::networking::NATGateway),
            &[
                name_column(),
                path(
                    "IPs",
                    "status.ips",
                    "None",
                    "Public addresses of the gateway.",
                ),
                wide(path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network that the gateway serves.",
                )),
                wide(path(
                    "Ports",
                    "spec.portsPerNetworkInterface",
                    NONE,
                    "Ports that each interface may use.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["netpol"],
        selectable: &["spec.networkRef.name"],
        default: defaults::network_policy,
        validate_create: rules::network_policy,
        validate_update: rules::network_policy_update,
        ..row(
            NETWORKING,
            [
                "NetworkPolicy",
                "NetworkPolicyList",
                "networkpolicies",
                "networkpolicy",
            ],
            Namespaced,
            schema!(crate::networking::NetworkPolicy),
            &[
                name_column(),
                path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the policy.",
                ),
                text(
                    "Nic-Selector",
                    selected_interfaces,
                    "Interfaces that the policy restricts.",
                ),
                wide(path(
                    "Directions",
                    "spec.policyTypes",
                    NONE,
                    "Restricted directions.",
                )),
                age(),
            ],
        )
    },
];

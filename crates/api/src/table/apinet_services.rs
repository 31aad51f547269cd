//! The rows of OpenKCM-net's load balancers, NAT gateways and network policies.

use super::columns::{
    NONE, age, apinet_ips, autoscaler_bounds, name_column, path, selected_interfaces, text, wide,
};
use super::rows::row;
use super::{Allocation, KindInfo, NameRule, Scope::Namespaced, schema};
use crate::defaults;
use crate::names::APINET;
use crate::validate::apinet_services as rules;

/// The kinds.
pub(super) static ROWS: &[KindInfo] = &[
    KindInfo {
        name_rule: NameRule::Label,
        selectable: &["spec.networkRef.name"],
        allocation: Allocation::PublicIps,
        default: defaults::apinet_load_balancer,
        validate_create: rules::load_balancer,
        validate_update: rules::load_balancer_update,
        ..row(
            APINET,
            [
                "LoadBalancer",
                "LoadBalancerList",
                "loadbalancers",
                "loadbalancer",
            ],
            Namespaced,
            schema!(crate::apinet::LoadBalancer),
            &[
                name_column(),
                path("Type", "spec.type", NONE, "Public or Internal."),
                path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the destinations.",
                ),
                text("IPs", apinet_ips, "Addresses of the load balancer."),
                wide(path(
                    "Served",
                    "status.ips",
                    NONE,
                    "Addresses that an Instance serves.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        subresources: &[],
        name_rule: NameRule::Label,
        validate_create: rules::routing,
        validate_update: rules::routing_update,
        ..row(
            APINET,
            [
                "LoadBalancerRouting",
                "LoadBalancerRoutingList",
                "loadbalancerroutings",
                "loadbalancerrouting",
            ],
            Namespaced,
            schema!(crate::apinet::LoadBalancerRouting),
            &[name_column(), age()],
        )
    },
    KindInfo {
        name_rule: NameRule::Label,
        selectable: &["spec.networkRef.name"],
        allocation: Allocation::PublicIps,
        validate_create: rules::nat_gateway,
        validate_update: rules::nat_gateway_update,
        ..row(
            APINET,
            ["NATGateway", "NATGatewayList", "natgateways", "natgateway"],
            Namespaced,
            schema!(crate::apinet::NATGateway),
            &[
                name_column(),
                path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network that the gateway serves.",
                ),
                text("IPs", apinet_ips, "Public addresses of the gateway."),
                wide(path(
                    "Used",
                    "status.usedNATIPs",
                    NONE,
                    "Port blocks in use.",
                )),
                wide(path(
                    "Requested",
                    "status.requestedNATIPs",
                    NONE,
                    "Interfaces that want a port block.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        name_rule: NameRule::Label,
        validate_create: rules::autoscaler,
        validate_update: rules::autoscaler_update,
        ..row(
            APINET,
            [
                "NATGatewayAutoscaler",
                "NATGatewayAutoscalerList",
                "natgatewayautoscalers",
                "natgatewayautoscaler",
            ],
            Namespaced,
            schema!(crate::apinet::NATGatewayAutoscaler),
            &[
                name_column(),
                path(
                    "NATGateway",
                    "spec.natGatewayRef.name",
                    NONE,
                    "The gateway.",
                ),
                text(
                    "PublicIPs",
                    autoscaler_bounds,
                    "Fewest and most addresses of the gateway.",
                ),
                age(),
            ],
        )
    },
    KindInfo {
        subresources: &[],
        name_rule: NameRule::Label,
        validate_create: rules::nat_table,
        validate_update: rules::nat_table_update,
        ..row(
            APINET,
            ["NATTable", "NATTableList", "nattables", "nattable"],
            Namespaced,
            schema!(crate::apinet::NATTable),
            &[name_column(), age()],
        )
    },
    KindInfo {
        name_rule: NameRule::Label,
        selectable: &["spec.nodeRef.name", "spec.networkRef.name"],
        validate_create: rules::instance,
        validate_update: rules::instance_update,
        ..row(
            APINET,
            ["Instance", "InstanceList", "instances", "instance"],
            Namespaced,
            schema!(crate::apinet::Instance),
            &[
                name_column(),
                path("Type", "spec.type", NONE, "What the Instance does."),
                path(
                    "LBType",
                    "spec.loadBalancerType",
                    NONE,
                    "Public or Internal.",
                ),
                path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the destinations.",
                ),
                path("IPs", "spec.ips", NONE, "Balanced addresses."),
                wide(path(
                    "Node",
                    "spec.nodeRef.name",
                    NONE,
                    "Hypervisor that runs the Instance.",
                )),
                wide(path(
                    "Served",
                    "status.ips",
                    NONE,
                    "Addresses that the data plane serves.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        name_rule: NameRule::Label,
        validate_create: rules::daemon_set,
        validate_update: rules::daemon_set_update,
        ..row(
            APINET,
            ["DaemonSet", "DaemonSetList", "daemonsets", "daemonset"],
            Namespaced,
            schema!(crate::apinet::DaemonSet),
            &[
                name_column(),
                wide(path(
                    "Desired",
                    "status.desiredInstances",
                    NONE,
                    "Nodes that shall run an Instance.",
                )),
                wide(path(
                    "Scheduled",
                    "status.scheduledInstances",
                    NONE,
                    "Instances that have a Node.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["netpol"],
        subresources: &[],
        name_rule: NameRule::Label,
        selectable: &["spec.networkRef.name"],
        validate_create: rules::policy,
        validate_update: rules::policy_update,
        ..row(
            APINET,
            [
                "NetworkPolicy",
                "NetworkPolicyList",
                "networkpolicies",
                "networkpolicy",
            ],
            Namespaced,
            schema!(crate::apinet::NetworkPolicy),
            &[
                name_column(),
                path(
                    "Network",
                    "spec.networkRef.name",
                    NONE,
                    "Network of the interfaces.",
                ),
                text(
                    "Nic-Selector",
                    selected_interfaces,
                    "Interfaces that are restricted.",
                ),
                age(),
            ],
        )
    },
    KindInfo {
        subresources: &[],
        name_rule: NameRule::Label,
        validate_create: rules::policy_rule,
        validate_update: rules::policy_rule_update,
        ..row(
            APINET,
            [
                "NetworkPolicyRule",
                "NetworkPolicyRuleList",
                "networkpolicyrules",
                "networkpolicyrule",
            ],
            Namespaced,
            schema!(crate::apinet::NetworkPolicyRule),
            &[name_column(), age()],
        )
    },
];

//! NAT gateways: NATGateway, its NATGatewayAutoscaler, and the NATTable that says which interface may use which ports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetReference;
use crate::macros::kind;
use crate::meta::{Ip, IpFamily, LocalObjectReference, ObjectMeta};
use crate::names::APINET;

/// First port that a NAT gateway gives to interfaces; those below are for well-known services.
pub const NAT_PORT_FIRST: u16 = 1024;
/// Last port that a NAT gateway gives to interfaces.
pub const NAT_PORT_LAST: u16 = 65535;
/// Ports that one address has for interfaces.
pub const NAT_PORTS: i32 = NAT_PORT_LAST as i32 - NAT_PORT_FIRST as i32 + 1;
/// Ports of an interface whose gateway says nothing.
pub const NAT_PORTS_DEFAULT: i32 = 2048;

/// NATGateway lets interfaces of a network reach the outside through shared public addresses.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NATGateway {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the gateway shall be.
    #[serde(default)]
    pub spec: NatGatewaySpec,
    /// How much of it is used.
    #[serde(default)]
    pub status: Option<NatGatewayStatus>,
}
kind!(NATGateway, APINET, "natgateways", NamespaceResourceScope, required spec, optional status);

/// What a gateway shall be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatGatewaySpec {
    /// Address family. Immutable.
    pub ip_family: IpFamily,
    /// OpenKCM-net Network of the interfaces. Immutable.
    pub network_ref: LocalObjectReference,
    /// Public addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ips: Vec<NatGatewayIp>,
    /// Ports of each interface on its address, 2 to 64512. A change gives every interface new ports.
    #[schemars(extend("x-openkcm-default" = 2048))]
    pub ports_per_network_interface: i32,
}

/// One public address of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NatGatewayIp {
    /// Name of the entry, unique in the gateway.
    pub name: String,
    /// The address. Given: an IP object of the namespace. Absent: the server reserves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    /// No further interface gets ports here; those that have some keep them. The autoscaler takes a drained address away when its
    /// last interface has left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// How much of a gateway is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatGatewayStatus {
    /// Port blocks in use; the name is historical.
    #[serde(
        default,
        rename = "usedNATIPs",
        skip_serializing_if = "Option::is_none"
    )]
    pub used_nat_ips: Option<i64>,
    /// Interfaces that want a port block; the name is historical.
    #[serde(
        default,
        rename = "requestedNATIPs",
        skip_serializing_if = "Option::is_none"
    )]
    pub requested_nat_ips: Option<i64>,
    /// Generation of the gateway that the NATTable was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// NATGatewayAutoscaler gives a NATGateway as many addresses as its interfaces need.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NATGatewayAutoscaler {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The gateway and the bounds.
    #[serde(default)]
    pub spec: NatGatewayAutoscalerSpec,
    /// Empty.
    #[serde(default)]
    pub status: Option<NatGatewayAutoscalerStatus>,
}
kind!(NATGatewayAutoscaler, APINET, "natgatewayautoscalers", NamespaceResourceScope, required spec, optional status);

/// The gateway and the bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatGatewayAutoscalerSpec {
    /// The NATGateway. Immutable.
    #[serde(rename = "natGatewayRef")]
    pub nat_gateway_ref: LocalObjectReference,
    /// Fewest addresses; absent means 0.
    #[serde(
        default,
        rename = "minPublicIPs",
        skip_serializing_if = "Option::is_none"
    )]
    pub min_public_ips: Option<i32>,
    /// Most addresses; absent means as many as are needed.
    #[serde(
        default,
        rename = "maxPublicIPs",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_public_ips: Option<i32>,
}

/// Nothing yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatGatewayAutoscalerStatus {}

/// NATTable says which interface may use which ports of the NATGateway of the same name. Addresses ascend, and so do the sections
/// of an address. Written by the controller manager.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NATTable {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<NatTableIp>,
}
kind!(NATTable, APINET, "nattables", NamespaceResourceScope, required ips);

/// The port blocks of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatTableIp {
    /// The public address.
    pub ip: Ip,
    /// The port blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<NatTableSection>,
}

/// One port block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatTableSection {
    /// Address of the interface in its network.
    pub ip: Ip,
    /// First port.
    pub port: i32,
    /// Last port.
    pub end_port: i32,
    /// The interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetReference>,
}

//! Which failures each call of the protocol can answer: the one table behind the answers, the page `docs/dpservice-errors.md`, and the conformance
//! test, which provokes every row.

use super::Failure;
use proto::code::{
    self, ALREADY_ACTIVE, ALREADY_EXISTS, BACKIP_ADD, BAD_IPVER, DNAT_EXISTS, NO_LB, NO_VM, NO_VNI,
    NOT_ACTIVE, NOT_FOUND, OUT_OF_MEMORY, PORT_METER, PORT_START, ROUTE_BAD_PORT, ROUTE_EXISTS,
    ROUTE_INSERT, ROUTE_NOT_FOUND, SNAT_EXISTS, SNAT_NO_DATA, VM_HANDLE, VNF_INSERT, VNI_INIT4,
    WRONG_TYPE,
};
use std::fmt::Write;

/// What a call can answer beside success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rpc {
    /// Its name.
    pub name: &'static str,
    /// Texts of gRPC `INVALID_ARGUMENT`, in the order in which they are checked where that matters.
    pub invalid: &'static [&'static str],
    /// Values of `status.code`.
    pub refused: &'static [u32],
}

/// Text of gRPC `ABORTED`: every call but Initialize, as long as that has not succeeded.
pub const NOT_INITIALIZED: &str = "not initialized";
/// Text of gRPC `INTERNAL`: the service is about to end.
pub const STOPPED: &str = "ipc write failed";

/// Every call.
pub const RPCS: &[Rpc] = &[
    Rpc {
        name: "Initialize",
        invalid: &[],
        refused: &[],
    },
    Rpc {
        name: "CheckInitialized",
        invalid: &[],
        refused: &[],
    },
    Rpc {
        name: "GetVersion",
        invalid: &[
            "Invalid client_protocol",
            "Invalid client_name",
            "Invalid client_version",
        ],
        refused: &[],
    },
    Rpc {
        name: "ListInterfaces",
        invalid: &[],
        refused: &[],
    },
    Rpc {
        name: "GetInterface",
        invalid: &["Invalid interface_id"],
        refused: &[NOT_FOUND],
    },
    Rpc {
        name: "CreateInterface",
        invalid: &[
            "Invalid interface_id",
            "Invalid ipv4_config.primary_address",
            "Invalid ipv6_config.primary_address",
            "Invalid ipv4_config.primary_address and ipv6_config.primary_address combination",
            "Invalid pxe_config.next_server",
            "Invalid pxe_config.boot_filename",
            "Invalid device_name",
            "Invalid hostname",
            "Invalid preferred_underlay_route",
            "VNI exceeds 24-bit range",
            "Invalid firewall_rules",
        ],
        refused: &[
            NOT_FOUND,
            ALREADY_EXISTS,
            OUT_OF_MEMORY,
            VNF_INSERT,
            VM_HANDLE,
            VNI_INIT4,
            ROUTE_EXISTS,
            ROUTE_INSERT,
            PORT_METER,
            PORT_START,
        ],
    },
    Rpc {
        name: "DeleteInterface",
        invalid: &["Invalid interface_id"],
        refused: &[NOT_FOUND],
    },
    Rpc {
        name: "ListPrefixes",
        invalid: &["Invalid interface_id"],
        refused: &[NO_VM],
    },
    Rpc {
        name: "CreatePrefix",
        invalid: &[
            "Invalid interface_id",
            "Invalid prefix.ip",
            "Invalid prefix.length",
            "Invalid preferred_underlay_route",
        ],
        refused: &[NO_VM, ROUTE_INSERT, ROUTE_EXISTS, VNF_INSERT],
    },
    Rpc {
        name: "DeletePrefix",
        invalid: &[
            "Invalid interface_id",
            "Invalid prefix.ip",
            "Invalid prefix.length",
        ],
        refused: &[NO_VM, ROUTE_NOT_FOUND, ROUTE_BAD_PORT],
    },
    Rpc {
        name: "ListLoadBalancerPrefixes",
        invalid: &["Invalid interface_id"],
        refused: &[NO_VM],
    },
    Rpc {
        name: "CreateLoadBalancerPrefix",
        invalid: &[
            "Invalid interface_id",
            "Invalid prefix.ip",
            "Invalid prefix.length",
            "Invalid preferred_underlay_route",
        ],
        refused: &[NO_VM, ROUTE_INSERT, ALREADY_EXISTS, VNF_INSERT],
    },
    Rpc {
        name: "DeleteLoadBalancerPrefix",
        invalid: &[
            "Invalid interface_id",
            "Invalid prefix.ip",
            "Invalid prefix.length",
        ],
        refused: &[NO_VM, NOT_FOUND],
    },
    Rpc {
        name: "CreateVip",
        invalid: &[
            "Invalid interface_id",
            "Invalid vip_ip",
            "Invalid preferred_underlay_route",
        ],
        refused: &[NO_VM, BAD_IPVER, SNAT_EXISTS, DNAT_EXISTS, VNF_INSERT],
    },
    Rpc {
        name: "GetVip",
        invalid: &["Invalid interface_id"],
        refused: &[NO_VM, SNAT_NO_DATA],
    },
    Rpc {
        name: "DeleteVip",
        invalid: &["Invalid interface_id"],
        refused: &[NO_VM, SNAT_NO_DATA],
    },
    Rpc {
        name: "CreateLoadBalancer",
        invalid: &[
            "Invalid loadbalancer_id",
            "VNI exceeds 24-bit range",
            "Invalid loadbalanced_ip",
            "Too many loadbalanced_ports",
            "Invalid loadbalanced_ports.port",
            "Invalid loadbalanced_ports.protocol",
            "Duplicate loadbalanced_ports entry",
            "Invalid preferred_underlay_route",
        ],
        refused: &[ALREADY_EXISTS, OUT_OF_MEMORY, VNI_INIT4, VNF_INSERT],
    },
    Rpc {
        name: "GetLoadBalancer",
        invalid: &["Invalid loadbalancer_id"],
        refused: &[NOT_FOUND],
    },
    Rpc {
        name: "DeleteLoadBalancer",
        invalid: &["Invalid loadbalancer_id"],
        refused: &[NOT_FOUND],
    },
    Rpc {
        name: "ListLoadBalancers",
        invalid: &[],
        refused: &[],
    },
    Rpc {
        name: "CreateLoadBalancerTarget",
        invalid: &["Invalid loadbalancer_id", "Invalid target_ip"],
        refused: &[BAD_IPVER, NO_LB, ALREADY_EXISTS, BACKIP_ADD],
    },
    Rpc {
        name: "ListLoadBalancerTargets",
        invalid: &["Invalid loadbalancer_id"],
        refused: &[NO_LB],
    },
    Rpc {
        name: "DeleteLoadBalancerTarget",
        invalid: &["Invalid loadbalancer_id", "Invalid target_ip"],
        refused: &[BAD_IPVER, NO_LB, NOT_FOUND],
    },
    Rpc {
        name: "CreateNat",
        invalid: &[
            "Invalid interface_id",
            "Invalid nat_ip",
            "Invalid min_port",
            "Invalid max_port",
            "Invalid port range",
            "Invalid preferred_underlay_route",
        ],
        refused: &[NO_VM, BAD_IPVER, SNAT_EXISTS, VNF_INSERT],
    },
    Rpc {
        name: "GetNat",
        invalid: &["Invalid interface_id"],
        refused: &[NO_VM, SNAT_NO_DATA],
    },
    Rpc {
        name: "DeleteNat",
        invalid: &["Invalid interface_id"],
        refused: &[NO_VM, SNAT_NO_DATA],
    },
    Rpc {
        name: "ListLocalNats",
        invalid: &["Invalid nat_ip"],
        refused: &[BAD_IPVER],
    },
    Rpc {
        name: "CreateNeighborNat",
        invalid: &[
            "Invalid nat_ip",
            "Invalid min_port",
            "Invalid max_port",
            "Invalid port range",
            "Invalid underlay_route",
            "VNI exceeds 24-bit range",
        ],
        refused: &[BAD_IPVER, ALREADY_EXISTS, OUT_OF_MEMORY],
    },
    Rpc {
        name: "DeleteNeighborNat",
        invalid: &[
            "Invalid nat_ip",
            "Invalid min_port",
            "Invalid max_port",
            "Invalid port range",
        ],
        refused: &[BAD_IPVER, NOT_FOUND],
    },
    Rpc {
        name: "ListNeighborNats",
        invalid: &["Invalid nat_ip"],
        refused: &[BAD_IPVER],
    },
    Rpc {
        name: "ListRoutes",
        invalid: &[],
        refused: &[NO_VNI],
    },
    Rpc {
        name: "CreateRoute",
        invalid: &[
            "Invalid route.prefix.length",
            "Invalid route.prefix.ip",
            "Invalid route.nexthop_address",
        ],
        refused: &[BAD_IPVER, NO_VNI, ROUTE_EXISTS, ROUTE_INSERT],
    },
    Rpc {
        name: "DeleteRoute",
        invalid: &["Invalid route.prefix.length", "Invalid route.prefix.ip"],
        refused: &[NO_VNI, ROUTE_NOT_FOUND, ROUTE_BAD_PORT],
    },
    Rpc {
        name: "CheckVniInUse",
        invalid: &["Invalid type"],
        refused: &[WRONG_TYPE],
    },
    Rpc {
        name: "ResetVni",
        invalid: &["Invalid type"],
        refused: &[WRONG_TYPE],
    },
    Rpc {
        name: "ListFirewallRules",
        invalid: &["Invalid interface_id"],
        refused: &[NO_VM],
    },
    Rpc {
        name: "CreateFirewallRule",
        invalid: &[
            "Invalid interface_id",
            "Invalid rule id",
            "Invalid source_prefix.ip.ipver",
            "Invalid source_prefix.ip",
            "Invalid source_prefix.length",
            "Invalid ip6 source_prefix.length",
            "Invalid destination_prefix.ip.ipver",
            "Invalid destination_prefix.ip",
            "Invalid destination_prefix.length",
            "Invalid ip6 destination_prefix.length",
            "Invalid direction",
            "Invalid action",
            "Invalid priority",
            "Invalid tcp.src_port_lower",
            "Invalid tcp.dst_port_lower",
            "Invalid tcp.src_port_upper",
            "Invalid tcp.dst_port_upper",
            "Invalid tcp.src_port range",
            "Invalid tcp.dst_port range",
            "Invalid udp.src_port_lower",
            "Invalid udp.dst_port_lower",
            "Invalid udp.src_port_upper",
            "Invalid udp.dst_port_upper",
            "Invalid udp.src_port range",
            "Invalid udp.dst_port range",
            "Invalid icmp.icmp_type",
            "Invalid icmp.icmp_code",
        ],
        refused: &[NO_VM, ALREADY_EXISTS, OUT_OF_MEMORY],
    },
    Rpc {
        name: "GetFirewallRule",
        invalid: &["Invalid interface_id", "Invalid rule_id"],
        refused: &[NO_VM, NOT_FOUND],
    },
    Rpc {
        name: "DeleteFirewallRule",
        invalid: &["Invalid interface_id", "Invalid rule_id"],
        refused: &[NO_VM, NOT_FOUND],
    },
    Rpc {
        name: "CaptureStart",
        invalid: &[
            "Invalid udp_src_port",
            "Invalid udp_dst_port",
            "Invalid sink_node_ip",
            "Too many interfaces to be captured",
            "Invalid interfaces.interface_type",
            "Invalid interface_id",
            "Invalid pf_index",
        ],
        refused: &[ALREADY_ACTIVE, NOT_FOUND],
    },
    Rpc {
        name: "CaptureStop",
        invalid: &[],
        refused: &[NOT_ACTIVE],
    },
    Rpc {
        name: "CaptureStatus",
        invalid: &[],
        refused: &[],
    },
];

/// Whether the table allows a call this answer.
#[must_use]
pub fn is_listed(rpc: &str, failure: &Failure) -> bool {
    let row = RPCS.iter().find(|row| row.name == rpc);
    row.is_some_and(|row| match failure {
        Failure::Invalid(text) => row.invalid.contains(&text.as_str()),
        Failure::Refused(value) => row.refused.contains(value),
        Failure::NotInitialized => rpc != "Initialize",
        Failure::Stopped => true,
    })
}

/// The table as a page for people, in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Failures of dpservice's calls\n\n\
         Made from `crates/dpservice/src/grpc/errors.rs` (`UPDATE_EXPECT=1 cargo test -p dpservice errors`); a test provokes every row.\n\n\
         Three layers: gRPC `ABORTED` with the text `not initialized` answers every call but Initialize until that has succeeded; gRPC\n\
         `INVALID_ARGUMENT` with one of the texts below means that the input does not parse; gRPC `OK` with another `status.code` than 0 means\n\
         that the request was refused. Nothing was changed in any of these cases. gRPC `INTERNAL` with `ipc write failed`: the service is ending.\n\n\
         | Call | `INVALID_ARGUMENT` | `status.code` and `status.message` |\n|---|---|---|\n",
    );
    for row in RPCS {
        let invalid: Vec<String> = row.invalid.iter().map(|text| format!("`{text}`")).collect();
        let refused = row.refused.iter().map(|value| {
            let name = code::name(*value).unwrap_or_default();
            format!("{value} {name}")
        });
        let refused: Vec<String> = refused.collect();
        let or_none = |texts: Vec<String>| match texts.is_empty() {
            true => "–".to_owned(),
            false => texts.join(", "),
        };
        let (invalid, refused) = (or_none(invalid), or_none(refused));
        // Writing to a string cannot fail.
        let _ = writeln!(page, "| {} | {invalid} | {refused} |", row.name);
    }
    page
}

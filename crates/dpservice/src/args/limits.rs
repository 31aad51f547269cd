//! Capacities. What is full refuses the request with its status code, or drops the packet with its reason.

use clap::{Args, value_parser};
use dataplane::Limits;

/// Heading of these options.
const LIMITS: &str = "Limits";

/// Sizes of tables.
#[derive(Args, Clone, Debug)]
pub struct LimitArgs {
    /// Connections that a packet thread tracks, 160 bytes each. Packets of further ones are dropped (flow_table_full).
    #[arg(long, value_name = "N", default_value_t = Limits::default().flows_max, help_heading = LIMITS,
          value_parser = value_parser!(u32).range(1_024..=i64::from(Limits::FLOWS_MAX)))]
    pub flows_max: u32,

    /// Connections of them with network NAT. Packets of further ones are dropped (nat_table_full).
    #[arg(long, value_name = "N", default_value_t = Limits::default().nat_max, help_heading = LIMITS,
          value_parser = value_parser!(u32).range(1..=i64::from(Limits::FLOWS_MAX)))]
    pub nat_flows_max: u32,

    /// Tunnels (pairs of underlay addresses, by address family inside) that connections of a packet thread use. Packets that need further
    /// ones are dropped (adjacency_table_full).
    #[arg(long, value_name = "N", default_value_t = Limits::default().adjacencies_max, help_heading = LIMITS,
          value_parser = value_parser!(u32).range(16..=i64::from(Limits::ROWS_MAX)))]
    pub tunnels_max: u32,

    /// Networks with an interface or a load balancer on this host.
    #[arg(long, value_name = "N", default_value_t = Limits::default().vnis_max, help_heading = LIMITS,
          value_parser = value_parser!(u16).range(1..=i64::from(Limits::VNIS_MAX)))]
    pub vnis_max: u16,

    /// Routes of a network and address family.
    #[arg(long, value_name = "N", default_value_t = Limits::default().routes_per_vni_max, help_heading = LIMITS,
          value_parser = value_parser!(u32).range(1..=i64::from(Limits::ROWS_MAX)))]
    pub routes_max: u32,

    /// Underlay addresses of this host: one each for interfaces, virtual IPs, NAT shares, prefixes and load balancers.
    #[arg(long, value_name = "N", default_value_t = Limits::default().underlay_max, help_heading = LIMITS,
          value_parser = value_parser!(u16).range(1..=i64::from(Limits::UNDERLAY_MAX)))]
    pub underlay_addresses_max: u16,

    /// Load balancers.
    #[arg(long, value_name = "N", default_value_t = Limits::default().load_balancers_max, help_heading = LIMITS,
          value_parser = value_parser!(u32).range(1..=i64::from(Limits::ROWS_MAX)))]
    pub load_balancers_max: u32,

    /// Shares of NAT addresses that other hosts have.
    #[arg(long, value_name = "N", default_value_t = Limits::default().neighbor_nats_max, help_heading = LIMITS,
          value_parser = value_parser!(u32).range(1..=i64::from(Limits::ROWS_MAX)))]
    pub neighbor_nats_max: u32,
}

impl LimitArgs {
    /// As the engine takes them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            flows_max: self.flows_max,
            adjacencies_max: self.tunnels_max,
            underlay_max: self.underlay_addresses_max,
            vnis_max: self.vnis_max,
            routes_per_vni_max: self.routes_max,
            nat_max: self.nat_flows_max,
            load_balancers_max: self.load_balancers_max,
            neighbor_nats_max: self.neighbor_nats_max,
        }
    }
}

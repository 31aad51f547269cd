//! The configuration side of inspection.

use super::Engine;
use crate::inspect::{EndpointRow, TableSize};

impl Engine {
    /// Every underlay address, ascending.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointRow> {
        let host = self.tables.settings.host;
        let mut rows: Vec<EndpointRow> = self
            .tables
            .underlay
            .iter()
            .map(|(part, endpoint)| EndpointRow {
                underlay: part.on(host),
                kind: endpoint.kind,
                vni: endpoint.vni,
                port: endpoint.port,
                prefix: endpoint.prefix,
            })
            .collect();
        rows.sort_by_key(|row| row.underlay);
        rows
    }

    /// How full the tables of the configuration are, under the names that telemetry has always used.
    #[must_use]
    pub fn table_sizes(&self) -> Vec<TableSize> {
        let size = |name, capacity: u64, entries: usize| TableSize {
            name,
            capacity,
            entries: entries as u64,
        };
        let ports = self.tables.ports.len() as u64;
        let underlay = self.tables.underlay.len();
        let underlay_max = u64::from(self.limits.underlay_max);
        let translating = self.tables.ports.iter().filter(|port| {
            let services = port.interface.as_ref().map(|attached| &attached.services);
            services.is_some_and(|services| services.vip.is_some() || services.nat.is_some())
        });
        let (translated, balancers) = self.tables.services.counts();
        let balancers_max = u64::from(self.limits.load_balancers_max);
        vec![
            size("interface_table", ports, self.interfaces.len()),
            size(
                "dnat_table",
                u64::from(self.limits.neighbor_nats_max) + underlay_max,
                translated,
            ),
            size("snat_table", ports, translating.count()),
            size("loadbalancer_table", balancers_max, balancers),
            size("loadbalancer_id_table", balancers_max, self.balancers.len()),
            size(
                "vni_table",
                u64::from(self.limits.vnis_max),
                self.vnis.len(),
            ),
            size("vnf_table", underlay_max, underlay),
            size("reverse_vnf_table", underlay_max, underlay),
        ]
    }
}

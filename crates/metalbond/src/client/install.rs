//! Received routes in the kernel's routing tables: one route per prefix, multipath over its hops, each encapsulated towards
//! the hop's underlay address by a light-weight tunnel through an external-mode ip6tnl link.
//!
//! [`Plan`] decides and [`message`] spells it out for netlink; both are pure. [`Installer`] is the shell. Routes carry
//! protocol number 254, by which they are recognised and removed. The type of a hop does not matter here: this is for
//! routers that carry a VNI's traffic, not for hypervisors.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteIp6Tunnel, RouteLwEnCapType, RouteLwTunnelEncap,
    RouteMessage, RouteNextHop, RouteProtocol,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::RouteEvent;
use crate::route::NextHop;

/// Marks our routes in the kernel; the name "metalbond" belongs to it in rt_protos.
pub const PROTOCOL: u8 = 254;
/// The kernel's main table, also meant by table 0.
const TABLE_MAIN: u32 = 254;
/// Most hops of one kernel route: a netlink attribute holds 65535 bytes, and one hop takes 80.
pub const HOPS_MAX: usize = 512;

/// `VNI#TABLE`: where the routes of a VNI go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOfVni {
    /// Network.
    pub vni: u32,
    /// Kernel table; 0 means the main one.
    pub table: u32,
}

impl FromStr for TableOfVni {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number: &u32| *number < 1 << 24);
        text.split_once('#')
            .and_then(|(vni, table)| {
                Some(Self {
                    vni: number(vni)?,
                    table: number(table)?,
                })
            })
            .ok_or_else(|| format!("{text:?} is not VNI#TABLE, two numbers below 16777216"))
    }
}

/// What has to happen to one kernel route. Without hops it is removed, else it takes the place of what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Kernel table.
    pub table: u32,
    /// Destination, host bits cleared.
    pub net: IpNet,
    /// Underlay addresses, ascending, each once.
    pub hops: Vec<Ipv6Addr>,
}

/// The kernel routes that the received routes ask for.
#[derive(Debug, Default)]
pub struct Plan {
    tables: BTreeMap<u32, u32>,
    ipv4_only: bool,
    /// Hops by VNI and prefix. Several may share an address (types and ports differ): the address stays until the last goes.
    hops: BTreeMap<(u32, IpNet), BTreeSet<NextHop>>,
}

impl Plan {
    /// Tables by VNI. Refuses a VNI that is given twice.
    pub fn new(tables: &[TableOfVni], ipv4_only: bool) -> anyhow::Result<Self> {
        let mut by_vni = BTreeMap::new();
        for TableOfVni { vni, table } in tables {
            let table = if *table == 0 { TABLE_MAIN } else { *table };
            ensure!(
                by_vni.insert(*vni, table).is_none(),
                "VNI {vni} is given twice to --install-routes"
            );
        }
        Ok(Self {
            tables: by_vni,
            ipv4_only,
            hops: BTreeMap::new(),
        })
    }

    /// The kernel tables that are followed.
    pub fn tables(&self) -> BTreeSet<u32> {
        self.tables.values().copied().collect()
    }

    /// What follows from an event; `None` if the kernel's routes stay as they are.
    pub fn follow(&mut self, event: &RouteEvent) -> Option<Change> {
        let (RouteEvent::Added {
            vni,
            destination,
            next_hop,
        }
        | RouteEvent::Removed {
            vni,
            destination,
            next_hop,
        }) = event;
        let (Some(&table), Some(net)) = (self.tables.get(vni), destination.net()) else {
            debug!(vni, %destination, "not installed: no table for the VNI, or no valid prefix");
            return None;
        };
        if self.ipv4_only && matches!(net, IpNet::V6(_)) {
            return None;
        }
        let net = net.trunc();
        let key = (*vni, net);
        let known = self.hops.entry(key).or_default();
        let before = underlay(known);
        match event {
            RouteEvent::Added { .. } => known.insert(*next_hop),
            RouteEvent::Removed { .. } => known.remove(next_hop),
        };
        let hops = underlay(known);
        if known.is_empty() {
            self.hops.remove(&key);
        }
        (before != hops).then_some(Change { table, net, hops })
    }
}

fn underlay(hops: &BTreeSet<NextHop>) -> Vec<Ipv6Addr> {
    let addresses: BTreeSet<Ipv6Addr> = hops
        .iter()
        .filter_map(|hop| match hop.addr {
            IpAddr::V6(addr) => Some(addr),
            // The tunnel is IPv6.
            IpAddr::V4(_) => None,
        })
        .collect();
    addresses.into_iter().take(HOPS_MAX).collect()
}

/// The netlink message that carries out a change through the link of that index.
pub fn message(change: &Change, link: u32) -> RouteMessage {
    let Change { table, net, hops } = change;
    let mut message = match net {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
    };
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    match u8::try_from(*table) {
        Ok(table) => message.header.table = table,
        Err(_) => {
            message.header.table = RouteHeader::RT_TABLE_UNSPEC;
            message.attributes.push(RouteAttribute::Table(*table));
        }
    }
    match (net, hops.first()) {
        (_, None) => {}
        (IpNet::V4(_), Some(_)) => {
            let hops = hops.iter().map(|addr| kernel_hop(link, *addr)).collect();
            message.attributes.push(RouteAttribute::MultiPath(hops));
        }
        // The kernel refuses several hops without gateway for IPv6, so the lowest address gets everything.
        (IpNet::V6(_), Some(addr)) => {
            message.attributes.push(RouteAttribute::Oif(link));
            message.attributes.extend(encapsulation(*addr));
        }
    }
    message
}

fn kernel_hop(link: u32, addr: Ipv6Addr) -> RouteNextHop {
    let mut hop = RouteNextHop::default();
    hop.interface_index = link;
    hop.attributes = encapsulation(addr).to_vec();
    hop
}

fn encapsulation(addr: Ipv6Addr) -> [RouteAttribute; 2] {
    let tunnel = [
        RouteIp6Tunnel::Id(0),
        RouteIp6Tunnel::Destination(addr),
        RouteIp6Tunnel::Source(Ipv6Addr::UNSPECIFIED),
        // 0 means the link's own.
        RouteIp6Tunnel::Hoplimit(0),
    ];
    [
        RouteAttribute::EncapType(RouteLwEnCapType::Ip6),
        RouteAttribute::Encap(tunnel.map(RouteLwTunnelEncap::Ip6).to_vec()),
    ]
}

/// Keeps kernel tables in line with the received routes.
pub struct Installer {
    handle: Handle,
    /// Drives the netlink socket; ends with the installer.
    _connection: JoinSet<()>,
    link: u32,
    plan: Plan,
}

impl Installer {
    /// Finds the tunnel link, sets it up and removes what an earlier run left in the tables.
    pub async fn open(tun: &str, plan: Plan) -> anyhow::Result<Self> {
        if tun.is_empty() {
            bail!("--install-routes needs --tun, the name of an external-mode ip6tnl link");
        }
        let (connection, handle, _) = rtnetlink::new_connection().context("netlink")?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let mut links = handle.link().get().match_name(tun.to_owned()).execute();
        let found = links.try_next().await.ok().flatten();
        let link = found.with_context(|| {
            format!(
                "--tun {tun}: there is no such link; make it with `ip link add {tun} type ip6tnl mode any external` (the \
                 kernel needs the module ip6_tunnel)"
            )
        })?;
        // Routes through a link that is down are refused, and a tunnel has no other use.
        let index = link.header.index;
        let up = LinkUnspec::new_with_index(index).up().build();
        let set = handle.link().set(up).execute().await;
        set.with_context(|| format!("cannot set {tun} up; this needs CAP_NET_ADMIN"))?;
        let installer = Self {
            handle,
            _connection: driver,
            link: index,
            plan,
        };
        installer.cleanup().await?;
        Ok(installer)
    }

    /// Removes all routes with our protocol number from the tables.
    pub async fn cleanup(&self) -> anyhow::Result<()> {
        let tables = self.plan.tables();
        let all = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for template in all {
            let mut routes = self.handle.route().get(template).execute();
            let mut ours = Vec::new();
            while let Some(route) = routes.try_next().await.context("cannot list routes")? {
                if route.header.protocol == RouteProtocol::Other(PROTOCOL)
                    && tables.contains(&table_of(&route))
                {
                    ours.push(route);
                }
            }
            for route in ours {
                let removed = self.handle.route().del(route).execute().await;
                removed.context("cannot remove a route")?;
            }
        }
        Ok(())
    }

    /// Brings the kernel in line with a change. A failure concerns one prefix: it is logged, and the next change of that
    /// prefix replaces the route as a whole.
    pub async fn follow(&mut self, event: &RouteEvent) {
        let Some(change) = self.plan.follow(event) else {
            return;
        };
        let message = message(&change, self.link);
        let result = if change.hops.is_empty() {
            self.handle.route().del(message).execute().await
        } else {
            self.handle.route().add(message).replace().execute().await
        };
        let Change { table, net, hops } = change;
        match result {
            Ok(()) => debug!(table, %net, hops = hops.len(), "installed"),
            Err(error) => warn!(table, %net, hops = hops.len(), err = %error, "cannot install"),
        }
    }
}

fn table_of(route: &RouteMessage) -> u32 {
    let mut attributes = route.attributes.iter();
    let table = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(u32::from(route.header.table))
}

//! What the kernel knows about the uplinks: link state, and the hardware address of the router behind each.
//!
//! Level triggered: every notification (and a timer) leads to a complete look at links, IPv6 neighbours and gateways, and the
//! difference to what the engine was told is published. The next hop is the neighbour that the kernel has seen act as a router
//! (`NTF_ROUTER`). Overlay packets do not pass the kernel's neighbour cache, so it is asked to verify the entry (`NTF_USE`) as long
//! as it is missing or stale; otherwise nobody would notice a router that was replaced.

use crate::devices::Driver;
use crate::worker::{Handle, Stopped};
use anyhow::Context;
use dataplane::PortId;
use futures::{StreamExt, TryStreamExt};
use net::Mac;
use ports::OpenError;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long after a notification the look is taken: they come in bunches, most of them about machine devices.
const SETTLE: Duration = Duration::from_millis(50);
/// Interval of looks while a next hop is missing.
const UNRESOLVED_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of looks otherwise.
const RESOLVED_INTERVAL: Duration = Duration::from_secs(5);
/// Length of the part of the host's prefix from which underlay addresses are generated.
const GENERATED_PREFIX_LEN: u8 = 68;

/// Opens a driver.
pub type Open = Arc<dyn Fn() -> Result<Driver, OpenError> + Send + Sync>;

/// An uplink of the engine and the device behind it.
#[derive(Clone)]
pub struct Uplink {
    /// The engine's port.
    pub port: PortId,
    /// Network device, if the driver has one.
    pub device: Option<String>,
    /// Next hop as long as the kernel knows none.
    pub fallback: Option<Mac>,
    /// Opens its driver anew, should the device have been removed and come back.
    pub open: Open,
}

impl Uplink {
    /// Whether the kernel has such a device.
    #[must_use]
    pub fn is_known_to_kernel(&self) -> bool {
        self.device
            .as_deref()
            .is_some_and(|device| nix::net::if_::if_nametoindex(device).is_ok())
    }

    fn device(&self) -> &str {
        self.device.as_deref().unwrap_or_default()
    }
}

/// What the engine was told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Published {
    link: Option<bool>,
    next_hop: Option<Mac>,
}

/// An IPv6 neighbour on an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: Ipv6Addr,
    /// Its hardware address.
    pub mac: Mac,
    /// The kernel has seen it act as a router.
    pub router: bool,
    /// How sure the kernel is.
    pub state: NeighbourState,
}

/// Keeps the engine informed until `shutdown`.
///
/// # Errors
/// If the kernel's notifications cannot be subscribed to.
pub async fn watch(
    uplinks: Vec<Uplink>,
    worker: Handle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, netlink, mut events) = rtnetlink::new_multicast_connection(&groups)
        .context("cannot subscribe to the kernel's link and neighbour notifications")?;
    let mut published = vec![Published::default(); uplinks.len()];
    let observe = async {
        loop {
            let mut resolved = true;
            for (uplink, published) in uplinks.iter().zip(&mut published) {
                match look(&netlink, uplink, &worker, published).await {
                    Ok(found) => resolved &= found,
                    Err(Failure::Stopped(_)) => return,
                    Err(Failure::Netlink(error)) => {
                        resolved = false;
                        tracing::warn!(interface_name = uplink.device(), %error, "Netlink failed");
                    }
                }
            }
            let interval = if resolved {
                RESOLVED_INTERVAL
            } else {
                UNRESOLVED_INTERVAL
            };
            tokio::select! {
                event = events.next() => {
                    if event.is_none() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    while events.try_recv().is_ok() {}
                }
                () = tokio::time::sleep(interval) => {}
            }
        }
    };
    tokio::select! {
        () = connection => {}
        () = observe => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

/// Tells the kernel to discard what the fabric sends to this host's overlay addresses: the packet sockets have taken their copy, and a
/// kernel with forwarding enabled would send the original back into the fabric.
///
/// # Errors
/// If the kernel refuses the route (no CAP_NET_ADMIN).
pub async fn discard_underlay(host: Ipv6Addr) -> anyhow::Result<()> {
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    let prefix = host.to_bits() >> 64 << 64 | 0xd000_u128 << 48;
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(Ipv6Addr::from_bits(prefix), GENERATED_PREFIX_LEN)
        .kind(RouteType::BlackHole)
        .build();
    let request = async { netlink.route().add(route).replace().execute().await };
    tokio::select! {
        () = connection => anyhow::bail!("the netlink connection ended"),
        result = request => Ok(result?),
    }
}

enum Failure {
    Netlink(rtnetlink::Error),
    Stopped(Stopped),
}

impl From<rtnetlink::Error> for Failure {
    fn from(error: rtnetlink::Error) -> Failure {
        Failure::Netlink(error)
    }
}

impl From<Stopped> for Failure {
    fn from(error: Stopped) -> Failure {
        Failure::Stopped(error)
    }
}

/// One complete look at one uplink. True if nothing is missing.
async fn look(
    netlink: &rtnetlink::Handle,
    uplink: &Uplink,
    worker: &Handle,
    published: &mut Published,
) -> Result<bool, Failure> {
    let port = uplink.port;
    let mut seen = Published {
        link: Some(false),
        next_hop: None,
    };
    let mut fresh = false;
    if let Some(link) = find_link(netlink, uplink.device()).await? {
        seen.link = Some(
            link.header
                .flags
                .contains(LinkFlags::Up | LinkFlags::LowerUp),
        );
        reopen_if_lost(uplink, worker).await?;
        let index = link.header.index;
        let neighbours = neighbours(netlink, index).await?;
        let gateways = gateways(netlink, index).await?;
        let chosen = next_hop(&neighbours, &gateways, own_mac(&link));
        seen.next_hop = chosen.map(|neighbour| neighbour.mac).or(uplink.fallback);
        fresh = chosen.is_some_and(|neighbour| neighbour.state != NeighbourState::Stale);
        if !fresh && seen.link == Some(true) {
            let known = chosen.map(|neighbour| neighbour.address);
            for gateway in gateways.into_iter().chain(known) {
                // Asked for, a static entry would no longer be one (Linux 5.16), and gone if nobody answers.
                if !is_static(&neighbours, gateway) {
                    verify(netlink, index, gateway).await;
                }
            }
        }
    }
    if *published != seen {
        let Published { link, next_hop } = seen;
        tracing::info!(
            interface_name = uplink.device(),
            link_state = if link == Some(true) { "up" } else { "down" },
            mac = next_hop.map(tracing::field::display),
            "Uplink changed"
        );
        worker
            .call(move |plane| {
                plane.engine.set_link(port, link == Some(true));
                plane.engine.set_next_hop(port, next_hop);
            })
            .await?;
        *published = seen;
    }
    Ok(fresh)
}

async fn find_link(
    netlink: &rtnetlink::Handle,
    device: &str,
) -> Result<Option<LinkMessage>, Failure> {
    let request = netlink.link().get().match_name(device).execute();
    match Box::pin(request).try_next().await {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -19 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn own_mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => Some(Mac(*bytes.first_chunk()?)),
            _ => None,
        })
}

async fn neighbours(netlink: &rtnetlink::Handle, index: u32) -> Result<Vec<Neighbour>, Failure> {
    let request = netlink
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Inet6)
        .execute();
    let mut request = Box::pin(request);
    let mut found = Vec::new();
    while let Some(message) = request.try_next().await? {
        if message.header.ifindex == index {
            found.extend(neighbour(&message));
        }
    }
    Ok(found)
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
            _ => None,
        })?;
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => Some(Mac(*bytes.first_chunk()?)),
            _ => None,
        })?;
    let router = message.header.flags.contains(NeighbourFlags::Router);
    Some(Neighbour {
        address,
        mac,
        router,
        state: message.header.state,
    })
}

/// Gateways of all IPv6 routes through a device.
async fn gateways(netlink: &rtnetlink::Handle, index: u32) -> Result<Vec<Ipv6Addr>, Failure> {
    let filter = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut request = Box::pin(netlink.route().get(filter).execute());
    let mut found = Vec::new();
    while let Some(message) = request.try_next().await? {
        gateways_of(&message, index, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn gateways_of(route: &RouteMessage, index: u32, found: &mut Vec<Ipv6Addr>) {
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(*address),
            _ => None,
        })
    };
    let through = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(oif) => Some(*oif),
            _ => None,
        });
    if through == Some(index) {
        found.extend(gateway(&route.attributes));
    }
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            let ours = hops.iter().filter(|hop| hop.interface_index == index);
            found.extend(ours.filter_map(|hop| gateway(&hop.attributes)));
        }
    }
}

/// Chooses the router: a gateway of a route before any other, then the entry the kernel is surest of, then the lowest address.
#[must_use]
pub fn next_hop(
    neighbours: &[Neighbour],
    gateways: &[Ipv6Addr],
    own: Option<Mac>,
) -> Option<Neighbour> {
    let doubt = |state| match state {
        NeighbourState::Permanent | NeighbourState::Reachable => Some(0),
        NeighbourState::Delay | NeighbourState::Probe => Some(1),
        NeighbourState::Stale => Some(2),
        _ => None,
    };
    neighbours
        .iter()
        .filter(|neighbour| neighbour.router && Some(neighbour.mac) != own)
        .filter_map(|neighbour| Some((doubt(neighbour.state)?, neighbour)))
        .min_by_key(|(doubt, neighbour)| {
            (
                !gateways.contains(&neighbour.address),
                *doubt,
                neighbour.address,
            )
        })
        .map(|(_, neighbour)| *neighbour)
}

fn is_static(neighbours: &[Neighbour], address: Ipv6Addr) -> bool {
    neighbours.iter().any(|neighbour| {
        neighbour.address == address && neighbour.state == NeighbourState::Permanent
    })
}

/// Makes the kernel resolve or verify a neighbour, as if it had a packet for it.
async fn verify(netlink: &rtnetlink::Handle, index: u32, gateway: Ipv6Addr) {
    let request = netlink
        .neighbours()
        .add(index, IpAddr::V6(gateway))
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace()
        .execute();
    if let Err(error) = request.await {
        tracing::debug!(dst_ip = %gateway, %error, "Cannot verify neighbour");
    }
}

/// Opens the driver again if the device was removed and has come back.
async fn reopen_if_lost(uplink: &Uplink, worker: &Handle) -> Result<(), Stopped> {
    let port = uplink.port;
    if worker.call(move |plane| plane.is_attached(port)).await? {
        return Ok(());
    }
    match (uplink.open)() {
        Ok(driver) => match worker.attach(port, driver, |_| true).await? {
            Ok(_) => tracing::info!(interface_name = uplink.device(), "Uplink is back"),
            Err(error) => {
                tracing::warn!(interface_name = uplink.device(), %error, "Cannot watch uplink");
            }
        },
        Err(error) => tracing::warn!(%error, "Cannot open uplink again"),
    }
    Ok(())
}

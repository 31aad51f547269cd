//! The device and its routes in the router's kernel, and whether the kernel has a way to the outside.
//!
//! The device is a TAP without address resolution and without addresses. Routes lead to it through one made-up gateway per family, so that
//! the kernel keeps two neighbour entries and not one per public address. Device and routes vanish together with the process: a routing
//! daemon sees that at once, and nobody is led into a hole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use net::{Mac, Prefix};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags,
    RouteProtocol, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::engine::Settings;

/// Our end of the device, as the kernel's gateway for IPv6.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// How long after a notification the look is taken: they come in bunches.
const SETTLE: Duration = Duration::from_millis(50);
/// Pause after a look, in multiples of the time it took: a look reads all routes, and a router with those of the whole internet hears of
/// a change at any time.
const PAUSE_FACTOR: u32 = 20;
/// Interval of looks without notification.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A netlink connection.
pub struct Kernel {
    handle: Handle,
    /// Drives the socket; ends with this value.
    _driver: JoinSet<()>,
}

/// The device's hardware address, made from the tunnel address: the same after a restart, locally administered.
#[must_use]
pub fn mac_of(address: Ipv6Addr) -> Mac {
    let [.., a, b, c, d, e] = address.octets();
    Mac([0x02, a, b, c, d, e & 0xfe])
}

impl Kernel {
    /// # Errors
    /// No netlink.
    pub fn open() -> anyhow::Result<Kernel> {
        let (connection, handle, _) = rtnetlink::new_connection().context("netlink")?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Kernel {
            handle,
            _driver: driver,
        })
    }

    /// Refuses an address that a device has: the kernel would keep the packets to it.
    ///
    /// # Errors
    /// It has, or netlink failed.
    pub async fn check_free(&self, address: Ipv6Addr) -> anyhow::Result<()> {
        let mut all = self.handle.address().get().execute();
        while let Some(found) = all.try_next().await.context("list addresses")? {
            let is_same = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Address(a) if *a == IpAddr::V6(address));
            ensure!(
                !found.attributes.iter().any(is_same),
                "--address {address} belongs to a device of this router; use one that is only routed here"
            );
        }
        Ok(())
    }

    /// Brings the device up and returns its index.
    ///
    /// # Errors
    /// The kernel refused; the message says what. Without CAP_NET_ADMIN nothing works.
    pub async fn set_up(&self, device: &str) -> anyhow::Result<u32> {
        // A link-local address would only make the kernel talk to nobody. Fails where IPv6 is off, and then there is no underlay either.
        std::fs::write(
            format!("/proc/sys/net/ipv6/conf/{device}/addr_gen_mode"),
            "1",
        )
        .with_context(|| format!("{device}: cannot switch off its link-local address"))?;
        let mut links = self
            .handle
            .link()
            .get()
            .match_name(device.to_owned())
            .execute();
        let link = links.try_next().await.context("list links")?;
        let index = link
            .with_context(|| format!("{device} is gone"))?
            .header
            .index;
        let up = LinkUnspec::new_with_index(index).arp(false).up().build();
        let set = self.handle.link().set(up).execute().await;
        set.with_context(|| format!("cannot set {device} up"))?;
        Ok(index)
    }

    /// Leads the public prefixes and the tunnel address to the device.
    ///
    /// # Errors
    /// The kernel refused a route; the message says which.
    pub async fn add_routes(&self, index: u32, settings: &Settings) -> anyhow::Result<()> {
        for message in messages(settings, index) {
            let about = format!("{:?}", message.attributes);
            let add = self.handle.route().add(message).replace().execute().await;
            add.with_context(|| format!("cannot add a route to the device: {about}"))?;
        }
        Ok(())
    }

    /// Whether the kernel has a default route that does not lead to our device, for IPv4 and for IPv6.
    ///
    /// # Errors
    /// Netlink failed.
    pub async fn defaults(&self) -> anyhow::Result<[bool; 2]> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        Ok([self.has_default(v4).await?, self.has_default(v6).await?])
    }

    async fn has_default(&self, all: RouteMessage) -> anyhow::Result<bool> {
        let mut routes = self.handle.route().get(all).execute();
        let mut found = false;
        while let Some(route) = routes.try_next().await.context("list routes")? {
            found |= is_default(&route);
        }
        Ok(found)
    }
}

/// The routes that lead to the device.
fn messages(settings: &Settings, index: u32) -> Vec<RouteMessage> {
    let Settings {
        address,
        icmp_v4,
        mtu,
        public,
        ..
    } = settings;
    let gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(*icmp_v4, 32)
        .output_interface(index)
        .protocol(RouteProtocol::Static)
        .build();
    let tunnel = to_device_v6(*address, 128, index);
    let mut all = vec![gateway, tunnel];
    for prefix in public {
        let mut message = match prefix.address() {
            IpAddr::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net, prefix.len())
                .gateway(*icmp_v4)
                .output_interface(index)
                .protocol(RouteProtocol::Static)
                .onlink()
                .build(),
            IpAddr::V6(net) => to_device_v6(net, prefix.len(), index),
        };
        // The kernel then answers what is too large, and fragments what may be (IPv4).
        let metric = RouteMetric::Mtu(u32::from(*mtu));
        message
            .attributes
            .push(RouteAttribute::Metrics(vec![metric]));
        all.push(message);
    }
    all
}

fn to_device_v6(net: Ipv6Addr, length: u8, index: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(net, length)
        .gateway(GATEWAY_V6)
        .output_interface(index)
        .protocol(RouteProtocol::Static)
        .build()
}

/// Whether it is a default route in the main table that works.
fn is_default(route: &RouteMessage) -> bool {
    let unusable = RouteFlags::Dead | RouteFlags::Linkdown;
    let hops_alive = route.attributes.iter().all(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| {
            !hop.flags
                .intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
        }),
        _ => true,
    });
    route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && route.header.table == RouteHeader::RT_TABLE_MAIN
        && !route.header.flags.intersects(unusable)
        && hops_alive
}

/// Keeps `found` at what [`Kernel::defaults`] says, until the receivers are gone.
///
/// # Errors
/// The kernel's notifications cannot be subscribed to, or ended.
pub async fn watch_defaults(
    kernel: Arc<Kernel>,
    found: watch::Sender<[bool; 2]>,
) -> anyhow::Result<()> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _, mut events) = rtnetlink::new_multicast_connection(&groups)
        .context("cannot subscribe to the kernel's route notifications")?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    while !found.is_closed() {
        let begun = Instant::now();
        let now = kernel.defaults().await?;
        let pause = SETTLE.max(begun.elapsed() * PAUSE_FACTOR);
        found.send_if_modified(|known| std::mem::replace(known, now) != now);
        tokio::select! {
            event = events.next() => {
                event.context("the kernel's notifications have ended")?;
                tokio::time::sleep(pause).await;
                while events.try_recv().is_ok() {}
            }
            () = tokio::time::sleep(LOOK_INTERVAL.max(pause)) => {}
        }
    }
    Ok(())
}

/// What keeps the kernel from forwarding between the device and the rest, if anything does.
#[must_use]
pub fn forwarding_fault() -> Option<&'static str> {
    let off = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim() != "1"
    };
    if off("/proc/sys/net/ipv4/ip_forward") {
        Some("the kernel does not forward IPv4: sysctl -w net.ipv4.ip_forward=1")
    } else if off("/proc/sys/net/ipv6/conf/all/forwarding") {
        Some("the kernel does not forward IPv6: sysctl -w net.ipv6.conf.all.forwarding=1")
    } else {
        None
    }
}

/// Whether a text is a prefix of either family; for command lines.
///
/// # Errors
/// What is wrong with it.
pub fn parse_prefix(text: &str) -> Result<Prefix, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an address block such as 198.51.100.0/24"))
}

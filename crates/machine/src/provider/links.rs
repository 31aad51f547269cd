//! Watches which devices are in our own network namespace, by netlink events.
//!
//! dpservice makes a TAP device when metalnet creates an interface, and the device vanishes with dpservice. A name that
//! comes (back) with a device of another index is therefore a new device, and whoever wants it must configure it anew.

use std::collections::BTreeMap;
use std::io;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// dpservice sets hardware address, MTU and queue length by name right after it made a device; it is left alone this long.
const SETTLE: Duration = Duration::from_millis(5);
/// Names waiting to be told; beyond that the teller waits.
pub const NEWS_MAX: usize = 1024;

/// A device that was not here before: name and index.
pub type News = (String, u32);

/// The devices of our namespace: name → index.
#[derive(Debug, Default)]
pub struct Links(RwLock<BTreeMap<String, u32>>);

impl Links {
    /// Index of the device when it is here.
    pub fn index(&self, name: &str) -> Option<u32> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .copied()
    }

    /// Records a device; true when it is another one than before.
    fn put(&self, name: String, index: u32) -> bool {
        let mut links = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // A renamed device has left its old name.
        links.retain(|other, i| *i != index || *other == name);
        links.insert(name, index) != Some(index)
    }

    fn remove(&self, index: u32) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, i| *i != index);
    }
}

/// Follows the devices until shutdown; names of new ones go to `news`.
pub async fn watch(
    links: &Links,
    news: mpsc::Sender<News>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let (connection, handle, mut messages) = new_multicast_connection(&[MulticastGroup::Link])?;
    let mut pump = std::pin::pin!(connection);
    let mut dump = std::pin::pin!(handle.link().get().execute());
    let mut dumping = true;
    loop {
        tokio::select! {
            () = &mut pump => return Err(io::Error::other("netlink connection ended")),
            link = dump.next(), if dumping => match link {
                Some(Ok(link)) => note(links, &link, &news).await,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => dumping = false,
            },
            message = messages.next() => {
                let Some((message, _)) = message else {
                    return Err(io::Error::other("netlink messages ended"));
                };
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                        note(links, &link, &news).await;
                    }
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                        links.remove(link.header.index);
                    }
                    NetlinkPayload::Overrun(_) => {
                        // Events were lost: ask for everything again.
                        tracing::warn!("netlink events were lost");
                        dump.set(handle.link().get().execute());
                        dumping = true;
                    }
                    _ => {}
                }
            }
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

async fn note(links: &Links, link: &LinkMessage, news: &mpsc::Sender<News>) {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
    let Some(name) = name else { return };
    if links.put(name.clone(), link.header.index) {
        tokio::time::sleep(SETTLE).await;
        // The receiver ends only at shutdown.
        let _ = news.send((name, link.header.index)).await;
    }
}

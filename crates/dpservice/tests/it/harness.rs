//! A real server in this process, whose ports are memory.

use dataplane::{EngineConfig, PortConfig, PortKind};
use dpservice::devices::{Devices, Driver, gateway_mac, machine_device, uplink_device};
use dpservice::service;
use dpservice::worker::{self, Settings};
use net::Mac;
use ports::{Frame, MemoryPeer, OpenError, memory};
use proto::dpdk::dpd_kironcore_client::DpdKironcoreClient;
use proto::dpdk::{self, IpVersion};
use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub type Client = DpdKironcoreClient<Channel>;

pub const HOST: Ipv6Addr = Ipv6Addr::new(0xfc00, 1, 0, 0, 0, 0, 0, 1);
pub const UPLINK_MAC: Mac = Mac([0x02, 0xff, 0, 0, 0, 0]);
pub const ROUTER_MAC: Mac = Mac([0x02, 0xee, 0, 0, 0, 0]);
pub const MACHINE_PORTS: u16 = 8;
/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Machine ports whose other ends the test holds.
#[derive(Default)]
pub struct MemoryDevices {
    pub machines: Mutex<BTreeMap<u16, MemoryPeer>>,
    pub broken: AtomicBool,
    /// A broken port was to be opened.
    pub refused: AtomicBool,
    /// No port opens meanwhile.
    pub held: AtomicBool,
}

impl Devices for MemoryDevices {
    fn netdev(&self, index: u16) -> String {
        format!("mem{index}")
    }

    fn open(&self, index: u16) -> Result<Driver, OpenError> {
        if self.broken.load(Ordering::Relaxed) {
            self.refused.store(true, Ordering::Relaxed);
            let cause = std::io::Error::from_raw_os_error(1);
            return Err(OpenError {
                device: self.netdev(index),
                action: "open",
                cause,
            });
        }
        while self.held.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let mac = Mac([0x02, 0, 0, 0, 0, index as u8]);
        let (port, peer) = memory::pair(&self.netdev(index), mac, 1500)?;
        self.machines.lock().unwrap().insert(index, peer);
        Ok(Driver::native(vec![port]))
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub devices: Arc<MemoryDevices>,
    /// The other end of the uplink.
    pub fabric: MemoryPeer,
    pub worker: worker::Handle,
    pub shutdown: CancellationToken,
    _tasks: JoinSet<anyhow::Result<()>>,
}

impl Server {
    pub async fn start() -> Server {
        Server::start_with(true, Settings::default()).await
    }

    pub async fn start_with(list_ipv6_routes: bool, settings: Settings) -> Server {
        let (uplink, fabric) = memory::pair("pf0", UPLINK_MAC, 9000).unwrap();
        let mut ports = vec![PortConfig {
            name: uplink_device(0),
            kind: PortKind::Uplink(0),
            mac: UPLINK_MAC,
        }];
        ports.extend((0..MACHINE_PORTS).map(|index| PortConfig {
            name: machine_device(index),
            kind: PortKind::Machine,
            mac: gateway_mac(HOST, index),
        }));
        let config = EngineConfig {
            ipv6_overlay: true,
            ..EngineConfig::new(HOST, ports)
        };
        let (worker, _threads, lost) =
            service::start_threads::<Frame>(&config, vec![Driver::native(vec![uplink])], settings)
                .await
                .unwrap();
        worker
            .call(|plane| {
                plane
                    .engine
                    .set_next_hop(dataplane::PortId(0), Some(ROUTER_MAC))
            })
            .await
            .unwrap();
        let devices = Arc::new(MemoryDevices::default());
        let dynamic: Arc<dyn Devices> = devices.clone();
        let service = service::service(&config, dynamic, list_ipv6_routes, worker.clone());
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(service::serve(service, lost, listener, shutdown.clone()));
        Server {
            address,
            devices,
            fabric,
            worker,
            shutdown,
            _tasks: tasks,
        }
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    pub async fn client(&self) -> Client {
        Client::new(self.channel().await)
    }

    /// A client of an initialized server.
    pub async fn initialized(&self) -> Client {
        let mut client = self.client().await;
        client.initialize(dpdk::InitializeRequest {}).await.unwrap();
        client
    }

    pub fn machine(&self, index: u16) -> MemoryPeer {
        self.devices
            .machines
            .lock()
            .unwrap()
            .get(&index)
            .expect("interface exists")
            .clone()
    }
}

/// Outcome of a call as one line: `0 Success`, `201 NOT_FOUND`, `Aborted not initialized`.
macro_rules! outcome {
    ($call:expr) => {
        match $call.await {
            Ok(reply) => {
                let status = reply.into_inner().status.expect("every reply has a status");
                format!("{} {}", status.code, status.message)
            }
            Err(status) => format!("{:?} {}", status.code(), status.message()),
        }
    };
}
pub(crate) use outcome;

pub fn ip(text: &str) -> Option<dpdk::IpAddress> {
    let ipver = if text.contains(':') {
        IpVersion::Ipv6
    } else {
        IpVersion::Ipv4
    };
    Some(dpdk::IpAddress {
        ipver: ipver.into(),
        address: text.into(),
    })
}

pub fn prefix(text: &str) -> Option<dpdk::Prefix> {
    let (address, length) = text.split_once('/').expect("address/length");
    let length = length.parse().expect("length");
    Some(dpdk::Prefix {
        ip: ip(address),
        length,
        underlay_route: Vec::new(),
    })
}

/// A valid request, to be spoiled by the test.
pub fn interface(id: &str, device: &str, ipv4: &str, ipv6: &str) -> dpdk::CreateInterfaceRequest {
    dpdk::CreateInterfaceRequest {
        interface_id: id.into(),
        vni: 100,
        ipv4_config: Some(dpdk::IpConfig {
            primary_address: ipv4.into(),
        }),
        ipv6_config: Some(dpdk::IpConfig {
            primary_address: ipv6.into(),
        }),
        device_name: device.into(),
        ..Default::default()
    }
}

pub fn create_prefix(id: &str, text: &str) -> dpdk::CreatePrefixRequest {
    dpdk::CreatePrefixRequest {
        interface_id: id.into(),
        prefix: prefix(text),
        preferred_underlay_route: Vec::new(),
    }
}

pub fn delete_prefix(id: &str, text: &str) -> dpdk::DeletePrefixRequest {
    dpdk::DeletePrefixRequest {
        interface_id: id.into(),
        prefix: prefix(text),
    }
}

pub fn create_route(vni: u32, text: &str, next_hop: &str) -> dpdk::CreateRouteRequest {
    dpdk::CreateRouteRequest {
        vni,
        route: Some(dpdk::Route {
            prefix: prefix(text),
            nexthop_vni: vni,
            nexthop_address: ip(next_hop),
            weight: 100,
        }),
        replace: false,
    }
}

pub fn delete_route(vni: u32, text: &str) -> dpdk::DeleteRouteRequest {
    let route = dpdk::Route {
        prefix: prefix(text),
        ..Default::default()
    };
    dpdk::DeleteRouteRequest {
        vni,
        route: Some(route),
    }
}

//! A data plane with one machine port: the real engine behind a real TAP device, on a thread of its own.

use std::net::Ipv6Addr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::{
    Engine, EngineConfig, Instant, InterfaceSpec, Metering, PortConfig, PortId, PortKind, Verdict,
};
use net::{Mac, Vni};
use ports::{Frame, Poller, Port, Tap};

const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 1]);
const PORT: PortId = PortId(2);

/// The device vanishes when this is dropped.
pub struct Plane {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Plane {
    /// Makes the device `name` in the caller's network namespace and serves a machine with these addresses.
    pub fn start(name: &str, ipv4: &str, ipv6: &str) -> Plane {
        let tap = Tap::create(name, MAC, 1500).expect("TAP devices need root and /dev/net/tun");
        let port = |name: &str, kind| PortConfig {
            name: name.to_owned(),
            kind,
            mac: MAC,
        };
        let ports = vec![
            port("u0", PortKind::Uplink(0)),
            port("u1", PortKind::Uplink(1)),
            port("m0", PortKind::Machine),
        ];
        let mut config = EngineConfig::new("fd00:1::1".parse::<Ipv6Addr>().unwrap(), ports);
        config.ipv6_overlay = true;
        config.limits.flows_max = 1000;
        let mut engine = Engine::new(config);
        engine.initialize();
        let spec = InterfaceSpec {
            id: "vm".to_owned(),
            device: "m0".to_owned(),
            vni: Vni::new(200).unwrap(),
            ipv4: ipv4.parse().ok(),
            ipv6: ipv6.parse().ok(),
            pxe: None,
            metering: Metering::default(),
            preferred_underlay: None,
            hostname: None,
        };
        engine.create_interface(spec).unwrap();
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || serve(&engine, tap, &stopped));
        Plane {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(engine: &Engine, mut tap: Tap, stopped: &Receiver<()>) {
    let poller = Poller::new().unwrap();
    poller.add(tap.readiness().unwrap(), 0).unwrap();
    let mut worker = engine.worker();
    let mut packets: Vec<Frame> = (0..8).map(|_| Frame::new()).collect();
    while stopped.try_recv() == Err(TryRecvError::Empty) {
        poller.wait(Duration::from_millis(5)).unwrap();
        let Ok(count) = tap.rx_burst(&mut packets) else {
            return;
        };
        for packet in packets.iter_mut().take(count) {
            let now = Instant::from_secs(1);
            if let Verdict::Reply(_) = engine.process(&mut worker, PORT, packet, now) {
                tap.tx_burst(&mut [&mut *packet]);
            }
            packet.clear();
        }
    }
}

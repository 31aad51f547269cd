//! What a hypervisor's kernel knows of machines: network namespaces, and the TAP devices that live as long as the data plane holds
//! them, in whatever namespace they are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dataplane::PortId;

use crate::region::plane::Plane;

/// The data plane's name of the first machine device ends in this number; the kernel's in 0.
const FIRST_PORT: u16 = 2;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The data plane's interface behind it.
    pub uid: String,
    pub port: PortId,
    pub index: u32,
    /// The machine's namespace that it is in.
    pub netns: Option<String>,
    /// Its name there.
    pub name: String,
    pub ips: Vec<String>,
}

#[derive(Default)]
pub struct Kernel {
    pub taps: Vec<Tap>,
    pub namespaces: BTreeSet<String>,
    indexes: u32,
    /// Devices that came into the first namespace, not told yet.
    pub news: VecDeque<(String, u32)>,
}

/// The kernel's name of a port's device.
fn name_of(port: PortId) -> String {
    format!("dtapvf_{}", port.0.saturating_sub(FIRST_PORT))
}

impl Kernel {
    /// Devices come and go with the interfaces of the data plane.
    pub fn follow(&mut self, plane: Option<&Plane>) {
        let interfaces = plane
            .into_iter()
            .flat_map(|plane| plane.engine.interfaces());
        let live: BTreeMap<PortId, String> = interfaces
            .map(|interface| (interface.port, interface.spec.id.clone()))
            .collect();
        self.taps
            .retain(|tap| live.get(&tap.port) == Some(&tap.uid));
        for (port, uid) in live {
            if self.taps.iter().all(|tap| tap.port != port) {
                self.bring(uid, port);
            }
        }
    }

    fn bring(&mut self, uid: String, port: PortId) {
        self.indexes += 1;
        let tap = Tap {
            uid,
            port,
            index: self.indexes,
            netns: None,
            name: name_of(port),
            ips: Vec::new(),
        };
        self.news.push_back((tap.name.clone(), tap.index));
        self.taps.push(tap);
    }

    /// A device of the first namespace.
    pub fn index(&self, name: &str) -> Option<u32> {
        let here = |tap: &&Tap| tap.netns.is_none() && tap.name == name;
        self.taps.iter().find(here).map(|tap| tap.index)
    }

    fn find(&mut self, netns: Option<&str>, name: &str) -> Option<&mut Tap> {
        let mut taps = self.taps.iter_mut();
        taps.find(|tap| tap.netns.as_deref() == netns && tap.name == name)
    }

    /// A device in a machine.
    pub fn inside(&mut self, netns: &str, device: &str) -> Option<&mut Tap> {
        self.find(Some(netns), device)
    }

    /// The device of a port.
    pub fn at(&self, port: PortId) -> Option<&Tap> {
        self.taps.iter().find(|tap| tap.port == port)
    }

    /// Moves a device into a machine. False when it is not there.
    pub fn take(&mut self, name: &str, netns: &str, device: &str) -> bool {
        if !self.namespaces.contains(netns) {
            return false;
        }
        let Some(tap) = self.find(None, name) else {
            return false;
        };
        tap.netns = Some(netns.to_owned());
        tap.name = device.to_owned();
        true
    }

    /// Moves a device back, without addresses.
    pub fn release(&mut self, netns: &str, device: &str, name: &str) {
        let Some(tap) = self.find(Some(netns), device) else {
            return;
        };
        tap.netns = None;
        tap.name = name.to_owned();
        tap.ips.clear();
        let news = (tap.name.clone(), tap.index);
        self.news.push_back(news);
    }

    /// Deletes a device of a machine: the data plane makes it anew.
    pub fn delete(&mut self, netns: &str, device: &str) {
        let gone = |tap: &Tap| tap.netns.as_deref() == Some(netns) && tap.name == device;
        if let Some(at) = self.taps.iter().position(gone) {
            let tap = self.taps.swap_remove(at);
            self.bring(tap.uid, tap.port);
        }
    }

    /// Removes a namespace with the devices in it.
    pub fn remove(&mut self, netns: &str) {
        self.namespaces.remove(netns);
        let inside = self.taps.iter();
        let inside = inside.filter(|tap| tap.netns.as_deref() == Some(netns));
        let names: Vec<String> = inside.map(|tap| tap.name.clone()).collect();
        for name in names {
            self.delete(netns, &name);
        }
    }

    /// The machine is switched off.
    pub fn crash(&mut self) {
        self.taps.clear();
        self.namespaces.clear();
        self.news.clear();
    }
}

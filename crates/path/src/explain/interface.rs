//! An interface in the objects and in its data plane: states, conditions, hypervisor, device.

use api::apinet::NetworkInterfaceState as NetState;
use api::compute::{MachineState, Power};
use api::metalnet::State as MetalState;
use api::networking::NetworkInterfaceState;
use controller::object;
use metalnet::model::Uid;
use metalnet::plan::observed::Interface;

use super::ends::{Nic, short};
use super::{Walk, broken, unknown, unready, warning};
use crate::model::{Finding, Hop, Level, Source, Stage};
use crate::snapshot::named;

impl<'a> Walk<'a> {
    /// What the data plane of an interface knows of it.
    pub(super) fn live(&self, nic: &Nic<'_>) -> Option<&'a Interface> {
        let inventory = self.snapshot.inventory(nic.node?)?;
        let uid = Uid::new(object::uid(nic.metal?))?;
        inventory.interface(&uid)
    }

    /// Whether the data plane of an interface was asked and answered.
    pub(super) fn is_asked(&self, nic: &Nic<'_>) -> bool {
        nic.node
            .is_some_and(|node| self.snapshot.inventory(node).is_some())
    }

    /// The machine that sends or receives.
    pub(super) fn machine(&mut self, nic: &Nic<'a>, stage: Stage) {
        let happens = match stage {
            Stage::Sender => format!("sends through {}", object::name(nic.user)),
            _ => format!("receives through {}", object::name(nic.user)),
        };
        let mut hop = Hop::new(nic.place(), stage, happens);
        let Some(machine) = nic.machine else {
            let text = format!("no machine uses interface {}", nic.label());
            let next = "name the interface in the spec.networkInterfaces of a machine";
            hop.find(broken("NoMachine", Source::Objects, text).next(next));
            self.push(hop);
            return;
        };
        let name = format!("{}/{}", object::namespace(machine), object::name(machine));
        let state = machine.status.as_ref().and_then(|status| status.state);
        let next = format!(
            "kubectl --namespace {} describe machine {}",
            object::namespace(machine),
            object::name(machine)
        );
        hop.because = format!(
            "machine {name} is {}",
            state.map_or_else(|| "not scheduled".to_owned(), |s| s.to_string())
        );
        if object::is_deleting(machine) {
            let text = format!("machine {name} is being deleted");
            hop.find(warning("MachineDeleting", Source::Objects, text));
        }
        if machine.spec.power == Some(Power::Off) {
            let text = format!("machine {name} is switched off");
            hop.find(
                broken("MachineOff", Source::Objects, text)
                    .next("set spec.power of the machine to On"),
            );
        } else if state != Some(MachineState::Running) {
            let text = format!("machine {name} does not run");
            hop.find(broken("MachineNotRunning", Source::Objects, text).next(next));
        }
        self.push(hop);
    }

    /// The chain of objects behind an interface, and its data plane. False if it is nowhere yet.
    pub(super) fn interface(&mut self, nic: &Nic<'a>) -> bool {
        if let Some(node) = nic.node {
            self.visit(node);
        }
        let live = self.live(nic);
        let address = nic.addresses();
        let mut hop = Hop::new(nic.host(), Stage::Interface, "is on its hypervisor");
        let vni = nic
            .vni
            .map_or_else(|| "none yet".to_owned(), |v| v.get().to_string());
        hop.because = match live {
            Some(interface) => format!(
                "network {} (VNI {vni}), device {}, underlay {}",
                nic.network_name(),
                interface.device,
                interface.underlay
            ),
            None => format!("network {} (VNI {vni})", nic.network_name()),
        };
        let confirmed = live.is_some_and(|interface| {
            Some(interface.vni) == nic.vni
                && address.iter().all(|a| {
                    interface.ipv4.map(Into::into) == Some(*a)
                        || interface.ipv6.map(Into::into) == Some(*a)
                })
        });
        for finding in self.chain(nic, confirmed) {
            hop.find(finding);
        }
        if let Some(finding) = self.realised(nic, live, confirmed) {
            hop.find(finding);
        }
        let known = nic.node.is_some() && nic.vni.is_some();
        self.push(hop);
        known
    }

    /// What the objects say. A state that the data plane disproves is only odd.
    fn chain(&self, nic: &Nic<'a>, confirmed: bool) -> Vec<Finding> {
        let mut all = Vec::new();
        let namespace = object::namespace(nic.user);
        let describe = |kind: &str, name: &str| {
            format!("kubectl --namespace {namespace} describe {kind} {name}")
        };
        let mut add = |reason, text: String, next: String| {
            let level = if confirmed {
                Level::Warning
            } else {
                Level::Broken
            };
            let found = super::finding(level, reason, Source::Objects, text);
            all.push(found.next(next));
        };
        let conditions = nic.user.status.iter().flat_map(|s| s.conditions.clone());
        let conditions: Vec<_> = conditions.collect();
        let why = unready(&conditions).map_or_else(String::new, |why| format!(" ({why})"));
        let state = nic.user.status.as_ref().and_then(|s| s.state);
        if state != Some(NetworkInterfaceState::Available) {
            let shown = state.map_or_else(|| "without state".to_owned(), |s| s.to_string());
            add(
                "InterfaceNotAvailable",
                format!("interface {} is {shown}{why}", nic.label()),
                describe("networkinterface", object::name(nic.user)),
            );
        } else if !why.is_empty() {
            add(
                "InterfaceNotReady",
                format!("interface {} is not ready{why}", nic.label()),
                describe("networkinterface", object::name(nic.user)),
            );
        }
        match nic.network {
            None => add(
                "NetworkMissing",
                format!("there is no network {namespace}/{}", nic.network_name()),
                format!("kubectl --namespace {namespace} get networks"),
            ),
            Some(_) if nic.vni.is_none() => add(
                "NetworkPending",
                format!("network {namespace}/{} has no VNI yet", nic.network_name()),
                describe("network", nic.network_name()),
            ),
            Some(_) => {}
        }
        let objects = &self.snapshot.objects;
        let hidden = |kind: &str| objects.unlisted.contains_key(kind);
        if nic.net.is_none() && !hidden("networkinterfaces.core.apinet.openkcm.dev") {
            add(
                "NotOnHypervisor",
                format!("no hypervisor has made interface {} yet", nic.label()),
                describe("machine", nic.machine.map_or("", |m| object::name(m))),
            );
        }
        if let Some(net) = nic.net {
            let state = net.status.as_ref().and_then(|s| s.state);
            if state != Some(NetState::Ready) {
                let shown = state.map_or_else(|| "without state".to_owned(), |s| s.to_string());
                add(
                    "HypervisorState",
                    format!("the interface is {shown} in OpenKCM-net on {}", nic.host()),
                    format!(
                        "kubectl --namespace {} describe networkinterfaces.core.apinet.openkcm.dev {}",
                        object::namespace(net),
                        object::name(net)
                    ),
                );
            }
        }
        if let Some(metal) = nic.metal {
            let state = metal.status.as_ref().and_then(|s| s.state);
            if state != Some(MetalState::Ready) {
                let shown = state.map_or_else(|| "without state".to_owned(), |s| s.to_string());
                add(
                    "MetalnetState",
                    format!("metalnet on {} shows the interface as {shown}", nic.host()),
                    format!(
                        "kubectl --namespace {} describe networkinterfaces.networking.metalnet.openkcm.dev {}",
                        object::namespace(metal),
                        object::name(metal)
                    ),
                );
            }
        } else if nic.net.is_some() && !hidden("networkinterfaces.networking.metalnet.openkcm.dev")
        {
            add(
                "MetalnetMissing",
                format!(
                    "metalnet on {} does not know the interface: metalnetlet has not handed it over",
                    nic.host()
                ),
                "look at the log of metalnetlet".to_owned(),
            );
        }
        all.extend(self.node(nic));
        all
    }

    fn node(&self, nic: &Nic<'a>) -> Option<Finding> {
        let name = nic.node?;
        let node = named(&self.snapshot.objects.net_nodes, "", name)?;
        let conditions = node.status.as_ref().map_or(&[][..], |s| &s.conditions[..]);
        let why = unready(conditions)?;
        let text = format!("hypervisor {} does not report: {why}", short(name));
        let next = format!("kubectl describe nodes.core.apinet.openkcm.dev {name}");
        // It may well go on forwarding: its data plane does not need those who report.
        Some(if node.is_lost() && !self.is_asked(nic) {
            unknown("NodeLost", Source::Objects, text).next(next)
        } else {
            warning("NodeNotReady", Source::Objects, text).next(next)
        })
    }

    /// What the data plane says.
    fn realised(
        &self,
        nic: &Nic<'a>,
        live: Option<&Interface>,
        confirmed: bool,
    ) -> Option<Finding> {
        let node = nic.node?;
        let host = short(node);
        match self.snapshot.dataplane(node).map(|found| &found.inventory) {
            None => return None,
            Some(Err(why)) => {
                let text = format!("dpservice of {host} did not answer: {why}");
                let next =
                    format!("look at dpservice on {host}: without it, nothing is forwarded there");
                return Some(unknown("DataplaneSilent", Source::Dpservice, text).next(next));
            }
            Some(Ok(_)) => {}
        }
        let next = format!("look at the log of metalnet on {host}");
        let Some(interface) = live else {
            let text = format!("dpservice of {host} has no interface for {}", nic.label());
            return Some(broken("InterfaceMissing", Source::Dpservice, text).next(next));
        };
        if confirmed {
            return None;
        }
        let text = format!(
            "dpservice of {host} has the interface with VNI {} and {}{}, the objects say otherwise",
            interface.vni.get(),
            interface.ipv4.map_or_else(String::new, |a| format!("{a} ")),
            interface.ipv6.map_or_else(String::new, |a| a.to_string()),
        );
        Some(broken("InterfaceDiffers", Source::Dpservice, text).next(next))
    }
}

//! Whatever happens in whatever order, with any call failing at any time: when it is quiet again, all is as wanted.

use metalnet::model::Filter;
use metalnet::plan::ops::{DpError, DpOp};
use metalnet::plan::rib::Heard;
use proptest::prelude::*;

use crate::sim::{Sim, Trouble, allow, balancer, nat, prefix, spec};

#[derive(Debug, Clone)]
enum Event {
    Set {
        nic: u8,
        network: u8,
        v6: bool,
        prefixes: u8,
        rate: bool,
        services: Services,
    },
    Balance {
        balancer: u8,
        network: u8,
        public: bool,
        ports: u8,
    },
    DeleteBalancer {
        balancer: u8,
    },
    /// Another host's share of the NAT address: a slot of ports, or two slots at once.
    Share {
        table: u8,
        slot: u8,
        wide: bool,
        hop: u8,
        present: bool,
    },
    Target {
        table: u8,
        balancer: u8,
        hop: u8,
        present: bool,
    },
    /// `kill -9`; the others go on announcing.
    KillAgent,
    /// What the second network lets the first one have.
    Peer {
        filter: u8,
    },
    Delete {
        nic: u8,
    },
    Learn {
        table: u8,
        host: u8,
        hop: u8,
        present: bool,
    },
    Router {
        hop: u8,
        present: bool,
    },
    RestartDpservice,
    RestartAgent,
    Heard(Heard),
    /// The next calls fail: how many, and with what.
    Fail {
        count: u8,
        kind: u8,
    },
    Api {
        down: bool,
    },
    Step {
        count: u8,
    },
    Settle,
}

/// What an interface has besides addresses; few values, so that interfaces get into each other's way.
#[derive(Debug, Clone)]
struct Services {
    vip: Option<u8>,
    slot: Option<u8>,
    targets: u8,
    rules: u8,
    public6: bool,
}

fn services() -> impl Strategy<Value = Services> {
    let vip = prop::option::of(0..3u8);
    (vip, prop::option::of(0..4u8), 0..4u8, 0..8u8, any::<bool>()).prop_map(
        |(vip, slot, targets, rules, public6)| Services {
            vip,
            slot,
            targets,
            rules,
            public6,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..5u8, 0..2u8, any::<bool>(), 0..4u8, any::<bool>(), services())
            .prop_map(|(nic, network, v6, prefixes, rate, services)| Event::Set {
                nic, network, v6, prefixes, rate, services,
            }),
        4 => (0..3u8, 0..2u8, any::<bool>(), 1..4u8)
            .prop_map(|(balancer, network, public, ports)| Event::Balance { balancer, network, public, ports }),
        2 => (0..3u8).prop_map(|balancer| Event::DeleteBalancer { balancer }),
        6 => (0..2u8, 0..4u8, any::<bool>(), 0..3u8, any::<bool>())
            .prop_map(|(table, slot, wide, hop, present)| Event::Share { table, slot, wide, hop, present }),
        5 => (0..2u8, 0..2u8, 0..4u8, any::<bool>())
            .prop_map(|(table, balancer, hop, present)| Event::Target { table, balancer, hop, present }),
        1 => Just(Event::KillAgent),
        2 => (0..4u8).prop_map(|filter| Event::Peer { filter }),
        3 => (0..5u8).prop_map(|nic| Event::Delete { nic }),
        6 => (0..2u8, 0..8u8, 0..3u8, any::<bool>())
            .prop_map(|(table, host, hop, present)| Event::Learn { table, host, hop, present }),
        1 => (0..2u8, any::<bool>()).prop_map(|(hop, present)| Event::Router { hop, present }),
        1 => Just(Event::RestartDpservice),
        1 => Just(Event::RestartAgent),
        1 => prop_oneof![Just(Heard::Silent), Just(Heard::Listening), Just(Heard::Dumped), Just(Heard::All)]
            .prop_map(Event::Heard),
        2 => (1..4u8, 0..6u8).prop_map(|(count, kind)| Event::Fail { count, kind }),
        1 => any::<bool>().prop_map(|down| Event::Api { down }),
        8 => (1..6u8).prop_map(|count| Event::Step { count }),
        2 => Just(Event::Settle),
    ]
}

fn trouble(kind: u8) -> Trouble {
    let code = |code, message: &str| DpError::Code {
        code,
        message: message.to_owned(),
    };
    Trouble::Refused(match kind {
        0 => DpError::Unavailable("lost".to_owned()),
        1 => code(208, "OUT_OF_MEMORY"),
        2 => code(301, "ROUTE_EXISTS"),
        3 => DpError::Argument("no".to_owned()),
        4 => return Trouble::AnswerLost,
        _ => return Trouble::Late,
    })
}

/// Names of the machines' addresses overlap with those of remote hosts on purpose.
fn apply(sim: &mut Sim, event: Event) {
    match event {
        Event::Set {
            nic,
            network,
            v6,
            prefixes,
            rate,
            services,
        } => {
            let name = format!("n{nic}");
            if sim
                .nics
                .get(&crate::sim::uid(&name))
                .is_some_and(|nic| nic.meta.deleting)
            {
                return;
            }
            let list: Vec<String> = (0..prefixes)
                .map(|p| format!("10.{nic}.{p}.0/24"))
                .collect();
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            let v6 = if v6 {
                format!("2001:db8::{nic}")
            } else {
                String::new()
            };
            let mut spec = spec(&format!("10.0.0.{nic}"), &v6, &list);
            spec.total_rate = if rate { 100 } else { 0 };
            let Services {
                vip,
                slot,
                targets,
                rules,
                public6,
            } = services;
            // The last of these is the address that is shared for NAT otherwise: nobody may have both.
            let vip = vip.filter(|vip| *vip != 2 || slot.is_none());
            // An address stands for one interface only; which of the others uses it does not matter.
            let free = |address: &str| {
                sim.nics.values().all(|other| {
                    let spec = other.spec.as_ref().unwrap();
                    let other_name = other.meta.key.name.as_str();
                    let vip = spec.vip.map(|vip| vip.to_string());
                    let nat = spec.nat.map(|nat| nat.address.to_string());
                    other_name == name
                        || other.meta.deleting
                        || (vip.as_deref() != Some(address) && nat.as_deref() != Some(address))
                })
            };
            let vip = vip.map(|vip| format!("203.0.113.{vip}"));
            let vip = vip.filter(|address| free(address));
            spec.vip = vip.map(|address| address.parse().unwrap());
            let shared = sim.nics.values().any(|other| {
                let spec = other.spec.as_ref().unwrap();
                spec.vip.is_some_and(|vip| vip.to_string() == "203.0.113.2")
                    && other.meta.key.name != name
            });
            spec.nat = slot.filter(|_| !shared).map(|slot| {
                nat(
                    "203.0.113.2",
                    1024 + 64 * u16::from(slot),
                    1088 + 64 * u16::from(slot),
                )
            });
            spec.targets = (0..targets)
                .map(|target| prefix(&format!("203.0.113.10{target}/32")))
                .collect();
            spec.rules = (0..3u16)
                .filter(|rule| rules & (1 << rule) != 0)
                // The same id, another content.
                .map(|rule| (format!("r{rule}"), allow(rule + u16::from(rules))))
                .collect();
            if public6 {
                let public = prefix(&format!("2001:db8:f::{nic}/128"));
                spec.public.insert(public);
                spec.prefixes.insert(public);
            }
            sim.set_nic(&name, &format!("net{network}"), spec);
        }
        Event::Balance {
            balancer: number,
            network,
            public,
            ports,
        } => {
            let name = format!("b{number}");
            let deleting = sim.balancers.get(&crate::sim::uid(&name));
            if deleting.is_some_and(|balancer| balancer.meta.deleting) {
                return;
            }
            let ports: Vec<u16> = (80..80 + u16::from(ports)).collect();
            let address = format!("203.0.113.10{number}");
            sim.set_balancer(
                &name,
                &format!("net{network}"),
                balancer(public, &address, &ports),
            );
        }
        Event::DeleteBalancer { balancer } => sim.delete_balancer(&format!("b{balancer}")),
        Event::Share {
            table,
            slot,
            wide,
            hop,
            present,
        } => {
            let first = 1024 + 64 * u16::from(slot);
            let share = nat("203.0.113.2", first, first + if wide { 128 } else { 64 });
            sim.share(
                200 + u32::from(table),
                share,
                &format!("fc00::a{hop}"),
                present,
            );
        }
        Event::Target {
            table,
            balancer,
            hop,
            present,
        } => {
            let address = format!("203.0.113.10{balancer}");
            sim.target(
                200 + u32::from(table),
                &address,
                &format!("fc00::b{hop}"),
                present,
            );
        }
        Event::Peer { filter } => {
            let within = |list: &[&str]| Filter::Within(list.iter().map(|p| prefix(p)).collect());
            let filter = match filter {
                0 => None,
                1 => Some(Filter::All),
                2 => Some(within(&["10.0.0.0/30", "10.3.0.0/16"])),
                _ => Some(within(&[])),
            };
            let peers: Vec<(u32, Filter)> =
                filter.into_iter().map(|filter| (200, filter)).collect();
            sim.add_network("net1", 201, &peers);
        }
        Event::KillAgent => {
            sim.kill_agent();
            sim.connect();
            sim.settle();
            sim.sync();
        }
        Event::Delete { nic } => sim.delete_nic(&format!("n{nic}")),
        Event::Learn {
            table,
            host,
            hop,
            present,
        } => {
            sim.learn(
                200 + u32::from(table),
                &format!("10.0.0.{host}/32"),
                &format!("fc00::{hop}"),
                present,
            );
        }
        Event::Router { hop, present } => {
            sim.learn(100, "0.0.0.0/0", &format!("fc00::f{hop}"), present)
        }
        Event::RestartDpservice => sim.restart_dpservice(),
        Event::RestartAgent => {
            sim.restart_agent();
            sim.connect();
            sim.settle();
            sim.sync();
        }
        Event::Heard(heard) => sim.hear(heard),
        Event::Fail { count, kind } => {
            let mut left = count;
            sim.fault = Some(Box::new(move |op| {
                let listing =
                    matches!(op, DpOp::List | DpOp::Initialize) && (1..=3).contains(&kind);
                if left == 0 || listing {
                    return None;
                }
                left -= 1;
                Some(trouble(kind))
            }));
        }
        Event::Api { down } => sim.api_down = down,
        Event::Step { count } => {
            for _ in 0..count {
                sim.step();
            }
        }
        Event::Settle => {
            sim.settle();
        }
    }
}

proptest! {
    // 256 cases unless PROPTEST_CASES says otherwise: more of them, for longer, is how rare orders of events are found.
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn converges(events in prop::collection::vec(event(), 1..60)) {
        let mut sim = Sim::started(8);
        sim.add_network("net0", 200, &[]);
        sim.add_network("net1", 201, &[]);
        for event in events {
            apply(&mut sim, event);
        }
        sim.fault = None;
        sim.api_down = false;
        sim.settle();
        sim.hear(Heard::All);
        sim.settle();
        sim.check_routes();
        sim.check();
        // All deleted: nothing may be left anywhere.
        for balancer in 0..3 {
            sim.delete_balancer(&format!("b{balancer}"));
        }
        for nic in 0..5 {
            sim.delete_nic(&format!("n{nic}"));
        }
        sim.settle();
        prop_assert!(sim.balancers.is_empty() && sim.model.balancers.is_empty());
        prop_assert!(sim.model.neighbors.is_empty());
        prop_assert!(sim.nics.is_empty() && sim.claims.is_empty() && sim.announced.is_empty());
        prop_assert!(sim.model.interfaces.is_empty() && sim.model.tables.is_empty());
        prop_assert_eq!(sim.subscribed.len(), 1);
    }
}

//! Whatever happens in whatever order, with any call failing at any time: when it is quiet again, all is as wanted.

use metalnet::plan::ops::{DpError, DpOp};
use metalnet::plan::rib::Heard;
use proptest::prelude::*;

use crate::sim::{Sim, Trouble, spec};

#[derive(Debug, Clone)]
enum Event {
    Set {
        nic: u8,
        network: u8,
        v6: bool,
        prefixes: u8,
        rate: bool,
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

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..5u8, 0..2u8, any::<bool>(), 0..4u8, any::<bool>())
            .prop_map(|(nic, network, v6, prefixes, rate)| Event::Set { nic, network, v6, prefixes, rate }),
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
            sim.set_nic(&name, &format!("net{network}"), spec);
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
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

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
        sim.check();
        // All deleted: nothing may be left anywhere.
        for nic in 0..5 {
            sim.delete_nic(&format!("n{nic}"));
        }
        sim.settle();
        prop_assert!(sim.nics.is_empty() && sim.claims.is_empty() && sim.announced.is_empty());
        prop_assert!(sim.model.interfaces.is_empty() && sim.model.tables.is_empty());
        prop_assert_eq!(sim.subscribed.len(), 1);
    }
}

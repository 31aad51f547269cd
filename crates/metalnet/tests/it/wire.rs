//! The model of dpservice is held to the real one: the same calls, over real gRPC to a server on memory ports, are answered
//! the same way and leave the same inventory.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use dataplane::{EngineConfig, PortConfig, PortKind};
use dpservice::devices::{Devices, Driver, gateway_mac, machine_device, uplink_device};
use dpservice::worker::Settings;
use metalnet::dpservice as shell;
use metalnet::model::Prefix;
use metalnet::plan::observed::{Hop, Neighbor, Observed};
use metalnet::plan::ops::{
    BalancerRequest, DpDone, DpError, DpOp, InterfaceRequest, Part, RouteKey,
};
use metalnet::services::{Action, Direction, Matching, Rule};
use net::Mac;
use ports::{Frame, OpenError, memory};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::model::Model;
use crate::sim::{allow, balancer, nat, prefix, uid, vni};

const DEVICES: u16 = 4;
const DEADLINE: Duration = Duration::from_secs(20);

struct Memory;

impl Devices for Memory {
    fn netdev(&self, index: u16) -> String {
        format!("mem{index}")
    }

    fn open(&self, index: u16) -> Result<Driver, OpenError> {
        let mac = Mac([0x02, 0, 0, 0, 0, index as u8]);
        let (port, _) = memory::pair(&self.netdev(index), mac, 1500)?;
        Ok(Driver::native(vec![port]))
    }
}

/// A running dpservice, and metalnet's way to it.
struct Real {
    service: shell::Service,
    _tasks: JoinSet<()>,
    _shutdown: tokio_util::sync::DropGuard,
}

async fn start() -> Real {
    let host = Ipv6Addr::new(0xfc00, 1, 0, 0, 0, 0, 0, 1);
    let (uplink, fabric) = memory::pair("pf0", Mac([2, 255, 0, 0, 0, 0]), 9000).unwrap();
    let mut ports = vec![PortConfig {
        name: uplink_device(0),
        kind: PortKind::Uplink(0),
        mac: Mac([2, 255, 0, 0, 0, 0]),
    }];
    ports.extend((0..DEVICES).map(|index| PortConfig {
        name: machine_device(index),
        kind: PortKind::Machine,
        mac: gateway_mac(host, index),
    }));
    let config = EngineConfig {
        ipv6_overlay: true,
        ..EngineConfig::new(host, ports)
    };
    let drivers = vec![Driver::native(vec![uplink])];
    let started =
        dpservice::service::start_threads::<Frame>(&config, drivers, Settings::default()).await;
    let (worker, threads, lost) = started.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shutdown = CancellationToken::new();
    let server = dpservice::service::service(&config, Arc::new(Memory), true, worker);
    let mut tasks = JoinSet::new();
    let stop = shutdown.clone();
    tasks.spawn(async move {
        let _held = (threads, fabric);
        dpservice::service::serve(server, lost, listener, stop)
            .await
            .unwrap();
    });
    let (current, service) = shell::channel();
    let (inputs, mut seen) = mpsc::channel(16);
    let endpoint = shell::endpoint(&address).unwrap();
    let bell = service.bell();
    tasks.spawn(shell::supervise(
        endpoint,
        current,
        bell,
        inputs,
        shutdown.clone(),
    ));
    tokio::time::timeout(DEADLINE, seen.recv()).await.unwrap();
    Real {
        service,
        _tasks: tasks,
        _shutdown: shutdown.drop_guard(),
    }
}

/// The answer without what is not the same twice: underlay addresses, ids of instances, wording.
fn outcome(result: &Result<DpDone, DpError>) -> String {
    match result {
        Ok(DpDone::Underlay(_)) => "underlay".to_owned(),
        Ok(DpDone::Guarded(_)) => "guarded".to_owned(),
        Ok(DpDone::Instance(_)) => "instance".to_owned(),
        Ok(DpDone::Done) => "done".to_owned(),
        Ok(DpDone::Inventory(_)) => "inventory".to_owned(),
        Err(DpError::Code { code, .. }) => code.to_string(),
        Err(DpError::Argument(_)) => "argument".to_owned(),
        Err(DpError::Uninitialized) => "uninitialised".to_owned(),
        Err(DpError::Unavailable(why)) => format!("unavailable: {why}"),
    }
}

/// An inventory as text in which underlay addresses are numbered in the order in which they appear.
fn shape(observed: &Observed) -> String {
    let text = format!("{observed:#?}");
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let word = |word: &str| {
        let address = word.trim_end_matches(',');
        let own = address.starts_with("fc00:1:") && address.parse::<Ipv6Addr>().is_ok();
        if !own {
            return word.to_owned();
        }
        let next = names.len();
        let number = *names.entry(address.to_owned()).or_insert(next);
        word.replace(address, &format!("underlay{number}"))
    };
    let words: Vec<String> = text.split_whitespace().map(word).collect();
    words.join(" ")
}

fn interface(name: &str, device: u16, ipv4: &str, ipv6: &str) -> DpOp {
    DpOp::CreateInterface {
        uid: uid(name),
        request: Box::new(InterfaceRequest {
            vni: vni(200),
            device: machine_device(device),
            ipv4: ipv4.parse().ok(),
            ipv6: ipv6.parse().ok(),
            total_rate: 0,
            public_rate: 0,
            hostname: "vm".to_owned(),
            rules: BTreeMap::new(),
        }),
    }
}

/// An interface that comes with all kinds of rules.
fn guarded(name: &str, device: u16, ipv4: &str) -> DpOp {
    let mut op = interface(name, device, ipv4, "");
    if let DpOp::CreateInterface { request, .. } = &mut op {
        let named = rules()
            .into_iter()
            .zip(0..)
            .map(|(content, number)| (format!("r{number}"), content));
        request.rules = named.collect();
    }
    op
}

fn part(name: &str, part: Part) -> DpOp {
    DpOp::CreatePart {
        uid: uid(name),
        part: Box::new(part),
    }
}

fn rule(name: &str, id: &str, rule: Rule) -> DpOp {
    let id = id.to_owned();
    part(name, Part::Rule { id, rule })
}

fn create_balancer(name: &str, address: &str) -> DpOp {
    let spec = balancer(true, address, &[80, 443]);
    DpOp::CreateBalancer {
        uid: uid(name),
        request: Box::new(BalancerRequest {
            vni: vni(300),
            address: spec.address,
            ports: spec.ports,
        }),
    }
}

fn neighbor(table: u32, first: u16) -> Neighbor {
    Neighbor {
        vni: vni(table),
        share: nat("203.0.113.9", first, first + 64),
    }
}

fn create_neighbor(table: u32, first: u16) -> DpOp {
    DpOp::CreateNeighbor {
        neighbor: neighbor(table, first),
        underlay: "fc00:2::9".parse().unwrap(),
    }
}

fn route(destination: &str, via: &str) -> DpOp {
    DpOp::CreateRoute {
        key: key(destination),
        hop: Hop {
            vni: vni(200),
            address: via.parse().unwrap(),
        },
    }
}

fn key(destination: &str) -> RouteKey {
    RouteKey {
        vni: vni(200),
        prefix: prefix(destination),
    }
}

fn rules() -> Vec<Rule> {
    let any = prefix("0.0.0.0/0");
    let six: Prefix = prefix("2001:db8::/32");
    let base = Rule {
        direction: Direction::Egress,
        action: Action::Deny,
        priority: 65535,
        source: any,
        destination: prefix("10.1.0.0/16"),
        matching: Matching::Any,
    };
    let udp = Matching::Udp {
        source: Some((1, 65535)),
        destination: None,
    };
    let icmp = Matching::Icmp {
        kind: Some(8),
        code: None,
    };
    vec![
        allow(22),
        base,
        Rule {
            matching: udp,
            ..base
        },
        Rule {
            matching: icmp,
            priority: 0,
            ..base
        },
        Rule {
            source: six,
            destination: prefix("::/0"),
            ..allow(80)
        },
    ]
}

/// Creations, each also a second time, and everything that gets into the way of something else.
fn creations() -> Vec<DpOp> {
    let target = "fc00:2::7".parse().unwrap();
    let vip = |address: &str| Part::Vip(address.parse().unwrap());
    let mut ops = vec![
        DpOp::List,
        DpOp::Initialize,
        part("a", vip("203.0.113.7")),
        interface("a", 0, "10.0.0.1", "2001:db8::1"),
        interface("a", 1, "10.0.0.9", ""),
        interface("b", 0, "10.0.0.2", ""),
        interface("b", 1, "10.0.0.1", ""),
        interface("b", 1, "10.0.0.2", ""),
        interface("c", 99, "10.0.0.3", ""),
        guarded("d", 2, "10.0.0.4"),
        DpOp::CreatePrefix {
            uid: uid("a"),
            prefix: prefix("2001:db8:f::1/128"),
        },
        part("a", vip("203.0.113.7")),
        part("a", vip("203.0.113.8")),
        part("b", vip("203.0.113.7")),
        part("a", Part::Nat(nat("203.0.113.9", 1024, 2048))),
        part("a", Part::Nat(nat("203.0.113.9", 1024, 2048))),
        part("b", Part::Nat(nat("203.0.113.9", 2048, 4096))),
        part("b", vip("203.0.113.9")),
        part("a", Part::Target(prefix("203.0.113.80/32"))),
        part("a", Part::Target(prefix("203.0.113.80/32"))),
        part("b", Part::Target(prefix("2001:db8::80/128"))),
        create_neighbor(200, 8192),
        create_neighbor(200, 8200),
        create_neighbor(300, 8192),
        create_neighbor(400, 9000),
        create_balancer("lb", "203.0.113.80"),
        create_balancer("lb", "203.0.113.81"),
        create_balancer("lb2", "203.0.113.80"),
        create_balancer("lb2", "2001:db8::80"),
        DpOp::CreateTarget {
            uid: uid("lb"),
            target,
        },
        DpOp::CreateTarget {
            uid: uid("lb"),
            target,
        },
        DpOp::CreateTarget {
            uid: uid("none"),
            target,
        },
        route("10.9.0.0/16", "fc00:2::1"),
        route("10.9.0.0/16", "fc00:2::2"),
        route("10.0.0.1/32", "fc00:2::2"),
        route("::/0", "fc00:2::3"),
    ];
    ops.extend(
        rules()
            .into_iter()
            .zip(0..)
            .map(|(content, number)| rule("a", &format!("r{number}"), content)),
    );
    ops.push(rule("a", "r0", allow(1)));
    ops.push(rule("none", "r0", allow(1)));
    ops
}

/// Changes, then removals in the order in which metalnet makes them, each also a second time.
fn removals() -> Vec<DpOp> {
    let target = "fc00:2::7".parse().unwrap();
    let twice = |op: DpOp| [op.clone(), op];
    let mut ops = vec![
        DpOp::ReplaceRule {
            uid: uid("a"),
            id: "r0".to_owned(),
            rule: Box::new(allow(2222)),
        },
        DpOp::ReplaceRule {
            uid: uid("a"),
            id: "new".to_owned(),
            rule: Box::new(allow(3333)),
        },
        DpOp::ReplaceRoute {
            key: key("10.9.0.0/16"),
            hop: Hop {
                vni: vni(300),
                address: "fc00:2::5".parse().unwrap(),
            },
        },
        DpOp::ReplaceNeighbor {
            neighbor: neighbor(200, 8192),
            underlay: "fc00:2::8".parse().unwrap(),
        },
        DpOp::List,
    ];
    for op in [
        DpOp::DeleteRule {
            uid: uid("a"),
            id: "r1".to_owned(),
        },
        DpOp::DeleteTarget {
            uid: uid("lb"),
            target,
        },
        DpOp::DeleteTarget {
            uid: uid("none"),
            target,
        },
        DpOp::DeleteNeighbor {
            neighbor: neighbor(200, 8192),
        },
        DpOp::DeleteRoute {
            key: key("10.9.0.0/16"),
        },
        DpOp::DeleteRoute {
            key: key("10.0.0.1/32"),
        },
        DpOp::DeleteTargetPrefix {
            uid: uid("a"),
            prefix: prefix("203.0.113.80/32"),
        },
        DpOp::DeleteVip { uid: uid("a") },
        DpOp::DeleteNat { uid: uid("a") },
        DpOp::DeleteVip { uid: uid("none") },
        DpOp::DeletePrefix {
            uid: uid("a"),
            prefix: prefix("2001:db8:f::1/128"),
        },
        DpOp::DeleteInterface { uid: uid("a") },
        DpOp::DeleteBalancer { uid: uid("lb") },
    ] {
        ops.extend(twice(op));
    }
    ops.push(create_neighbor(200, 12288));
    ops.push(DpOp::List);
    ops.push(DpOp::DeleteNat { uid: uid("b") });
    ops.push(DpOp::DeleteTargetPrefix {
        uid: uid("b"),
        prefix: prefix("2001:db8::80/128"),
    });
    // The last user of network 200: other hosts' shares and all routes go with it.
    ops.push(DpOp::DeleteInterface { uid: uid("b") });
    ops.push(DpOp::List);
    ops
}

#[test]
fn the_model_answers_as_the_real_one_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let real = start().await;
        let mut model = Model::new(u32::from(DEVICES));
        for (step, op) in creations().into_iter().chain(removals()).enumerate() {
            let expected = model.execute(&op);
            let answer = real.service.call(&op).await;
            assert_eq!(outcome(&answer), outcome(&expected), "step {step}: {op:?}");
            let listed = real.service.call(&DpOp::List).await;
            if let Ok(DpDone::Inventory(inventory)) = listed {
                assert_eq!(
                    shape(&inventory),
                    shape(&model.inventory()),
                    "after step {step}: {op:?}"
                );
            }
        }
    });
}

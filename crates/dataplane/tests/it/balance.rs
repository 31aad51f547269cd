//! Load balancing on the packet path.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use core::net::Ipv6Addr;
use dataplane::{DropReason, LbPort, LoadBalancerSpec, PortId};
use net::tcp::{ACK, SYN};
use std::collections::BTreeSet;

const LB: &str = "172.22.2.1";
const LB6: &str = "2001:db8:22::1";

fn balancer(bed: &mut Bed, id: &str, text: &str) -> Ipv6Addr {
    let spec = LoadBalancerSpec {
        id: id.to_owned(),
        vni: V100,
        address: address(text),
        ports: vec![
            LbPort {
                protocol: 6,
                port: 80,
            },
            LbPort {
                protocol: 17,
                port: 1234,
            },
        ],
        preferred_underlay: None,
    };
    bed.engine.create_load_balancer(spec).unwrap()
}

fn target(bed: &mut Bed, id: &str, target: Ipv6Addr) {
    bed.engine
        .create_load_balancer_target(id, target.into())
        .unwrap();
}

#[test]
fn a_local_target_of_both_families() {
    let mut bed = Bed::public();
    for (id, text, client, length) in [("lb", LB, PUBLIC, 32), ("lb6", LB6, "2001:db8:99::1", 128)]
    {
        let underlay = balancer(&mut bed, id, text);
        let request = build::tcp((client, 555), (text, 80), SYN);
        assert_eq!(
            bed.fabric(underlay, &request),
            Out::Dropped(DropReason::LbNoTarget)
        );
        let prefix = bed
            .engine
            .create_lb_prefix("vm1", address(text), length, None)
            .unwrap();
        target(&mut bed, id, prefix);
        let own = bed.underlay("vm1");
        for _ in 0..3 {
            assert_eq!(
                bed.fabric(underlay, &request),
                Out::Machine(VM1, request.clone()),
                "unchanged"
            );
            let answer = build::tcp((text, 80), (client, 555), SYN | ACK);
            assert_eq!(
                bed.guest(VM1, &answer),
                Out::Tunnel(PF0, own, router(), answer.clone()),
                "directly, in the balancer's name"
            );
        }
        let other = build::udp((client, 555), (text, 80), b"x");
        assert_eq!(
            bed.fabric(underlay, &other),
            Out::Dropped(DropReason::LbUnserved),
            "UDP is not served there"
        );
        // The address belongs to the machine only as far as it serves it.
        let stranger = build::udp((text, 80), (client, 1), b"x");
        assert_eq!(
            bed.guest(VM2, &stranger),
            Out::Dropped(DropReason::SourceSpoofed)
        );
        // What another host's balancer sends to the target.
        let from_afar = build::tcp((client, 556), (text, 80), SYN);
        assert_eq!(
            bed.fabric(prefix, &from_afar),
            Out::Machine(VM1, from_afar.clone())
        );
        let foreign = build::tcp((client, 556), (client, 80), SYN);
        assert_eq!(
            bed.fabric(prefix, &foreign),
            Out::Dropped(DropReason::DestinationForeign)
        );
    }
}

#[test]
fn nat_does_not_touch_the_answers_of_a_target() {
    let mut bed = Bed::public();
    let underlay = balancer(&mut bed, "lb", LB);
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 200), None)
        .unwrap();
    let prefix = bed
        .engine
        .create_lb_prefix("vm1", address(LB), 32, None)
        .unwrap();
    target(&mut bed, "lb", prefix);
    let request = build::tcp((PUBLIC, 555), (LB, 80), SYN);
    assert_eq!(
        bed.fabric(underlay, &request),
        Out::Machine(VM1, request.clone())
    );
    let answer = build::tcp((LB, 80), (PUBLIC, 555), SYN | ACK);
    let own = bed.underlay("vm1");
    assert_eq!(
        bed.guest(VM1, &answer),
        Out::Tunnel(PF0, own, router(), answer.clone())
    );
}

#[test]
fn a_remote_target_is_reached_by_the_same_uplink() {
    let mut bed = Bed::public();
    let underlay = balancer(&mut bed, "lb", LB);
    let remote = v6("fc00:2::d000:0:1");
    target(&mut bed, "lb", remote);
    let request = build::udp((PUBLIC, 53), (LB, 1234), b"x");
    for uplink in [PF0, PF0, PF1, PF1, PF0] {
        let out = bed.fabric_on(uplink, underlay, &request);
        let Out::Tunnel(_, source, destination, inner) = out else {
            panic!("{out:?}")
        };
        assert_eq!((source, destination), (v6("fc00:1::1"), remote));
        assert_eq!(hex(&inner), hex(&request));
    }
    let gone = v6("fc00:1::8000:0:77");
    bed.engine
        .delete_load_balancer_target("lb", remote.into())
        .unwrap();
    target(&mut bed, "lb", gone);
    assert_eq!(
        bed.fabric(underlay, &request),
        Out::Dropped(DropReason::UnderlayUnknown),
        "ours, but nobody's"
    );
}

#[test]
fn the_choice_is_that_of_all_implementations() {
    let mut bed = Bed::public();
    let underlay = balancer(&mut bed, "lb", LB);
    let remotes: Vec<Ipv6Addr> = (1..=3)
        .map(|n| v6(&format!("fc00:1::8000:1234:{n}")))
        .collect();
    // Registered as prefixes of machines, because they are addresses of this host.
    for (id, remote) in ["vm1", "vm2"].iter().zip(&remotes[1..]) {
        bed.engine
            .create_lb_prefix(id, address(LB), 32, Some(*remote))
            .unwrap();
    }
    for remote in &remotes {
        target(&mut bed, "lb", *remote);
    }
    // Hash slots 452 and 281: second and third target.
    let first = build::udp(("45.86.6.6", 53), (LB, 1234), b"x");
    assert!(matches!(bed.fabric(underlay, &first), Out::Machine(VM1, _)));
    let second = build::udp(("45.86.6.106", 53), (LB, 1234), b"x");
    assert!(matches!(
        bed.fabric(underlay, &second),
        Out::Machine(VM2, _)
    ));
}

#[test]
fn pings_and_errors() {
    let mut bed = Bed::public();
    let underlay = balancer(&mut bed, "lb", LB);
    let six = balancer(&mut bed, "lb6", LB6);
    let remote = v6("fc00:2::d000:0:1");
    target(&mut bed, "lb", remote);
    for _ in 0..2 {
        let ping = build::with_hops(build::echo(PUBLIC, LB, true, 5), 1);
        let answer = build::with_hops(build::echo(LB, PUBLIC, false, 5), 64);
        assert_eq!(
            bed.fabric_on(PF1, underlay, &ping),
            Out::Tunnel(PF1, v6("fc00:1::1"), router(), answer)
        );
        let ping = build::echo("2001:db8:99::1", LB6, true, 5);
        let answer = build::with_hops(build::echo(LB6, "2001:db8:99::1", false, 5), 64);
        assert_eq!(
            bed.fabric(six, &ping),
            Out::Tunnel(PF0, v6("fc00:1::1"), router(), answer)
        );
    }
    let reply = build::echo(PUBLIC, LB, false, 5);
    assert_eq!(
        bed.fabric(underlay, &reply),
        Out::Dropped(DropReason::LbUnserved)
    );
    // An error about an answer goes to the target that sent the answer, also when its connection is no longer known here.
    let answer = build::tcp((LB, 80), (PUBLIC, 555), ACK);
    let error = build::icmp("192.0.2.1", LB, 3, 4, [0, 0, 5, 0], &answer);
    for _ in 0..2 {
        assert_eq!(
            bed.fabric(underlay, &error),
            Out::Tunnel(PF0, v6("fc00:1::1"), remote, error.clone())
        );
        let request = build::tcp((PUBLIC, 555), (LB, 80), SYN);
        assert!(matches!(bed.fabric(underlay, &request), Out::Tunnel(..)));
    }
    let foreign = build::echo(PUBLIC, "172.22.2.9", true, 5);
    assert!(matches!(bed.fabric(underlay, &foreign), Out::Dropped(_)));
}

#[test]
fn connections_keep_their_target_and_a_deleted_one_gets_none() {
    let mut bed = Bed::public();
    let underlay = balancer(&mut bed, "lb", LB);
    let remotes: Vec<Ipv6Addr> = (1..=4).map(|n| v6(&format!("fc00:2::{n}"))).collect();
    for remote in &remotes[..3] {
        target(&mut bed, "lb", *remote);
    }
    let request = |port| build::udp((PUBLIC, port), (LB, 1234), b"x");
    let ask = |bed: &mut Bed| -> Vec<Ipv6Addr> {
        (1000..1064)
            .map(|port| match bed.fabric(underlay, &request(port)) {
                Out::Tunnel(_, _, to, _) => to,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let before = ask(&mut bed);
    assert_eq!(
        before.iter().collect::<BTreeSet<_>>().len(),
        3,
        "all are used"
    );
    target(&mut bed, "lb", remotes[3]);
    assert_eq!(
        ask(&mut bed),
        before,
        "another target disturbs no connection"
    );
    bed.engine
        .delete_load_balancer_target("lb", remotes[0].into())
        .unwrap();
    let after = ask(&mut bed);
    for (old, new) in before.iter().zip(&after) {
        if *old == remotes[0] {
            assert_ne!(*new, remotes[0]);
        } else {
            assert_eq!(old, new);
        }
    }
    // After they were forgotten, new connections are spread by the table alone.
    bed.now = bed.now.plus_secs(40);
    bed.worker.tick(bed.now);
    assert_eq!(bed.worker.flow_saturation().0, 0);
    let fresh = ask(&mut bed);
    bed.now = bed.now.plus_secs(40);
    bed.worker.tick(bed.now);
    assert_eq!(ask(&mut bed), fresh, "the choice is the same after ageing");
    assert!(!fresh.contains(&remotes[0]));
    bed.engine.delete_load_balancer("lb").unwrap();
    assert_eq!(
        bed.fabric(underlay, &request(1000)),
        Out::Dropped(DropReason::UnderlayUnknown)
    );
}

#[test]
fn from_a_machine_with_vip_or_nat_over_the_router_to_a_balancer_here() {
    let mut bed = Bed::public();
    let underlay = balancer(&mut bed, "lb", LB);
    let prefix = bed
        .engine
        .create_lb_prefix("vm1", address(LB), 32, None)
        .unwrap();
    target(&mut bed, "lb", prefix);
    let vip = bed.engine.create_vip("vm3", address(VIP), None).unwrap();
    let (own1, own3) = (bed.underlay("vm1"), bed.underlay("vm3"));
    let sent = build::tcp(("10.100.1.1", 777), (LB, 80), SYN);
    let seen = build::tcp((VIP, 777), (LB, 80), SYN);
    assert_eq!(
        bed.guest(VM3, &sent),
        Out::Tunnel(PF0, own3, router(), seen.clone())
    );
    assert_eq!(bed.fabric(underlay, &seen), Out::Machine(VM1, seen.clone()));
    let answer = build::tcp((LB, 80), (VIP, 777), SYN | ACK);
    assert_eq!(
        bed.guest(VM1, &answer),
        Out::Tunnel(PF0, own1, router(), answer.clone())
    );
    let received = build::tcp((LB, 80), ("10.100.1.1", 777), SYN | ACK);
    assert_eq!(bed.fabric(vip, &answer), Out::Machine(VM3, received));
    // A machine of the balancer's own network goes over the router as well, here behind a NAT address.
    bed.engine
        .create_nat("vm2", address(NAT), range(100, 102), None)
        .unwrap();
    let out = bed.guest(VM2, &build::tcp(("10.100.1.2", 778), (LB, 80), SYN));
    let Out::Tunnel(_, _, to, inner) = out else {
        panic!("{out:?}")
    };
    assert_eq!(to, router());
    assert_eq!(
        bed.fabric(underlay, &inner),
        Out::Machine(VM1, inner.clone())
    );
}

/// A client, its address and the one that others see; where the fabric brings what is for that.
struct Client {
    id: &'static str,
    port: PortId,
    own: &'static str,
    /// `None` if the port of a NAT address has to be found out.
    seen: Option<&'static str>,
    underlay: Ipv6Addr,
}

/// Packets of a connection, each brought on by the edge as far as it goes: what the client sends out comes back for the balancer, or for the
/// target if the balancer is elsewhere.
#[track_caller]
fn talks_to_a_target_next_door(bed: &mut Bed, client: &Client, (at, served): (Ipv6Addr, &str)) {
    let (own, target) = (bed.underlay(client.id), bed.underlay("vm1"));
    for (asked, answered) in [(SYN, SYN | ACK), (ACK, ACK), (ACK, ACK)] {
        let sent = build::tcp((client.own, 777), (served, 80), asked);
        let Out::Tunnel(_, from, to, seen) = bed.guest(client.port, &sent) else {
            panic!("{}: the request does not go out", client.id)
        };
        assert_eq!((from, to), (own, router()), "{}", client.id);
        let port = ports(&seen).0;
        if let Some(address) = client.seen {
            let expected = build::tcp((address, 777), (served, 80), asked);
            assert_eq!(hex(&seen), hex(&expected), "{}", client.id);
        }
        assert_eq!(
            bed.fabric(at, &seen),
            Out::Machine(VM1, seen.clone()),
            "{}: the request at the target",
            client.id
        );
        let address = client.seen.unwrap_or(NAT);
        let answer = build::tcp((served, 80), (address, port), answered);
        let received = build::tcp((served, 80), (client.own, 777), answered);
        match bed.guest(VM1, &answer) {
            // An address of the network itself is next door, and no edge has to be asked.
            Out::Machine(to, bytes) => {
                assert_eq!(client.own, address);
                assert_eq!((to, hex(&bytes)), (client.port, hex(&received)));
            }
            out => {
                assert_eq!(out, Out::Tunnel(PF0, target, router(), answer.clone()));
                assert_eq!(
                    bed.fabric(client.underlay, &answer),
                    Out::Machine(client.port, received),
                    "{}: the answer",
                    client.id
                );
            }
        }
        // The target complains about what it got.
        if address.parse::<Ipv6Addr>().is_err() {
            let error = build::icmp(served, address, 3, 3, [0; 4], &seen);
            let out = bed.guest(VM1, &error);
            assert_eq!(out, Out::Tunnel(PF0, target, router(), error.clone()));
            let quoted = build::icmp(served, client.own, 3, 3, [0; 4], &sent);
            assert_eq!(
                bed.fabric(client.underlay, &error),
                Out::Machine(client.port, quoted),
                "{}: the error",
                client.id
            );
        }
        // The next packets are decided anew.
        bed.engine.set_uplink_mtu(PF1, 9_000 + u16::from(answered));
        dataplane::fuzzing::forget_decisions(&mut bed.engine);
    }
}

#[test]
fn a_target_of_the_clients_own_host_and_network() {
    // With "true" the balancer is on another host, and its tunnel leads to the target.
    for is_elsewhere in [false, true] {
        let mut bed = Bed::public();
        let served = [(LB, 32), (LB6, 128)].map(|(text, length)| {
            let underlay = balancer(&mut bed, text, text);
            let prefix = bed
                .engine
                .create_lb_prefix("vm1", address(text), length, None)
                .unwrap();
            target(&mut bed, text, prefix);
            (if is_elsewhere { prefix } else { underlay }, text)
        });
        bed.attach(spec("vm4", VM4, V100, "10.100.1.4", ""));
        let client = |id, port, own, seen, underlay| Client {
            id,
            port,
            own,
            seen,
            underlay,
        };
        let vip = bed.engine.create_vip("vm2", address(VIP), None).unwrap();
        let nat = bed
            .engine
            .create_nat("vm4", address(NAT), range(100, 200), None)
            .unwrap();
        let (six, other) = (bed.underlay("vm2"), bed.underlay("vm3"));
        let elsewhere = bed
            .engine
            .create_vip("vm3", address(PUBLIC_OTHER), None)
            .unwrap();
        let six_own = "2000:100:1::2";
        let six_other = "2000:100:1::1";
        let [four, sixth] = served;
        for (client, served) in [
            (client("vm2", VM2, "10.100.1.2", Some(VIP), vip), four),
            (client("vm4", VM4, "10.100.1.4", None, nat), four),
            (client("vm2", VM2, six_own, Some(six_own), six), sixth),
            (
                client("vm3", VM3, "10.100.1.1", Some(PUBLIC_OTHER), elsewhere),
                four,
            ),
        ] {
            talks_to_a_target_next_door(&mut bed, &client, served);
        }
        // From another network without any translation, under an address that the balancer's network uses for the target itself.
        let sent = build::tcp((six_other, 777), (LB6, 80), SYN);
        assert_eq!(
            bed.guest(VM3, &sent),
            Out::Tunnel(PF0, other, router(), sent.clone())
        );
        assert_eq!(bed.fabric(sixth.0, &sent), Out::Machine(VM1, sent.clone()));
    }
}

/// A connection whose other end moves to this host is answered from the other side.
#[test]
fn a_peer_that_moves_here_goes_on() {
    let mut bed = Bed::new();
    let (here, there) = (("10.100.1.1", 777), ("10.100.2.9", 80));
    let sent = build::tcp(here, there, SYN);
    assert!(matches!(bed.guest(VM1, &sent), Out::Tunnel(..)));
    let answer = build::tcp(there, here, SYN | ACK);
    let own = bed.underlay("vm1");
    assert_eq!(bed.fabric(own, &answer), Out::Machine(VM1, answer.clone()));
    bed.attach(spec("vm4", VM4, V100, "10.100.2.9", ""));
    let sent = build::tcp(here, there, ACK);
    assert_eq!(bed.guest(VM1, &sent), Out::Machine(VM4, sent.clone()));
    let flows = bed.worker.flow_saturation().0;
    let answer = build::tcp(there, here, ACK);
    assert_eq!(bed.guest(VM4, &answer), Out::Machine(VM1, answer.clone()));
    assert_eq!(bed.worker.flow_saturation().0, flows, "the same connection");
}

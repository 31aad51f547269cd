//! What would become of a packet: finds where it comes in, lets the packet threads look for its connection and the engine rehearse it, and words
//! the result.

use super::{Inspector, frame, invalid, stopping};
use crate::worker::{Inspection, Plane};
use dataplane::{
    Explanation, FilterFact, FlowOutput, FlowService, FlowTuple, KnownConnection, Node, PortId,
    PortKind, RouteFact, RouteTarget, UnderlayKind, Verdict,
};
use net::Mac;
use proto::inspection::explain_request::{Ingress, Packet};
use proto::inspection::verdict::Kind;
use proto::inspection::{self, ExplainRequest, ExplainResponse, MatchedRoute, Stage};
use std::net::Ipv6Addr;
use std::sync::Arc;
use tonic::Status;

/// A frame as it comes in.
struct Arrival {
    port: PortId,
    frame: Vec<u8>,
}

pub(super) async fn explain(
    inspector: &Inspector,
    request: ExplainRequest,
) -> Result<ExplainResponse, Status> {
    let ignore_connections = request.ignore_connections;
    let arrived = inspector.worker.call(|plane| {
        let arrival = arrive(plane, request)?;
        Ok::<_, Status>((arrival, Arc::clone(plane.engine.tables())))
    });
    let (arrival, tables) = arrived.await.map_err(stopping)??;
    let Arrival { port, frame } = arrival;
    let known = if ignore_connections {
        None
    } else {
        let sought = frame.clone();
        let look = move |inspection: Inspection<'_>| -> Option<KnownConnection> {
            inspection.worker.known_connection(&tables, port, &sought)
        };
        let found = inspector.worker.inspect(look).await.map_err(stopping)?;
        found.into_iter().flatten().next()
    };
    let shown_by = inspector.clone();
    let explained = inspector.worker.call(move |plane| {
        let now = plane.now();
        let explanation = plane.engine.explain(port, &frame, known.as_ref(), now);
        show(&shown_by, plane, &explanation)
    });
    explained.await.map_err(stopping)
}

/// Where a request's packet comes in, and its bytes.
fn arrive(plane: &Plane, request: ExplainRequest) -> Result<Arrival, Status> {
    let ExplainRequest {
        ingress,
        packet,
        payload_length,
        ignore_connections: _,
    } = request;
    let made = |tuple| frame::packet(tuple, payload_length).map_err(invalid);
    match (ingress, packet) {
        (Some(Ingress::InterfaceId(id)), Some(packet)) => {
            let interface = plane.engine.interface(&id);
            let port = interface
                .map_err(|_| Status::not_found(format!("There is no interface {id}")))?
                .port;
            let frame = match packet {
                Packet::Frame(frame) => frame,
                Packet::Tuple(tuple) => {
                    let machine = plane.engine.machine_mac(port).unwrap_or(Mac::ZERO);
                    frame::ethernet(Mac::ZERO, machine, &made(&tuple)?)
                }
            };
            Ok(Arrival { port, frame })
        }
        (Some(Ingress::Underlay(text)), Some(packet)) => {
            let underlay: Ipv6Addr = text.parse().map_err(|_| invalid("underlay"))?;
            let mut endpoints = plane.engine.endpoints().into_iter();
            if !endpoints.any(|row| row.underlay == underlay) {
                let text = format!("{underlay} is no underlay address of this host");
                return Err(Status::not_found(text));
            }
            let inner = match packet {
                Packet::Frame(bytes) => bytes,
                Packet::Tuple(tuple) => made(&tuple)?,
            };
            let outer = frame::tunnelled(underlay, &inner).ok_or_else(|| invalid("frame"))?;
            Ok(Arrival {
                port: plane.engine.first_uplink().unwrap_or_default(),
                frame: frame::ethernet(Mac::ZERO, Mac::ZERO, &outer),
            })
        }
        (None, _) => Err(invalid("ingress")),
        (Some(_), None) => Err(invalid("packet")),
    }
}

pub(super) fn interface_id(plane: &Plane, port: PortId) -> String {
    let interface = plane.engine.interface_at(port);
    interface.map_or_else(String::new, |interface| interface.spec.id.clone())
}

/// Name of what an underlay address stands for.
pub(super) fn kind_name(kind: UnderlayKind) -> &'static str {
    match kind {
        UnderlayKind::Interface => "interface",
        UnderlayKind::Vip => "vip",
        UnderlayKind::Nat => "nat",
        UnderlayKind::LoadBalancer => "load_balancer",
        UnderlayKind::LbPrefix => "lb_prefix",
        UnderlayKind::AliasPrefix => "alias_prefix",
    }
}

pub(super) fn show_tuple(tuple: FlowTuple) -> inspection::FlowTuple {
    inspection::FlowTuple {
        source: tuple.source.to_string(),
        destination: tuple.destination.to_string(),
        protocol: u32::from(tuple.protocol),
        source_port: u32::from(tuple.source_port),
        destination_port: u32::from(tuple.destination_port),
    }
}

fn show_filter(plane: &Plane, fact: &FilterFact) -> inspection::FilterResult {
    inspection::FilterResult {
        interface_id: interface_id(plane, fact.port),
        rules: u32::try_from(fact.rules).unwrap_or(u32::MAX),
        rule_id: fact.rule.clone().unwrap_or_default(),
        accepts: fact.accepts,
    }
}

fn show_route(plane: &Plane, route: &RouteFact) -> MatchedRoute {
    let mut shown = MatchedRoute {
        vni: route.vni.get(),
        prefix: route.prefix.to_string(),
        ..MatchedRoute::default()
    };
    match route.target {
        RouteTarget::Own(port) => {
            shown.kind = "own".to_owned();
            shown.interface_id = interface_id(plane, port);
        }
        RouteTarget::Alias(port) => {
            shown.kind = "alias".to_owned();
            shown.interface_id = interface_id(plane, port);
        }
        RouteTarget::Remote { next_hop, vni } => {
            shown.kind = "remote".to_owned();
            shown.next_hop = next_hop.to_string();
            shown.next_hop_vni = vni;
        }
    }
    shown
}

fn show_verdict(
    inspector: &Inspector,
    plane: &Plane,
    explanation: &Explanation,
) -> inspection::Verdict {
    let mut shown = inspection::Verdict::default();
    let port = match explanation.verdict {
        Verdict::Drop(reason) => {
            shown.reason = reason.name().to_owned();
            return shown;
        }
        Verdict::Reply(port) => {
            shown.set_kind(Kind::Reply);
            port
        }
        Verdict::Transmit(port) => {
            let is_machine = plane.engine.port_kind(port) == Some(PortKind::Machine);
            let is_encapsulated = explanation.stages.contains(&Node::IpipEncap);
            shown.set_kind(match (is_machine, is_encapsulated) {
                (true, _) => Kind::Deliver,
                (false, true) => Kind::Encapsulate,
                (false, false) => Kind::Transmit,
            });
            port
        }
    };
    shown.device = inspector.device(port);
    shown.interface_id = interface_id(plane, port);
    if shown.kind() != Kind::Deliver
        && let Some((source, destination)) = outer_addresses(&explanation.frame)
        && plane.engine.port_kind(port) != Some(PortKind::Machine)
    {
        shown.underlay_source = source.to_string();
        shown.underlay_destination = destination.to_string();
    }
    shown
}

/// Addresses of the IPv6 packet in a frame.
fn outer_addresses(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let ethernet = net::Ethernet::new_checked(frame).ok()?;
    let ip = net::Ipv6::new_checked(ethernet.payload()).ok()?;
    Some((ip.source(), ip.destination()))
}

fn show(inspector: &Inspector, plane: &Plane, explanation: &Explanation) -> ExplainResponse {
    let verdict = show_verdict(inspector, plane, explanation);
    let is_transmitted = matches!(explanation.verdict, Verdict::Transmit(_));
    let flow = explanation.flow.as_ref().filter(|_| is_transmitted);
    let route = explanation.route.map(|route| show_route(plane, &route));
    let subject = explanation.vni.map(|vni| inspection::Endpoint {
        interface_id: explanation
            .machine
            .map_or_else(String::new, |port| interface_id(plane, port)),
        vni: vni.get(),
        kind: explanation.endpoint.map_or("", kind_name).to_owned(),
    });
    let mut response = ExplainResponse {
        stages: Vec::new(),
        verdict: Some(verdict),
        known_connection: explanation.is_known,
        subject,
        route,
        egress: explanation
            .egress
            .as_ref()
            .map(|fact| show_filter(plane, fact)),
        ingress: explanation
            .ingress
            .as_ref()
            .map(|fact| show_filter(plane, fact)),
        shows: explanation.shows.map(show_tuple),
        leaves: flow.map(|flow| show_tuple(flow.leaves)),
        service: flow
            .map_or(FlowService::None, |flow| flow.service)
            .name()
            .to_owned(),
        frame: match explanation.verdict {
            Verdict::Drop(_) => Vec::new(),
            Verdict::Transmit(_) | Verdict::Reply(_) => explanation.frame.clone(),
        },
    };
    let output = flow.map(|flow| flow.output);
    let stages = explanation.stages.iter();
    response.stages = stages
        .map(|node| Stage {
            name: node.name().to_owned(),
            text: stage_text(*node, &response, output),
        })
        .collect();
    response
}

/// What a stage does with the packet, in words.
fn stage_text(node: Node, response: &ExplainResponse, output: Option<FlowOutput>) -> String {
    let ends = |tuple: &inspection::FlowTuple| {
        format!(
            "{} port {} to {} port {}",
            tuple.source, tuple.source_port, tuple.destination, tuple.destination_port
        )
    };
    let leaves = response.leaves.as_ref();
    match node {
        Node::Cls => match &response.shows {
            Some(shows) => format!("protocol {}, {}", shows.protocol, ends(shows)),
            None => "no connection can be seen in it".to_owned(),
        },
        Node::IpipDecap => match &response.subject {
            Some(subject) => format!(
                "the tunnel ends at {} {} in VNI {}",
                subject.kind, subject.interface_id, subject.vni
            ),
            None => String::new(),
        },
        Node::FlowCache => "an entry of a tracked connection answers it".to_owned(),
        Node::Conntrack if response.known_connection => "the connection is tracked".to_owned(),
        Node::Conntrack => "a new connection".to_owned(),
        Node::Ipv4Lookup | Node::Ipv6Lookup => match &response.route {
            Some(route) => format!(
                "{} {} {}{}",
                route.prefix, route.kind, route.interface_id, route.next_hop
            ),
            None => "no route".to_owned(),
        },
        Node::Firewall => [("egress", &response.egress), ("ingress", &response.ingress)]
            .into_iter()
            .filter_map(|(direction, result)| {
                let result = result.as_ref()?;
                Some(format!("{direction} {}", filter_text(result)))
            })
            .collect::<Vec<_>>()
            .join("; "),
        Node::Dnat | Node::Snat => match leaves {
            Some(leaves) => format!("{}: {}", response.service, ends(leaves)),
            None => "translated".to_owned(),
        },
        Node::Lb => match output {
            Some(FlowOutput::Encap { destination, .. }) => format!("target {destination}"),
            Some(FlowOutput::Deliver(_)) => "a target on this host".to_owned(),
            Some(FlowOutput::Undecided) | None => "no target".to_owned(),
        },
        Node::IpipEncap => match &response.verdict {
            Some(verdict) => format!(
                "from {} to {}",
                verdict.underlay_source, verdict.underlay_destination
            ),
            None => String::new(),
        },
        Node::Drop => match &response.verdict {
            Some(verdict) => verdict.reason.clone(),
            None => String::new(),
        },
        Node::Arp | Node::Ipv6Nd | Node::Dhcp | Node::Dhcpv6 | Node::PacketRelay => {
            "answered for the gateway or a shared address".to_owned()
        }
        Node::Virtsvc => "a virtual service".to_owned(),
    }
}

fn filter_text(result: &inspection::FilterResult) -> String {
    let inspection::FilterResult {
        interface_id,
        rules,
        rule_id,
        accepts,
    } = result;
    let verb = if *accepts { "accepts" } else { "drops" };
    match (*rules, rule_id.is_empty()) {
        (0, _) => format!("of {interface_id}: no rules, accepts"),
        (_, true) => format!("of {interface_id}: none of {rules} rules matches, drops"),
        (_, false) => format!("of {interface_id}: rule {rule_id} {verb}"),
    }
}

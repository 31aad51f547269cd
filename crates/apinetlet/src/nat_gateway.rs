//! User NATGateway → OpenKCM-net NATGateway of the same uid, and the NATGatewayAutoscaler that gives it addresses. The list
//! of addresses belongs to the autoscaler: we never apply it. The addresses come back as status.

use api::{
    apinet,
    conditions::Verdict,
    meta::{Ip, IpFamily, LocalObjectReference},
    names::{finalizer, manager, origin},
    networking::{NATGateway, Network},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    filter::Filter,
    made::{self, Mapping, Marks},
};

const MAPPING: Mapping = Mapping {
    origin: origin::NAT_GATEWAY,
    index: "apinetlet-nat-gateway-origin",
    finalizer: finalizer::APINETLET_NAT_GATEWAY,
};
/// Index of user gateways by the key of their network.
const BY_NETWORK: &str = "apinetlet-user-nat-gateway-network";

/// How many public addresses a gateway may have.
#[derive(Clone, Copy, Debug)]
pub struct NatBounds {
    pub min: i32,
    pub max: i32,
}

pub struct NatGatewayController {
    pub filter: Filter,
    pub bounds: NatBounds,
}

impl Controller for NatGatewayController {
    fn name(&self) -> &'static str {
        "natgateway"
    }

    fn sources(&self) -> Vec<Source> {
        let mut user = Watch::<NATGateway>::new()
            .own_key()
            .index(BY_NETWORK, |gateway| {
                let network = &gateway.spec.network_ref.name;
                vec![Key::new(object::namespace(gateway), network).to_string()]
            });
        let mut networks = Watch::<Network>::new().keys(|network, world| {
            let waiting = world.indexed::<NATGateway>(BY_NETWORK, &Key::of(network).to_string());
            waiting.iter().map(|gateway| Key::of(&**gateway)).collect()
        });
        if let Some(namespace) = &self.filter.namespace {
            user = user.namespace(namespace);
            networks = networks.namespace(namespace);
        }
        let made = MAPPING.watch::<apinet::NATGateway>(&self.filter);
        let scalers = MAPPING.watch_beside::<apinet::NATGatewayAutoscaler>(&self.filter);
        vec![
            user.build(),
            networks.build(),
            made.build(),
            scalers.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        MAPPING.plan(world, &self.filter, key, |user, made| {
            self.realize(world, user, made)
        })
    }
}

impl NatGatewayController {
    fn realize(&self, world: &World, user: &NATGateway, made: Option<&apinet::NATGateway>) -> Plan {
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(user, finalizer::APINETLET_NAT_GATEWAY));
        let network = match made::network(world, user, &user.spec.network_ref) {
            Ok(network) => network,
            Err(verdict) => {
                plan.extend(report(user, made, verdict, world.now_ms()));
                return plan;
            }
        };
        plan.extend(report(user, made, verdict(user, made), world.now_ms()));
        let family = user.spec.ip_family;
        let network_ref = LocalObjectReference::new(object::uid(&*network));
        match made {
            Some(made) if object::is_deleting(made) => return plan,
            Some(made) if made.spec.ip_family != family || made.spec.network_ref != network_ref => {
                // Neither can change there; a gateway of the other family or network is another one.
                plan.push(Op::delete(made));
                return plan;
            }
            Some(_) | None => {}
        }
        let marks = Marks::of(user, origin::NAT_GATEWAY);
        let ports = user.spec.ports_per_network_interface;
        let fits = made.is_some_and(|made| {
            marks.are_on(made) && made.spec.ports_per_network_interface == ports
        });
        if !fits {
            let target =
                Target::new::<apinet::NATGateway>(&self.filter.apinet_namespace, object::uid(user));
            let spec = json!({
                "ipFamily": family,
                "networkRef": network_ref,
                "portsPerNetworkInterface": ports,
            });
            let body = json!({ "metadata": marks.metadata(), "spec": spec });
            plan.push(Op::apply(target, manager::APINETLET, body));
        }
        if let Some(made) = made {
            plan.extend(self.scale(world, made, &marks));
        }
        plan
    }

    /// The autoscaler of the same name, owned by the gateway and gone with it.
    fn scale(&self, world: &World, made: &apinet::NATGateway, marks: &Marks) -> Option<Op> {
        let namespace = &self.filter.apinet_namespace;
        let live = world.get::<apinet::NATGatewayAutoscaler>(namespace, object::name(made));
        let wanted = apinet::NatGatewayAutoscalerSpec {
            nat_gateway_ref: LocalObjectReference::new(object::name(made)),
            min_public_ips: Some(self.bounds.min),
            max_public_ips: Some(self.bounds.max),
        };
        let fits = live.is_some_and(|live| {
            live.spec == wanted
                && marks.are_on(&*live)
                && object::is_controlled_by(&*live, object::uid(made))
        });
        if fits {
            return None;
        }
        let mut metadata = marks.metadata();
        metadata["ownerReferences"] = json!([object::controller_reference(made)]);
        let body = json!({ "metadata": metadata, "spec": wanted });
        let target = Target::of(made).of_kind::<apinet::NATGatewayAutoscaler>();
        Some(Op::apply(target, manager::APINETLET, body))
    }
}

/// A gateway is ready when every interface that wants ports has some.
fn verdict(user: &NATGateway, made: Option<&apinet::NATGateway>) -> Verdict {
    if user.spec.ip_family == IpFamily::IPv6 {
        let note = "hypervisors translate IPv4 only; give interfaces public IPv6 addresses instead";
        return Verdict::not_ready("FamilyNotTranslated", note);
    }
    let addresses = made.map(shown_addresses).unwrap_or_default().len();
    if addresses == 0 {
        return Verdict::not_ready("AddressPending", "waits for a public address");
    }
    let status = made
        .and_then(|made| made.status.clone())
        .unwrap_or_default();
    let used = status.used_nat_ips.unwrap_or_default();
    let requested = status.requested_nat_ips.unwrap_or_default();
    if used < requested {
        let note = format!("{used} of {requested} interfaces have ports on {addresses} addresses");
        return Verdict::not_ready("PortsExhausted", note);
    }
    let note = format!("{used} interfaces have ports on {addresses} addresses");
    Verdict::ready("PortsAssigned", note)
}

fn shown_addresses(made: &apinet::NATGateway) -> Vec<Ip> {
    made.spec.ips.iter().filter_map(|entry| entry.ip).collect()
}

fn report(
    user: &NATGateway,
    made: Option<&apinet::NATGateway>,
    verdict: Verdict,
    now_ms: u64,
) -> Option<Op> {
    let shown = user.status.clone().unwrap_or_default();
    let ips = made
        .filter(|made| !object::is_deleting(*made))
        .map(shown_addresses)
        .unwrap_or_default();
    let is_same = shown.ips == ips;
    let status = json!({ "ips": ips });
    made::report(user, &shown.conditions, verdict, is_same, now_ms, status)
}

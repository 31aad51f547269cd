//! Counters and gauges, as text for the metrics page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::{Agent, Gauges, Input, Phase};
use crate::plan::ops::{ApiError, ApiOp, DpError, DpOp, Part};

/// A dpservice that is away for less is no news: one lost call alone makes it so for some milliseconds.
pub const AWAY_GRACE: Duration = Duration::from_secs(1);
/// The agent's loop turns several times per second; one that stood still for so long will not move again.
pub const STANDSTILL_MAX: Duration = Duration::from_secs(30);

/// What the metrics page shows.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<State>);

#[derive(Debug)]
struct State {
    gauges: Gauges,
    /// Since when no dpservice answers; `None` while one does.
    away_since: Option<Instant>,
    turned_at: Instant,
    live: bool,
    synced: bool,
    dp_calls: BTreeMap<(&'static str, String), u64>,
    api_writes: BTreeMap<(&'static str, &'static str), u64>,
    route_events: [u64; 2],
}

impl Default for State {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            gauges: Gauges::default(),
            away_since: Some(now),
            turned_at: now,
            live: false,
            synced: false,
            dp_calls: BTreeMap::new(),
            api_writes: BTreeMap::new(),
            route_events: [0; 2],
        }
    }
}

impl Metrics {
    /// Whether a dpservice answers.
    pub fn dpservice(&self) -> Result<(), String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.away_since.map(|since| since.elapsed()) {
            Some(away) if away >= AWAY_GRACE => {
                Err(format!("does not answer since {} s", away.as_secs()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the agent's loop turns.
    pub fn turning(&self) -> Result<(), String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let still = state.turned_at.elapsed();
        if still < STANDSTILL_MAX {
            return Ok(());
        }
        Err(format!("stands still since {} s", still.as_secs()))
    }

    /// Counts what an input stands for.
    pub fn count(&self, input: &Input) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match input {
            Input::Dp { op, result } => {
                let key = (dp_name(op), dp_result(result.as_ref().err()));
                *state.dp_calls.entry(key).or_default() += 1;
            }
            Input::Api { op, result } => {
                let key = (api_name(op), api_result(result.as_ref().err()));
                *state.api_writes.entry(key).or_default() += 1;
            }
            Input::Learned { present, .. } => {
                let [removed, added] = &mut state.route_events;
                *(if *present { added } else { removed }) += 1;
            }
            Input::ApiSynced
            | Input::Nic(_)
            | Input::NicGone(_)
            | Input::Network(_)
            | Input::NetworkGone(_)
            | Input::Balancer(_)
            | Input::BalancerGone(_)
            | Input::Heard { .. }
            | Input::DpUp { .. }
            | Input::DpDown
            | Input::Claim { .. } => {}
        }
    }

    /// Takes the present figures.
    pub fn observe(&self, agent: &Agent) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.gauges = agent.gauges();
        state.turned_at = Instant::now();
        state.away_since = match agent.phase() {
            Phase::Down => state.away_since.or(Some(state.turned_at)),
            Phase::Fresh | Phase::Initializing | Phase::Stale | Phase::Listing | Phase::Live => {
                None
            }
        };
        state.live = agent.phase() == Phase::Live;
        state.synced = agent.api_synced();
    }

    /// Whether the API has been read and the data plane is in hand; else what is missing.
    pub fn ready(&self) -> Result<(), &'static str> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (state.synced, state.live) {
            (true, true) => Ok(()),
            (false, _) => Err("the API has not been read yet"),
            (true, false) => Err("dpservice is not in hand"),
        }
    }

    /// Appends everything in the text format of Prometheus.
    pub fn render(&self, out: &mut String) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Gauges {
            interfaces,
            balancers,
            routes,
            neighbors,
            learned,
            learned_dropped,
            announcements,
            subscriptions,
            claims,
            devices,
            queued,
            inflight,
            instances_seen,
        } = state.gauges;
        let figures = [
            ("interfaces", interfaces as u64),
            ("load_balancers", balancers as u64),
            ("routes", routes as u64),
            ("neighbor_nats", neighbors as u64),
            ("learned_routes", learned as u64),
            ("learned_routes_dropped_total", learned_dropped),
            ("announcements", announcements as u64),
            ("subscriptions", subscriptions as u64),
            ("claims", claims as u64),
            ("devices", devices as u64),
            ("queued_keys", queued as u64),
            ("inflight_operations", inflight as u64),
            ("dpservice_instances_total", instances_seen),
            ("dpservice_live", u64::from(state.live)),
            ("api_synced", u64::from(state.synced)),
        ];
        let [removed, added] = state.route_events;
        // Writing to a String cannot fail.
        for (name, value) in figures {
            let _ = writeln!(out, "openkcm_metalnet_{name} {value}");
        }
        for (event, value) in [("added", added), ("removed", removed)] {
            let _ = writeln!(
                out,
                "openkcm_metalnet_route_events_total{{event=\"{event}\"}} {value}"
            );
        }
        for ((call, result), value) in &state.dp_calls {
            let labels = format!("call=\"{call}\",result=\"{result}\"");
            let _ = writeln!(
                out,
                "openkcm_metalnet_dpservice_calls_total{{{labels}}} {value}"
            );
        }
        for ((write, result), value) in &state.api_writes {
            let labels = format!("write=\"{write}\",result=\"{result}\"");
            let _ = writeln!(out, "openkcm_metalnet_api_writes_total{{{labels}}} {value}");
        }
    }
}

fn dp_name(op: &DpOp) -> &'static str {
    match op {
        DpOp::Initialize => "Initialize",
        DpOp::List => "List",
        DpOp::CreateInterface { .. } => "CreateInterface",
        DpOp::DeleteInterface { .. } => "DeleteInterface",
        DpOp::CreatePrefix { .. } => "CreatePrefix",
        DpOp::DeletePrefix { .. } => "DeletePrefix",
        DpOp::CreatePart { part, .. } => match **part {
            Part::Vip(_) => "CreateVip",
            Part::Nat(_) => "CreateNat",
            Part::Target(_) => "CreateLoadBalancerPrefix",
            Part::Rule { .. } => "CreateFirewallRule",
        },
        DpOp::DeleteVip { .. } => "DeleteVip",
        DpOp::DeleteNat { .. } => "DeleteNat",
        DpOp::DeleteTargetPrefix { .. } => "DeleteLoadBalancerPrefix",
        DpOp::DeleteRule { .. } => "DeleteFirewallRule",
        DpOp::ReplaceRule { .. } => "ReplaceFirewallRule",
        DpOp::CreateBalancer { .. } => "CreateLoadBalancer",
        DpOp::DeleteBalancer { .. } => "DeleteLoadBalancer",
        DpOp::CreateTarget { .. } => "CreateLoadBalancerTarget",
        DpOp::DeleteTarget { .. } => "DeleteLoadBalancerTarget",
        DpOp::CreateNeighbor { .. } => "CreateNeighborNat",
        DpOp::ReplaceNeighbor { .. } => "ReplaceNeighborNat",
        DpOp::DeleteNeighbor { .. } => "DeleteNeighborNat",
        DpOp::CreateRoute { .. } => "CreateRoute",
        DpOp::ReplaceRoute { .. } => "ReplaceRoute",
        DpOp::DeleteRoute { .. } => "DeleteRoute",
    }
}

fn dp_result(error: Option<&DpError>) -> String {
    match error {
        None => "ok".to_owned(),
        Some(DpError::Code { code, .. }) => code.to_string(),
        Some(DpError::Argument(_)) => "argument".to_owned(),
        Some(DpError::Uninitialized) => "uninitialized".to_owned(),
        Some(DpError::Unavailable(_)) => "unavailable".to_owned(),
    }
}

fn api_name(op: &ApiOp) -> &'static str {
    match op {
        ApiOp::NicFinalizers { .. } => "nic_finalizers",
        ApiOp::NicStatus { .. } => "nic_status",
        ApiOp::NetworkFinalizers { .. } => "network_finalizers",
        ApiOp::NetworkPeerings { .. } => "network_peerings",
        ApiOp::BalancerFinalizers { .. } => "loadbalancer_finalizers",
        ApiOp::BalancerStatus { .. } => "loadbalancer_status",
        ApiOp::Warn { .. } => "event",
    }
}

fn api_result(error: Option<&ApiError>) -> &'static str {
    match error {
        None => "ok",
        Some(ApiError::Conflict) => "conflict",
        Some(ApiError::NotFound) => "not_found",
        Some(ApiError::Refused(_)) => "refused",
        Some(ApiError::Unavailable(_)) => "unavailable",
    }
}

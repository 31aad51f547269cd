//! The loop around the agent: hands it inputs, carries out its actions, wakes it when a wait is over.

use std::sync::Arc;
use std::time::Instant;

use metalbond::RouteEvent;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::{API_INFLIGHT_MAX, Actions, Agent, Input, Phase};
use crate::bond::{self, Hearing};
use crate::claims::Folder;
use crate::dpservice::Service;
use crate::metrics::Metrics;
use crate::plan::ops::{ApiOp, BondOp, DpOp};

/// Inputs waiting for the agent.
pub const INPUTS_MAX: usize = 4096;
/// Inputs taken in before the agent is asked what follows: bounds how long a flood delays the first action.
pub const BATCH_MAX: usize = 256;
/// Writes waiting for the API: the agent never has more under way.
pub const WRITES_MAX: usize = API_INFLIGHT_MAX * 2;

/// What connects the agent with the outside.
pub struct Ports {
    pub inputs: mpsc::Receiver<Input>,
    pub routes: mpsc::Receiver<RouteEvent>,
    pub bond: metalbond::Client,
    pub service: Service,
    pub api: mpsc::Sender<ApiOp>,
    pub claims: Arc<Folder>,
    pub metrics: Arc<Metrics>,
}

/// Runs the agent until shutdown. Calls under way are then abandoned: the next start finds out what they did.
pub async fn drive(mut agent: Agent, mut ports: Ports, shutdown: CancellationToken) {
    let mut tasks: JoinSet<Input> = JoinSet::new();
    let mut inputs = Vec::with_capacity(BATCH_MAX);
    let mut events = Vec::with_capacity(BATCH_MAX);
    let mut routes_open = true;
    let mut hearing = Hearing::default();
    let mut looks = tokio::time::interval(bond::LOOK_INTERVAL);
    let mut look = true;
    loop {
        let now = Instant::now();
        if std::mem::take(&mut look) {
            for input in hearing.look(bond::link(&ports.bond), now) {
                take(&mut agent, input, &ports.metrics, now);
            }
        }
        let actions = agent.poll(now);
        for op in &actions.bond {
            look |= matches!(op, BondOp::Subscribe(_));
            hearing.note(op, now);
        }
        perform(actions, &ports, &mut tasks);
        if look {
            continue;
        }
        ports.metrics.observe(&agent);
        let wake = agent.deadline().map(tokio::time::Instant::from_std);
        tokio::select! {
            count = ports.inputs.recv_many(&mut inputs, BATCH_MAX) => {
                if count == 0 {
                    return;
                }
            }
            count = ports.routes.recv_many(&mut events, BATCH_MAX), if routes_open => routes_open = count > 0,
            Some(done) = tasks.join_next() => match done {
                Ok(input) => inputs.push(input),
                Err(error) => {
                    // A lost outcome would leave its key busy for ever: better to start again from the listings.
                    tracing::error!(err = %error, "a call ended without an outcome");
                    return;
                }
            },
            _ = looks.tick() => look = true,
            () = sleep_until(wake) => {}
            () = shutdown.cancelled() => return,
        }
        let now = Instant::now();
        inputs.extend(events.drain(..).filter_map(bond::input));
        while inputs.len() < BATCH_MAX
            && let Some(Ok(input)) = tasks.try_join_next()
        {
            inputs.push(input);
        }
        for input in inputs.drain(..) {
            if let Input::Learned { vni, .. } = &input {
                hearing.event(*vni, now);
            }
            take(&mut agent, input, &ports.metrics, now);
        }
    }
}

fn take(agent: &mut Agent, input: Input, metrics: &Metrics, now: Instant) {
    metrics.count(&input);
    let before = agent.phase();
    if let Input::Dp {
        op,
        result: Err(error),
    } = &input
    {
        if error.is_transient() {
            tracing::debug!(?op, err = %error, "dpservice call lost");
        } else {
            tracing::info!(?op, err = %error, "dpservice refused");
        }
    }
    if let Input::Api {
        op,
        result: Err(error),
    } = &input
    {
        tracing::info!(?op, err = %error, "API write failed");
    }
    if let Input::Claim {
        op,
        result: Err(error),
    } = &input
    {
        tracing::warn!(?op, err = %error, "claim could not be stored");
    }
    agent.apply(input, now);
    if agent.phase() != before && agent.phase() == Phase::Live {
        let gauges = agent.gauges();
        tracing::info!(
            interfaces = gauges.interfaces,
            routes = gauges.routes,
            "dpservice inventory is current"
        );
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn perform(actions: Actions, ports: &Ports, tasks: &mut JoinSet<Input>) {
    let Actions {
        bond: bond_ops,
        dp,
        api,
        claims,
        recheck,
    } = actions;
    for op in bond_ops {
        tracing::debug!(?op, "metalbond");
        bond::apply(&ports.bond, op);
    }
    for op in dp {
        let service = ports.service.clone();
        if matches!(op, DpOp::Initialize) {
            tracing::info!("new dpservice instance: initialising");
        }
        tasks.spawn(async move {
            let result = service.call(&op).await;
            Input::Dp { op, result }
        });
    }
    for op in claims {
        let folder = ports.claims.clone();
        tasks.spawn_blocking(move || {
            let result = folder.apply(&op).map_err(|error| error.to_string());
            Input::Claim { op, result }
        });
    }
    for op in api {
        if let Err(error) = ports.api.try_send(op) {
            // Cannot happen while the writer lives: the agent bounds what is under way.
            tracing::error!(err = %error, "API write could not be queued");
        }
    }
    if recheck {
        ports.service.recheck();
    }
}

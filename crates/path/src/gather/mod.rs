//! The thin shell: reads objects, asks data planes, metalbond servers and edges. Everything is asked at once, nothing is changed, and a part
//! that does not answer is an entry in the snapshot instead of an error.

mod live;
mod objects;

use futures::future::join_all;
use net::Vni;

use crate::snapshot::{Dataplane, EdgeReport, Question, RouteServer, Snapshot};

/// Where a part answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`.
    pub address: String,
    /// Network namespace of this machine in which that address is meant; absent for the own one.
    pub netns: Option<String>,
}

/// The parts of a region that can be asked.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// dpservice by node.
    pub dataplanes: Vec<(String, Endpoint)>,
    /// Status pages of metalbond servers.
    pub servers: Vec<(String, Endpoint)>,
    /// Status pages of edges.
    pub edges: Vec<(String, Endpoint)>,
}

/// A region whose parts run on this machine: how it is recognised, and where its parts are.
#[derive(Clone, Debug)]
pub struct Region {
    pub name: String,
    /// URL of its API server.
    pub api_url: String,
    /// Kubeconfig of its administrator.
    pub kubeconfig: std::path::PathBuf,
    pub endpoints: Endpoints,
}

/// Everything, as it is now.
///
/// # Errors
/// The API server does not answer.
pub async fn snapshot(
    client: &kube::Client,
    endpoints: &Endpoints,
    public_vni: Option<Vni>,
) -> anyhow::Result<Snapshot> {
    let Endpoints {
        dataplanes,
        servers,
        edges,
    } = endpoints;
    let dataplanes = dataplanes.iter().map(async |(node, endpoint)| Dataplane {
        node: node.clone(),
        endpoint: endpoint.address.clone(),
        inventory: live::inventory(endpoint).await.map_err(told),
        rehearsals: Vec::new(),
    });
    let servers = servers.iter().map(async |(name, endpoint)| RouteServer {
        endpoint: name.clone(),
        routes: live::routes(endpoint).await.map_err(told),
    });
    let edges = edges.iter().map(async |(name, endpoint)| EdgeReport {
        endpoint: name.clone(),
        status: live::edge(endpoint).await.map_err(told),
    });
    let (objects, dataplanes, servers, edges) = tokio::join!(
        objects::read(client),
        join_all(dataplanes),
        join_all(servers),
        join_all(edges)
    );
    Ok(Snapshot {
        objects: objects?,
        dataplanes,
        servers,
        edges,
        public_vni,
    })
}

/// Asks the data planes, and puts their answers into the snapshot.
pub async fn rehearse(endpoints: &Endpoints, snapshot: &mut Snapshot, questions: Vec<Question>) {
    let all = questions.into_iter().map(async |question| {
        let mut known = endpoints.dataplanes.iter();
        let found = known.find(|(node, _)| *node == question.node);
        let answer = match found {
            Some((_, endpoint)) => live::rehearse(endpoint, &question).await.map_err(told),
            None => Err("no endpoint is known".to_owned()),
        };
        (question, answer)
    });
    for (question, answer) in join_all(all).await {
        let mut dataplanes = snapshot.dataplanes.iter_mut();
        if let Some(dataplane) = dataplanes.find(|d| d.node == question.node) {
            dataplane.rehearsals.push((question, answer));
        }
    }
}

fn told(error: anyhow::Error) -> String {
    format!("{error:#}")
}

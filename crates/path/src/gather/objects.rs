//! Reading the objects: one list per kind, all at once. A kind that the caller may not read is noted, not an error.

use std::collections::BTreeMap;

use anyhow::Context as _;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::snapshot::Objects;

/// What a list gave: objects, or why they may not be read.
type Read<K> = Result<Vec<K>, String>;

pub(super) async fn read(client: &Client) -> anyhow::Result<Objects> {
    let (machines, networks, nics, virtual_ips, balancers, routings, nat_gateways, policies) = tokio::try_join!(
        list(client),
        list(client),
        list(client),
        list(client),
        list(client),
        list(client),
        list(client),
        list(client)
    )?;
    let (net_nics, net_nodes, nat_tables) =
        tokio::try_join!(list(client), list(client), list(client))?;
    let metal_nics = list(client).await?;
    let mut unlisted = BTreeMap::new();
    Ok(Objects {
        machines: keep(machines, &mut unlisted),
        networks: keep(networks, &mut unlisted),
        nics: keep(nics, &mut unlisted),
        virtual_ips: keep(virtual_ips, &mut unlisted),
        balancers: keep(balancers, &mut unlisted),
        routings: keep(routings, &mut unlisted),
        nat_gateways: keep(nat_gateways, &mut unlisted),
        policies: keep(policies, &mut unlisted),
        net_nics: keep(net_nics, &mut unlisted),
        net_nodes: keep(net_nodes, &mut unlisted),
        nat_tables: keep(nat_tables, &mut unlisted),
        metal_nics: keep(metal_nics, &mut unlisted),
        unlisted,
    })
}

/// `plural` for kinds of users, `plural.group` for the others.
fn key<K: Resource<DynamicType = ()>>() -> String {
    let (plural, group) = (K::plural(&()), K::group(&()));
    let is_users = group == api::names::NETWORKING || group == api::names::COMPUTE;
    if is_users {
        plural.into_owned()
    } else {
        format!("{plural}.{group}")
    }
}

fn keep<K: Resource<DynamicType = ()>>(
    read: Read<K>,
    unlisted: &mut BTreeMap<String, String>,
) -> Vec<K> {
    read.unwrap_or_else(|why| {
        unlisted.insert(key::<K>(), why);
        Vec::new()
    })
}

async fn list<K>(client: &Client) -> anyhow::Result<Read<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api = Api::<K>::all(client.clone());
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(Ok(list.items)),
        // Not allowed, or an API server without this group.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
            Ok(Err(status.message.clone()))
        }
        Err(error) => Err(error).with_context(|| {
            format!(
                "cannot list {}; is the API server up, is the kubeconfig right?",
                key::<K>()
            )
        }),
    }
}

//! The manifests of the usage guide on a running control plane: each of them does what the guide says about it.

use api::apinet::{self, NetworkPolicyRule};
use api::ids;
use api::ipam::Prefix;
use api::meta::IpPrefix;
use api::networking::{
    LoadBalancer, LoadBalancerRouting, NATGateway, Network, NetworkInterface, NetworkPolicy,
    VirtualIP,
};
use api::table::Scope;
use controller::Object;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
    core::{DynamicObject, NamespaceResourceScope},
};
use serde_json::{Value, json};

use crate::NS;
use crate::region::{APINET_NS, Region};

/// A document of a manifest: where it lives, and what it says.
struct Document {
    api: Api<DynamicObject>,
    name: String,
}

/// Creates everything in a manifest, in its order.
async fn create(region: &Region, file: &str) -> Vec<Document> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/guide");
    let text = std::fs::read_to_string(format!("{folder}/{file}")).expect("a manifest");
    let mut documents = Vec::new();
    for part in text.split("\n---\n") {
        let body: Value = serde_saphyr::from_str(part).expect("YAML");
        let word = |at: &str| body.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let (version, kind) = (word("/apiVersion"), word("/kind"));
        let (version, kind) = (version.expect("a version"), kind.expect("a kind"));
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let mut kinds = api::table::kinds().iter();
        let row = kinds
            .find(|row| row.group == group && row.kind == kind)
            .expect("a kind that is served");
        let namespace = match row.scope {
            Scope::Cluster => String::new(),
            Scope::Namespaced => word("/metadata/namespace").unwrap_or_else(|| NS.to_owned()),
        };
        documents.push(Document {
            api: region.any(&namespace, &version, &kind, row.plural),
            name: word("/metadata/name").expect("a name"),
        });
        region
            .put(&namespace, body, &version, &kind, row.plural)
            .await;
    }
    documents
}

/// What an object shows at a place, once it shows something there that is right.
async fn shown<K>(region: &Region, name: &str, at: &str, right: impl Fn(&Value) -> bool) -> Value
where
    K: Object + kube::Resource<Scope = NamespaceResourceScope>,
{
    let there = |object: &K| json!(object).pointer(at).cloned();
    let object = region
        .until::<K>(name, |object| there(object).as_ref().is_some_and(&right))
        .await;
    there(&object).expect("it was there")
}

fn any(value: &Value) -> bool {
    !value.is_null()
}

fn is(text: &'static str) -> impl Fn(&Value) -> bool {
    move |value| value == text
}

/// Whether an address or block lies in a block.
#[track_caller]
fn check_inside(part: &Value, block: &Value) {
    let part = part.as_str().expect("an address");
    let length = if part.contains('/') { "" } else { "/32" };
    let [part, block] = [
        format!("{part}{length}"),
        block.as_str().expect("a block").to_owned(),
    ]
    .map(|text| text.parse::<IpPrefix>().expect("a block"));
    assert!(block.contains(part), "{part} in {block}");
}

async fn check_addresses(region: &Region) -> Value {
    let shop = shown::<Prefix>(region, "shop-v4", "/spec/prefix", any).await;
    let parent = shown::<Prefix>(region, "shop-v4", "/spec/parentRef/name", any).await;
    assert_eq!(parent, "site-v4");
    for name in ["site-v4", "shop-v4", "market-v4", "site-v6", "shop-v6"] {
        shown::<Prefix>(region, name, "/status/phase", is("Allocated")).await;
    }
    let used = shown::<Prefix>(region, "site-v4", "/status/used", any).await;
    let used = used.as_array().expect("a list");
    assert!(used.contains(&shop) && used.contains(&json!("10.20.64.0/24")));
    shop
}

async fn check_networks(region: &Region) {
    for name in ["shop", "backnet", "market"] {
        shown::<Network>(region, name, "/status/state", is("Available")).await;
        let handle = shown::<Network>(region, name, "/spec/providerID", any).await;
        let handle = handle.as_str().expect("text");
        handle.parse::<ids::NetworkProviderId>().expect("a handle");
    }
    let billing = region.get::<Network>("finance", "billing").await;
    let billing = billing.expect("a network");
    let claims = shown::<Network>(region, "market", "/spec/incomingPeerings", any).await;
    let uid = controller::object::uid(&billing);
    assert_eq!(
        claims,
        json!([{ "namespace": "finance", "name": "billing", "uid": uid }])
    );
    shown::<Network>(region, "market", "/status/peerings/0/state", is("Ready")).await;
    let peering = shown::<Network>(region, "market", "/status/peerings/0", any).await;
    assert_eq!(
        peering,
        json!({ "name": "to-billing", "state": "Ready", "prefixes": [
            { "name": "web", "prefix": "10.20.65.0/24" },
            { "name": "api", "prefix": "10.20.64.0/24" },
        ] })
    );
}

async fn check_interfaces(region: &Region, shop: &Value) {
    for name in ["web-1", "web-2", "db-1", "web-back"] {
        shown::<NetworkInterface>(region, name, "/status/state", is("Available")).await;
    }
    let status = shown::<NetworkInterface>(region, "web-1", "/status", |status| {
        any(&status["virtualIP"]) && any(&status["prefixes"])
    })
    .await;
    check_inside(&status["ips"][0], shop);
    check_inside(&status["prefixes"][0], shop);
    assert!(
        status["prefixes"][0]
            .as_str()
            .expect("text")
            .ends_with("/28")
    );
    let public = shown::<VirtualIP>(region, "web-ip", "/status/ip", any).await;
    assert_eq!(status["virtualIP"], public);

    let public = shown::<VirtualIP>(region, "web-2", "/status/ip", any).await;
    shown::<NetworkInterface>(region, "web-2", "/status/virtualIP", |ip| *ip == public).await;
    let made = region.get::<VirtualIP>(NS, "web-2").await.expect("made");
    let owners = made.metadata.owner_references.unwrap_or_default();
    assert!(owners.is_empty(), "it stays: {owners:?}");
    let ips = shown::<NetworkInterface>(region, "web-2", "/status/ips", any).await;
    check_inside(&ips[0], shop);
    assert!(ips[1].as_str().expect("text").starts_with("fd00:20:"));

    let ips = shown::<NetworkInterface>(region, "db-1", "/status/ips", any).await;
    assert_eq!(ips, json!(["10.21.0.5"]));
    let back = region.get::<NetworkInterface>(NS, "web-back").await;
    let back = json!(back.expect("made"));
    assert_eq!(back["metadata"]["ownerReferences"][0]["kind"], "Machine");
    assert_eq!(back["metadata"]["labels"]["app"], "web");
    assert_eq!(back["status"]["ips"], json!(["10.30.0.7"]));
}

async fn check_services(region: &Region, shop: &Value) {
    shown::<NATGateway>(region, "shop-nat", "/status/ips/0", any).await;
    let public = shown::<LoadBalancer>(region, "web", "/status/ips/0", any).await;
    assert!(public.as_str().expect("text").starts_with("203.0.113."));
    let internal = shown::<LoadBalancer>(region, "db", "/status/ips/0", any).await;
    check_inside(&internal, shop);
    for (name, targets) in [("web", vec!["web-1", "web-2"]), ("db", vec!["db-1"])] {
        let all = |found: &Value| {
            let found = found.as_array().into_iter().flatten();
            let mut found: Vec<&str> = found
                .filter(|found| found["targetRef"]["providerID"] != "")
                .filter_map(|found| found["targetRef"]["name"].as_str())
                .collect();
            found.sort_unstable();
            found.dedup();
            found == targets
        };
        shown::<LoadBalancerRouting>(region, name, "/destinations", all).await;
    }

    let ready = |conditions: &Value| {
        let mut conditions = conditions.as_array().into_iter().flatten();
        conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    shown::<NetworkPolicy>(region, "db", "/status/conditions", ready).await;
    let directions = shown::<NetworkPolicy>(region, "db", "/spec/policyTypes", any).await;
    let named = |word: &str| {
        directions
            .as_array()
            .is_some_and(|all| all.contains(&json!(word)))
    };
    assert!(named("Ingress") && named("Egress"), "{directions}");
    let policy = region.get::<NetworkPolicy>(NS, "db").await.expect("there");
    let nic = region.get::<NetworkInterface>(NS, "web-1").await;
    let web = json!(nic.expect("there").status)["ips"][0].clone();
    let rules = region
        .get::<NetworkPolicyRule>(APINET_NS, controller::object::uid(&policy))
        .await;
    let rules = json!(rules.expect("resolved"));
    assert_eq!(rules["targets"][0]["ip"], "10.21.0.5", "{rules}");
    let ingress = rules["ingressRule"].to_string();
    for part in [web.as_str().expect("text"), "10.40.0.0/16", "10.40.9.0/24"] {
        assert!(ingress.contains(part), "{part} in {ingress}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_of_the_guide_do_what_it_says() {
    let region = Region::start().await;
    region.pool(100).await;
    for file in [
        "01-address-plan.yaml",
        "02-network.yaml",
        "03-peering.yaml",
        "04-public-address.yaml",
        "05-network-interface.yaml",
        "06-machine.yaml",
        "07-nat-gateway.yaml",
        "08-load-balancer.yaml",
        "09-network-policy.yaml",
    ] {
        create(&region, file).await;
    }
    let shop = check_addresses(&region).await;
    check_networks(&region).await;
    check_interfaces(&region, &shop).await;
    check_services(&region, &shop).await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_in_the_order_of_the_manifest_leaves_nothing() {
    let region = Region::start().await;
    let documents = create(&region, "10-clean-up.yaml").await;
    shown::<Network>(&region, "brief", "/status/state", is("Available")).await;
    shown::<LoadBalancer>(&region, "brief", "/status/ips/0", any).await;
    shown::<NATGateway>(&region, "brief", "/status/ips/0", any).await;
    let now = DeleteParams::default();
    for document in documents {
        let deleted = document.api.delete(&document.name, &now).await;
        deleted.expect("deleted");
    }
    region.until_gone::<Network>(NS).await;
    region.until_gone::<Prefix>(NS).await;
    region.until_gone::<NetworkInterface>(NS).await;
    region.until_gone::<NATGateway>(NS).await;
    region.until_gone::<LoadBalancer>(NS).await;
    region.until_gone::<NetworkPolicy>(NS).await;
    region.until_gone::<apinet::Network>(APINET_NS).await;
    region.until_gone::<apinet::IP>(APINET_NS).await;
    let numbers: Api<apinet::NetworkID> = Api::all(region.client.clone());
    let left = numbers.list(&ListParams::default()).await.expect("a list");
    assert!(left.items.is_empty(), "{left:?}");
    region.stop().await;
}

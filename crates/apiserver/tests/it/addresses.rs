//! Public addresses of load balancers, NAT gateways and interfaces: reserved with their user, kept while a data plane may know
//! them, never twice.

use crate::support::{call, client, delete, get, patch, post, put, server};
use apiserver::store::memory::MemoryStore;
use apiserver::testing::{TestServer, ranges, spawn_with};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const NS: &str = "/apis/core.apinet.openkcm.dev/v1alpha1/namespaces/openkcm-net-system";
const ADDRESSES: &str = "/apis/core.apinet.openkcm.dev/v1alpha1/ipaddresses";
const DATA_PLANE: &str = "apinet.openkcm.dev/data-plane";
const PARTITION: &str = "partition.metalnetlet.apinet.openkcm.dev/p";
const RELEASED_AT: &str = "apinet.openkcm.dev/released-at";

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn path(plural: &str) -> String {
    format!("{NS}/{plural}")
}

/// A kind whose objects use public addresses.
struct User {
    plural: &'static str,
    member: &'static str,
    /// Whether an entry names its family, or the object does.
    entry_family: bool,
    finalizer: &'static str,
}

const USERS: [User; 3] = [
    User {
        plural: "loadbalancers",
        member: "ips",
        entry_family: true,
        finalizer: DATA_PLANE,
    },
    User {
        plural: "natgateways",
        member: "ips",
        entry_family: false,
        finalizer: DATA_PLANE,
    },
    User {
        plural: "networkinterfaces",
        member: "publicIPs",
        entry_family: true,
        finalizer: PARTITION,
    },
];

impl User {
    fn entry(&self, name: &str) -> Value {
        match self.entry_family {
            true => json!({ "name": name, "ipFamily": "IPv4" }),
            false => json!({ "name": name }),
        }
    }

    /// An object without addresses.
    fn object(&self, name: &str, entries: &[Value]) -> Value {
        let network = json!({ "name": "net" });
        let (kind, mut spec) = match self.plural {
            "loadbalancers" => (
                "LoadBalancer",
                json!({ "type": "Public", "networkRef": network, "selector": {} }),
            ),
            "natgateways" => (
                "NATGateway",
                json!({ "ipFamily": "IPv4", "networkRef": network, "portsPerNetworkInterface": 64 }),
            ),
            _ => (
                "NetworkInterface",
                json!({ "networkRef": network, "nodeRef": { "name": "p.n1" }, "ips": ["10.0.0.1"] }),
            ),
        };
        spec[self.member] = json!(entries);
        json!({
            "apiVersion": "core.apinet.openkcm.dev/v1alpha1",
            "kind": kind,
            "metadata": { "name": name },
            "spec": spec,
        })
    }

    fn ip<'a>(&self, object: &'a Value, index: usize) -> &'a str {
        text(object, &format!("/spec/{}/{index}/ip", self.member))
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{name}", path(self.plural))
    }

    async fn make(&self, client: &kube::Client, name: &str, entries: &[Value]) -> Value {
        let (code, made) = post(client, &path(self.plural), &self.object(name, entries)).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        made
    }

    async fn set(
        &self,
        client: &kube::Client,
        name: &str,
        entries: &[Value],
    ) -> (StatusCode, Value) {
        let body = json!({ "spec": { self.member: entries } });
        patch(client, &self.url(name), "merge", &body).await
    }
}

async fn setup() -> (TestServer, kube::Client) {
    let server = server().await;
    let client = client(&server).await;
    (server, client)
}

/// A server with a pool of the given prefix alone.
async fn setup_with(prefix: &str) -> (TestServer, kube::Client) {
    let mut ranges = ranges();
    ranges.public = vec![prefix.parse().expect("a prefix")];
    let server = spawn_with(Arc::new(MemoryStore::default()), ranges)
        .await
        .expect("the server starts");
    let client = client(&server).await;
    (server, client)
}

async fn items(client: &kube::Client, url: &str) -> Vec<Value> {
    let (code, list) = get(client, url).await;
    assert_eq!(code, StatusCode::OK, "{list}");
    list["items"].as_array().cloned().unwrap_or_default()
}

async fn ips(client: &kube::Client) -> Vec<Value> {
    items(client, &path("ips")).await
}

/// Every lock has an IP, every IP a lock, and no address stands with two users.
async fn check_books(client: &kube::Client) {
    let held = ips(client).await;
    let mut by_address: BTreeMap<String, &Value> = BTreeMap::new();
    for ip in &held {
        let twice = by_address.insert(text(ip, "/spec/ip").to_owned(), ip);
        assert!(twice.is_none(), "{ip} twice");
    }
    let locks = items(client, ADDRESSES).await;
    assert_eq!(locks.len(), held.len());
    for lock in &locks {
        let ip = by_address
            .get(text(lock, "/metadata/name"))
            .expect("an IP for every lock");
        assert_eq!(lock["spec"]["claimRef"]["uid"], ip["metadata"]["uid"]);
    }
    let mut users: BTreeMap<String, String> = BTreeMap::new();
    for user in &USERS {
        for object in items(client, &path(user.plural)).await {
            if object["spec"]["type"] == "Internal" {
                continue;
            }
            let entries = object["spec"][user.member].as_array().cloned();
            for entry in entries.unwrap_or_default() {
                let address = text(&entry, "/ip").to_owned();
                let uid = text(&object, "/metadata/uid").to_owned();
                let ip = by_address.get(&address).expect("an IP for every address");
                assert_eq!(text(ip, "/spec/claimRef/uid"), uid);
                assert!(users.insert(address, uid).is_none(), "two users");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_come_and_go_with_their_users() {
    let (_server, client) = setup().await;
    for user in &USERS {
        let made = user.make(&client, "x", &[user.entry("a")]).await;
        let first = user.ip(&made, 0).to_owned();
        let held = ips(&client).await;
        assert_eq!(held.len(), 1, "{}", user.plural);
        let claim = &held[0]["spec"]["claimRef"];
        assert_eq!(claim["resource"], user.plural);
        assert_eq!(claim["uid"], made["metadata"]["uid"]);
        assert_eq!(
            held[0]["metadata"]["ownerReferences"][0]["kind"],
            made["kind"]
        );
        check_books(&client).await;
        // Another entry is another address. No data plane knows this object, so the old one goes at once.
        let (code, replaced) = user.set(&client, "x", &[user.entry("b")]).await;
        assert_eq!(code, StatusCode::OK, "{replaced}");
        assert_ne!(user.ip(&replaced, 0), first);
        assert_eq!(ips(&client).await.len(), 1);
        check_books(&client).await;
        assert_eq!(delete(&client, &user.url("x")).await.0, StatusCode::OK);
        assert!(ips(&client).await.is_empty(), "{}", user.plural);
        assert!(items(&client, ADDRESSES).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_again_without_addresses_keeps_them() {
    let (_server, client) = setup().await;
    for user in &USERS {
        let mut body = user.object("x", &[user.entry("a")]);
        let url = format!("{}?fieldManager=let&force=true", user.url("x"));
        let (code, made) = patch(&client, &url, "apply", &body).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        let address = user.ip(&made, 0).to_owned();
        body["metadata"]["labels"] = json!({ "again": "1" });
        let (code, again) = patch(&client, &url, "apply", &body).await;
        assert_eq!(code, StatusCode::OK, "{again}");
        assert_eq!(user.ip(&again, 0), address, "{}", user.plural);
        assert_eq!(ips(&client).await.len(), 1);
        // What an entry says beside its address is taken over.
        if user.plural == "natgateways" {
            body["spec"]["ips"][0]["draining"] = json!(true);
            let (_, drained) = patch(&client, &url, "apply", &body).await;
            assert_eq!(drained["spec"]["ips"][0]["draining"], true);
            assert_eq!(user.ip(&drained, 0), address);
        }
        delete(&client, &user.url("x")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_a_data_plane_may_know_is_not_freed_by_its_user() {
    let (_server, client) = setup().await;
    for user in &USERS {
        let made = user.make(&client, "x", &[user.entry("a")]).await;
        let address = user.ip(&made, 0).to_owned();
        let known = json!({ "metadata": { "finalizers": [user.finalizer] } });
        patch(&client, &user.url("x"), "merge", &known).await;
        let (code, emptied) = user.set(&client, "x", &[]).await;
        assert_eq!(code, StatusCode::OK, "{emptied}");
        let held = ips(&client).await;
        assert_eq!(held.len(), 1, "{}", user.plural);
        assert_eq!(text(&held[0], "/spec/ip"), address);
        assert_eq!(held[0]["spec"]["claimRef"]["uid"], made["metadata"]["uid"]);
        assert!(!text(&held[0], "/metadata/deletionTimestamp").is_empty());
        let annotations = &held[0]["metadata"]["annotations"];
        assert!(annotations[RELEASED_AT].is_string(), "{held:?}");
        assert_eq!(items(&client, ADDRESSES).await.len(), 1, "still locked");
        // Nobody else gets it, by name or by chance.
        let given = json!([{ "name": "a", "ipFamily": "IPv4", "ip": address }]);
        let other = &USERS[0];
        let body = other.object("other", given.as_array().expect("a list"));
        let (code, refused) = post(&client, &path(other.plural), &body).await;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
        // The collector's write frees IP and lock together.
        let url = format!("{}/{}", path("ips"), text(&held[0], "/metadata/name"));
        let free = json!({ "metadata": { "finalizers": [], "annotations": { RELEASED_AT: null } },
            "spec": { "claimRef": null } });
        let (code, answer) = patch(&client, &url, "merge", &free).await;
        assert_eq!(code, StatusCode::OK, "{answer}");
        assert!(ips(&client).await.is_empty());
        assert!(items(&client, ADDRESSES).await.is_empty());
        patch(
            &client,
            &user.url("x"),
            "merge",
            &json!({ "metadata": { "finalizers": [] } }),
        )
        .await;
        delete(&client, &user.url("x")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_user_frees_nothing_before_its_finalizers_are_gone() {
    let (_server, client) = setup().await;
    for user in &USERS {
        user.make(&client, "x", &[user.entry("a")]).await;
        let known = json!({ "metadata": { "finalizers": [user.finalizer] } });
        patch(&client, &user.url("x"), "merge", &known).await;
        delete(&client, &user.url("x")).await;
        assert_eq!(ips(&client).await.len(), 1, "{}", user.plural);
        check_books(&client).await;
        let done = json!({ "metadata": { "finalizers": [] } });
        let (code, _) = patch(&client, &user.url("x"), "merge", &done).await;
        assert_eq!(code, StatusCode::OK);
        assert!(ips(&client).await.is_empty());
        assert!(items(&client, ADDRESSES).await.is_empty());
    }
}

/// A static IP and its address.
async fn static_ip(client: &kube::Client, name: &str) -> String {
    let body = json!({
        "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": "IP", "metadata": { "name": name },
        "spec": { "type": "Public", "ipFamily": "IPv4" },
    });
    let (code, ip) = post(client, &path("ips"), &body).await;
    assert_eq!(code, StatusCode::CREATED, "{ip}");
    text(&ip, "/spec/ip").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_address_moves_only_when_the_old_data_plane_has_let_go() {
    let (_server, client) = setup().await;
    let address = static_ip(&client, "vip").await;
    let [balancer, _, nic] = &USERS;
    let entry = json!({ "name": "a", "ipFamily": "IPv4", "ip": address });
    nic.make(&client, "first", std::slice::from_ref(&entry))
        .await;
    let second = balancer.object("second", std::slice::from_ref(&entry));
    let (code, refused) = post(&client, &path(balancer.plural), &second).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let known = json!({ "metadata": { "finalizers": [PARTITION] } });
    patch(&client, &nic.url("first"), "merge", &known).await;
    nic.set(&client, "first", &[]).await;
    // Now it is only a matter of time, and the answer says so: 409 is worth another try.
    let (code, refused) = post(&client, &path(balancer.plural), &second).await;
    assert_eq!(code, StatusCode::CONFLICT, "{refused}");
    // Whoever had it may have it back.
    let (code, back) = nic
        .set(&client, "first", std::slice::from_ref(&entry))
        .await;
    assert_eq!(code, StatusCode::OK, "{back}");
    let (_, vip) = get(&client, &format!("{}/vip", path("ips"))).await;
    assert!(
        vip["metadata"]["annotations"][RELEASED_AT].is_null(),
        "{vip}"
    );
    nic.set(&client, "first", &[]).await;
    // Deleting it now waits too.
    delete(&client, &format!("{}/vip", path("ips"))).await;
    assert_eq!(ips(&client).await.len(), 1);
    assert_eq!(items(&client, ADDRESSES).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_deleted_while_it_is_used_stays_with_its_user() {
    let (_server, client) = setup().await;
    let address = static_ip(&client, "vip").await;
    let entry = json!({ "name": "a", "ipFamily": "IPv4", "ip": address });
    let nic = &USERS[2];
    let made = nic.make(&client, "x", std::slice::from_ref(&entry)).await;
    delete(&client, &format!("{}/vip", path("ips"))).await;
    let held = ips(&client).await;
    assert_eq!(held.len(), 1);
    assert_eq!(held[0]["spec"]["claimRef"]["uid"], made["metadata"]["uid"]);
    check_books(&client).await;
    let again = json!({
        "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": "IP", "metadata": { "name": "thief" },
        "spec": { "type": "Public", "ipFamily": "IPv4", "ip": address },
    });
    let (code, refused) = post(&client, &path("ips"), &again).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    // No data plane knows the interface, so the address goes with its last use.
    nic.set(&client, "x", &[]).await;
    assert!(ips(&client).await.is_empty());
    assert!(items(&client, ADDRESSES).await.is_empty());
    let (code, made) = post(&client, &path("ips"), &again).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_writes_take_and_free_nothing() {
    let (_server, client) = setup_with("203.0.113.4/31").await;
    let [balancer, gateway, _] = &USERS;
    // More than there are: all or nothing.
    let three = [
        balancer.entry("a"),
        balancer.entry("b"),
        balancer.entry("c"),
    ];
    let body = balancer.object("x", &three);
    let (code, answer) = post(&client, &path(balancer.plural), &body).await;
    assert_eq!(code, StatusCode::CONFLICT, "{answer}");
    assert!(ips(&client).await.is_empty());
    let made = balancer.make(&client, "x", &three[..1]).await;
    // The old address goes and the new ones do not come: nothing may change, least of all the address that is in use.
    for wanted in [&three[1..], &three[..]] {
        let (code, answer) = balancer.set(&client, "x", wanted).await;
        assert_eq!(code, StatusCode::CONFLICT, "{answer}");
        let (_, stored) = get(&client, &balancer.url("x")).await;
        assert_eq!(stored["spec"], made["spec"]);
        check_books(&client).await;
    }
    let (code, _) = balancer.set(&client, "x", &three[..2]).await;
    assert_eq!(code, StatusCode::OK);
    // A stale update.
    let mut stale = made.clone();
    stale["spec"]["ips"] = json!([]);
    let (code, _) = put(&client, &balancer.url("x"), &stale).await;
    assert_eq!(code, StatusCode::CONFLICT);
    check_books(&client).await;
    // Wrong fields are found before an address is looked for: there is none left.
    let mut wrong = gateway.object("g", &[gateway.entry("a")]);
    wrong["spec"]["portsPerNetworkInterface"] = json!(1);
    let no_family = balancer.object("g", &[json!({ "name": "a" })]);
    for (plural, body) in [(gateway.plural, wrong), (balancer.plural, no_family)] {
        let (code, answer) = post(&client, &path(plural), &body).await;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    }
    delete(&client, &balancer.url("x")).await;
    // A static address that was named beside too many others is still nobody's.
    let address = static_ip(&client, "vip").await;
    let given = json!({ "name": "v", "ipFamily": "IPv4", "ip": address });
    let body = balancer.object("y", &[given, three[0].clone(), three[1].clone()]);
    let (code, answer) = post(&client, &path(balancer.plural), &body).await;
    assert_eq!(code, StatusCode::CONFLICT, "{answer}");
    let vip = format!("{}/vip", path("ips"));
    assert_eq!(get(&client, &vip).await.1["spec"]["claimRef"], Value::Null);
    check_books(&client).await;
    assert_eq!(delete(&client, &vip).await.0, StatusCode::OK);
    // A dry run shows an address and takes none.
    let url = format!("{}?dryRun=All", path(gateway.plural));
    let (code, shown) = post(&client, &url, &gateway.object("g", &[gateway.entry("a")])).await;
    assert_eq!(code, StatusCode::CREATED, "{shown}");
    assert!(text(&shown, "/spec/ips/0/ip").starts_with("203.0.113."));
    assert!(ips(&client).await.is_empty());
    assert!(items(&client, ADDRESSES).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_write_cannot_take_an_address_twice() {
    let (_server, client) = setup().await;
    let address = static_ip(&client, "vip").await;
    let given = |name: &str| json!({ "name": name, "ipFamily": "IPv4", "ip": address });
    let body = USERS[0].object("x", &[given("a"), given("b")]);
    let (code, answer) = post(&client, &path("loadbalancers"), &body).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(text(&answer, "/message").contains("Duplicate"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn internal_balancers_and_status_writes_reserve_nothing() {
    let (_server, client) = setup().await;
    let mut internal = USERS[0].object("x", &[]);
    internal["spec"]["type"] = json!("Internal");
    internal["spec"]["ips"] = json!([{ "name": "a", "ip": "203.0.113.9" }]);
    let (code, made) = post(&client, &path("loadbalancers"), &internal).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    assert!(ips(&client).await.is_empty());
    let made = USERS[0].make(&client, "y", &[USERS[0].entry("a")]).await;
    let mut status = made.clone();
    status["spec"]["ips"] = json!([]);
    status["status"] = json!({ "ips": ["203.0.113.1"] });
    let url = format!("{}/status", USERS[0].url("y"));
    let (code, written) = call(
        &client,
        Method::PUT,
        &url,
        "application/json",
        &status.to_string(),
    )
    .await;
    assert_eq!(code, StatusCode::OK, "{written}");
    assert_eq!(written["spec"], made["spec"]);
    check_books(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_never_share_an_address() {
    use futures::StreamExt as _;
    let (_server, client) = setup_with("203.0.113.0/26").await;
    let tasks = futures::stream::iter(0..90).map(|n: usize| {
        let client = client.clone();
        async move {
            let user = &USERS[n % USERS.len()];
            let name = format!("x{n}");
            let body = user.object(&name, &[user.entry("a")]);
            let (code, _) = post(&client, &path(user.plural), &body).await;
            if code == StatusCode::CREATED && n.is_multiple_of(4) {
                user.set(&client, &name, &[user.entry("b")]).await;
            }
            if code == StatusCode::CREATED && n.is_multiple_of(5) {
                delete(&client, &user.url(&name)).await;
            }
            code
        }
    });
    let codes: Vec<StatusCode> = tasks.buffer_unordered(16).collect().await;
    assert!(codes.contains(&StatusCode::CREATED));
    check_books(&client).await;
}

/// An interface with addresses of its own, in a network.
fn interface(name: &str, network: &str, ips: &[&str]) -> Value {
    json!({
        "apiVersion": "core.apinet.openkcm.dev/v1alpha1",
        "kind": "NetworkInterface",
        "metadata": { "name": name },
        "spec": { "networkRef": { "name": network }, "nodeRef": { "name": "p.n1" }, "ips": ips },
    })
}

#[tokio::test]
async fn a_public_address_of_an_interface_is_in_one_network_only() {
    let (_server, client) = setup().await;
    let url = path("networkinterfaces");
    let public = "2001:db8:1::7";
    let first = interface("first", "red", &["10.0.0.1", public]);
    let (code, made) = post(&client, &url, &first).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let thief = interface("thief", "blue", &["10.0.0.1", public]);
    let (code, refused) = post(&client, &url, &thief).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert_eq!(text(&refused, "/details/causes/0/field"), "spec.ips[1]");
    let ip = json!({ "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": "IP", "metadata": { "name": "ip" },
        "spec": { "type": "Public", "ipFamily": "IPv6", "ip": public } });
    let (code, refused) = post(&client, &path("ips"), &ip).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let locks = items(&client, ADDRESSES).await;
    assert_eq!(
        locks.len(),
        1,
        "private addresses are nobody else's concern: {locks:?}"
    );
    assert_eq!(
        text(&locks[0], "/spec/claimRef/resource"),
        "networkinterfaces"
    );
    let (code, gone) = delete(&client, &format!("{url}/first")).await;
    assert_eq!(code, StatusCode::OK, "{gone}");
    assert!(items(&client, ADDRESSES).await.is_empty());
    let (code, made) = post(&client, &url, &thief).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
}

//! The services of a network, from the user's manifest down to packets: public addresses, NAT, load balancing, policies, peering.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::sleep;

use crate::client::{
    self, LOAD_BALANCER, MACHINE, NAT_GATEWAY, NETWORK, NETWORK_INTERFACE, VIRTUAL_IP, has_state,
    is_ready,
};
use crate::demo::report::Report;
use crate::demo::{Region, faults};
use crate::outside::{self, SERVER_V4};
use crate::{machines, network, probe};

/// The manifest of this part, as a user applies it.
const EXAMPLE: &str = include_str!("../../../../examples/services.yaml");
const OBJECTS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long packets may take to follow what the objects say.
const PACKETS_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests to a load balancer; the chance that none of them goes to one of two targets is 2^-40.
const REQUESTS: usize = 40;
const INTERNAL_BALANCER: &str = "10.50.9.9";
const DATABASE: &str = "10.50.2.1";
const BASTION: &str = "10.50.3.1";
const CLERK: &str = "10.60.0.1";
/// Machines behind one NAT gateway, and the ports that each may use: more than one address can hold.
const CROWD: u16 = 40;
const CROWD_PORTS: u16 = 2048;
/// First port of an address that a NAT gateway hands out.
const NAT_PORTS_FIRST: u16 = 1024;
/// Number of the hypervisor that is cut off: the one with web-2.
const LOST_HYPERVISOR: u8 = 2;
/// Most remains that a message lists.
const REMAINS_SHOWN: usize = 10;

/// What the steps need to know of the objects.
struct Shop {
    /// Addresses of the web servers.
    web: BTreeMap<String, String>,
    bastion: String,
    balancer: String,
    /// The servers inside the machines, which end with this.
    _servers: Vec<Child>,
}

pub(super) async fn services(region: &Region, report: &mut Report) -> Result<()> {
    report.chapter("A shop and its services: kubectl apply -f examples/services.yaml");
    let shop = open(region, report).await?;
    report.chapter("To and from the internet");
    report.check("public address", public_address(region, &shop).await);
    let seen = shared_nat(region, report).await;
    report.check("NAT", seen);
    for victim in ["metalbond-r1", "metalnet-hv1"] {
        report.check(
            &format!("NAT while {victim} dies"),
            nat_under_fault(region, victim).await,
        );
    }
    report.chapter("Load balancers");
    let internet = region.topology.netns(outside::ROLE);
    report.check(
        "public load balancer",
        balanced(&internet, &shop.balancer, 2).await,
    );
    let bastion = machines::netns(&region.record, "bastion")?;
    report.check(
        "internal load balancer",
        balanced(&bastion, INTERNAL_BALANCER, 2).await,
    );
    report.chapter("Policies and peering");
    report.check("policy", policy(region, &shop).await);
    report.check("peering", peering(region, &shop).await);
    report.chapter("40 machines behind two addresses");
    report.check("crowd", crowd(region).await);
    report.chapter("A hypervisor goes: openkcm lab disconnect hv2");
    report.check("lost hypervisor", lost_hypervisor(region, &shop).await);
    report.check("hypervisor back", hypervisor_back(region, &shop).await);
    report.chapter("A target goes");
    report.check("lost target", lost_target(region, &shop).await);
    report.chapter("Clean-up: everything deleted at once, owners first");
    report.check("services are gone", gone(region).await);
    Ok(())
}

// ---- objects ---------------------------------------------------------------------------------------------------------------

async fn open(region: &Region, report: &mut Report) -> Result<Shop> {
    let begun = Instant::now();
    client::apply(&region.client, EXAMPLE).await?;
    let wait = |kind, count| {
        client::wait(
            &region.client,
            kind,
            "default",
            count,
            OBJECTS_TIMEOUT,
            is_ready,
        )
    };
    wait(NETWORK, 2).await?;
    let interfaces = wait(NETWORK_INTERFACE, 5).await?;
    client::wait(
        &region.client,
        MACHINE,
        "default",
        5,
        OBJECTS_TIMEOUT,
        |o| has_state(o, "Running"),
    )
    .await?;
    let addresses = wait(VIRTUAL_IP, 1).await?;
    let balancers = wait(LOAD_BALANCER, 2).await?;
    wait(NAT_GATEWAY, 1).await?;
    report.pass(
        "objects",
        &format!(
            "everything is Ready {} ms after apply began",
            begun.elapsed().as_millis()
        ),
    );
    let web = interfaces
        .iter()
        .filter(|o| o["metadata"]["labels"]["app"] == "web")
        .map(|o| (owner(o), text(&o["status"]["ips"][0])))
        .collect();
    let balancer = balancers
        .iter()
        .find(|o| o["metadata"]["name"] == "web")
        .map(|o| text(&o["status"]["ips"][0]))
        .context("the load balancer web has no address")?;
    let bastion = text(&addresses.first().context("no VirtualIP")?["status"]["ip"]);
    report.note(&format!(
        "web servers {web:?}, load balancer {balancer}, bastion {bastion}"
    ));
    let servers = serve(region, &balancer)?;
    Ok(Shop {
        web,
        bastion,
        balancer,
        _servers: servers,
    })
}

/// HTTP servers that tell whom they saw. A load balancer leaves the destination as it is, so its targets have its address, too.
fn serve(region: &Region, balancer: &str) -> Result<Vec<Child>> {
    let mut servers = Vec::new();
    for (machine, port) in [
        ("web-1", 80),
        ("web-2", 80),
        ("db", 5432),
        ("db", 80),
        ("clerk", 80),
    ] {
        let netns = machines::netns(&region.record, machine)?;
        if machine.starts_with("web") {
            for address in [balancer, INTERNAL_BALANCER] {
                probe::own_address(&netns, address)?;
            }
        }
        servers.push(probe::serve(&netns, &region.layout.openkcm, machine, port)?);
    }
    Ok(servers)
}

fn owner(object: &Value) -> String {
    text(&object["metadata"]["ownerReferences"][0]["name"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

// ---- the internet ----------------------------------------------------------------------------------------------------------

/// In, and out under the same address.
async fn public_address(region: &Region, shop: &Shop) -> Result<String> {
    let internet = region.topology.netns(outside::ROLE);
    let first = probe::first_reply(&internet, &shop.bastion, PACKETS_TIMEOUT).await?;
    let bastion = machines::netns(&region.record, "bastion")?;
    let seen = seen_by_internet(&bastion).await?;
    ensure!(
        seen.0.to_string() == shop.bastion,
        "the internet sees the bastion as {}, not {}",
        seen.0,
        shop.bastion
    );
    Ok(format!(
        "internet -> {}: first reply after {} ms; the bastion is seen under that address",
        shop.bastion,
        first.as_millis()
    ))
}

/// Client address and port as the internet's server saw them.
async fn seen_by_internet(netns: &str) -> Result<(IpAddr, u16)> {
    let page = probe::fetch_until(netns, &format!("http://{SERVER_V4}/"), PACKETS_TIMEOUT).await?;
    let mut words = page.split_whitespace();
    let address = words.next().and_then(|w| w.parse().ok());
    let port = words.next().and_then(|w| w.parse().ok());
    address
        .zip(port)
        .with_context(|| format!("the internet's page says {page:?}"))
}

async fn gateway_addresses(region: &Region, name: &str) -> Result<BTreeSet<String>> {
    let gateway = client::api(&region.client, NAT_GATEWAY, "default")
        .get(name)
        .await?;
    let ips = gateway.data["status"]["ips"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    Ok(ips.iter().map(text).collect())
}

/// Machines of both hypervisors under one address.
async fn shared_nat(region: &Region, report: &mut Report) -> Result<String> {
    let addresses = gateway_addresses(region, "shop").await?;
    let mut seen = BTreeSet::new();
    for machine in ["web-1", "web-2"] {
        let netns = machines::netns(&region.record, machine)?;
        let (address, port) = seen_by_internet(&netns).await?;
        report.note(&format!("{machine} is seen as {address} port {port}"));
        ensure!(
            addresses.contains(&address.to_string()),
            "{machine} is seen as {address}, the gateway has {addresses:?}"
        );
        seen.insert(address);
    }
    ensure!(seen.len() == 1, "the machines are seen under {seen:?}");
    Ok(format!(
        "web-1 on hv1 and web-2 on hv2 are both seen as {addresses:?}"
    ))
}

/// Both machines behind the shared address ping while a part dies.
async fn nat_under_fault(region: &Region, victim: &str) -> Result<String> {
    let [first, second] = ["web-1", "web-2"].map(|name| machines::netns(&region.record, name));
    let server = SERVER_V4.to_string();
    let watched = [(first?, server.as_str()), (second?, server.as_str())];
    faults::fault_under(region, victim, &watched, Duration::ZERO).await
}

// ---- load balancers --------------------------------------------------------------------------------------------------------

/// Every request is answered, by `targets` different machines in all.
async fn balanced(from: &str, address: &str, targets: usize) -> Result<String> {
    let url = format!("http://{address}/");
    probe::fetch_until(from, &url, PACKETS_TIMEOUT).await?;
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..REQUESTS {
        let page = probe::fetch(from, &url).await?;
        let name = page.split_whitespace().nth(2).unwrap_or("?");
        *answers.entry(name.to_owned()).or_default() += 1;
    }
    ensure!(
        answers.len() == targets,
        "{REQUESTS} requests to {address} were answered by {answers:?}"
    );
    Ok(format!(
        "{REQUESTS} requests to {address} were answered by {answers:?}"
    ))
}

/// Without one target the other answers everything.
async fn lost_target(region: &Region, shop: &Shop) -> Result<String> {
    let begun = Instant::now();
    client::api(&region.client, MACHINE, "default")
        .delete("web-2", &kube::api::DeleteParams::default())
        .await?;
    let took = web_1_alone(region, shop, begun).await?;
    Ok(format!(
        "web-1 answers everything {} ms after web-2 was deleted",
        took.as_millis()
    ))
}

/// The second hypervisor is cut off together with a target and one of the places where the balancer is: nobody says goodbye.
async fn lost_hypervisor(region: &Region, shop: &Shop) -> Result<String> {
    let begun = Instant::now();
    network::disconnect(&region.topology, LOST_HYPERVISOR)?;
    let took = web_1_alone(region, shop, begun).await?;
    let bastion = machines::netns(&region.record, "bastion")?;
    let internal = balanced(&bastion, INTERNAL_BALANCER, 1).await?;
    Ok(format!(
        "web-1 answers everything {} ms after hv2 was cut off; inside, {internal}",
        took.as_millis()
    ))
}

/// The load comes back to it by itself.
async fn hypervisor_back(region: &Region, shop: &Shop) -> Result<String> {
    let begun = Instant::now();
    network::connect(&region.topology, LOST_HYPERVISOR)?;
    let internet = region.topology.netns(outside::ROLE);
    loop {
        match balanced(&internet, &shop.balancer, 2).await {
            Ok(seen) => {
                let took = begun.elapsed().as_millis();
                return Ok(format!("{seen}; {took} ms after hv2 was connected"));
            }
            Err(err) if begun.elapsed() > OBJECTS_TIMEOUT => return Err(err),
            Err(_) => {}
        }
    }
}

/// How long it takes until [`REQUESTS`] in a row are answered by web-1.
async fn web_1_alone(region: &Region, shop: &Shop, begun: Instant) -> Result<Duration> {
    let internet = region.topology.netns(outside::ROLE);
    let url = format!("http://{}/", shop.balancer);
    let mut in_a_row = 0;
    let mut settled = begun.elapsed();
    while in_a_row < REQUESTS {
        ensure!(
            begun.elapsed() < OBJECTS_TIMEOUT,
            "requests still fail or go astray after {} s",
            begun.elapsed().as_secs()
        );
        match probe::fetch(&internet, &url).await {
            Ok(page) if page.contains("web-1") => in_a_row += 1,
            Ok(_) | Err(_) => (in_a_row, settled) = (0, begun.elapsed()),
        }
    }
    Ok(settled)
}

// ---- policies and peering --------------------------------------------------------------------------------------------------

async fn policy(region: &Region, shop: &Shop) -> Result<String> {
    let netns = |name: &str| machines::netns(&region.record, name);
    let database = format!("http://{DATABASE}:5432/");
    for name in shop.web.keys() {
        probe::fetch_until(&netns(name)?, &database, PACKETS_TIMEOUT)
            .await
            .with_context(|| format!("{name} must reach the database"))?;
    }
    refused(
        &netns("bastion")?,
        &database,
        "the bastion reaches the database",
    )
    .await?;
    refused(
        &netns("web-1")?,
        &format!("http://{DATABASE}/"),
        "web-1 reaches a port that is not listed",
    )
    .await?;
    let web = shop.web.get("web-2").context("web-2 has no address")?;
    refused(
        &netns("db")?,
        &format!("http://{web}/"),
        "the database reaches a web server",
    )
    .await?;
    Ok(
        "both web servers reach the database, nobody else does, and it reaches nobody by itself"
            .into(),
    )
}

async fn refused(from: &str, url: &str, what: &str) -> Result<()> {
    match probe::fetch(from, url).await {
        Ok(_) => bail!("{what}, which no policy allows"),
        Err(_) => Ok(()),
    }
}

async fn peering(region: &Region, shop: &Shop) -> Result<String> {
    let clerk = machines::netns(&region.record, "clerk")?;
    for address in shop.web.values() {
        probe::first_reply(&clerk, address, PACKETS_TIMEOUT).await?;
    }
    let web = machines::netns(&region.record, "web-1")?;
    probe::first_reply(&web, CLERK, PACKETS_TIMEOUT).await?;
    if probe::first_reply(&clerk, BASTION, Duration::from_secs(1))
        .await
        .is_ok()
    {
        bail!("the office reaches the bastion, which the peering does not show it");
    }
    Ok("the office and the web servers reach each other; what the peering does not list stays unseen".into())
}

// ---- the crowd -------------------------------------------------------------------------------------------------------------

/// Machines that need two addresses together; each gets a block of ports of its own.
async fn crowd(region: &Region) -> Result<String> {
    let begun = Instant::now();
    let all = crowd_objects();
    client::apply_all(&region.client, &all).await?;
    let seen = crowd_seen(region).await;
    let took = begun.elapsed();
    client::delete_all(&region.client, &all, OBJECTS_TIMEOUT).await?;
    Ok(format!(
        "{CROWD} machines, {CROWD_PORTS} ports each, are seen as {:?}, no port shared; {:.1} s from apply to the last answer",
        seen?,
        took.as_secs_f64()
    ))
}

/// The addresses under which the internet sees the crowd.
async fn crowd_seen(region: &Region) -> Result<BTreeSet<String>> {
    let count = usize::from(CROWD) + 5;
    client::wait(
        &region.client,
        MACHINE,
        "default",
        count,
        OBJECTS_TIMEOUT,
        |o| has_state(o, "Running"),
    )
    .await?;
    let mut blocks = BTreeMap::new();
    for index in 0..CROWD {
        let netns = machines::netns(&region.record, &format!("crowd-{index}"))?;
        let (address, port) = seen_by_internet(&netns).await?;
        let block = port.saturating_sub(NAT_PORTS_FIRST) / CROWD_PORTS;
        if let Some((other, its)) = blocks.insert((address, block), (index, port)) {
            bail!(
                "crowd-{index} (port {port}) and crowd-{other} (port {its}) share a block of {address}"
            );
        }
    }
    let addresses: BTreeSet<String> = blocks.keys().map(|(a, _)| a.to_string()).collect();
    ensure!(
        addresses.len() == 2 && addresses == gateway_addresses(region, "crowd").await?,
        "seen under {addresses:?}, which are not the gateway's two"
    );
    Ok(addresses)
}

fn crowd_objects() -> Vec<Value> {
    let mut all = vec![
        json!({"apiVersion": NETWORK.api_version, "kind": "Network", "metadata": {"name": "crowd"}}),
        json!({"apiVersion": NAT_GATEWAY.api_version, "kind": "NATGateway", "metadata": {"name": "crowd"},
            "spec": {"type": "Public", "ipFamily": "IPv4", "networkRef": {"name": "crowd"},
                "portsPerNetworkInterface": CROWD_PORTS}}),
    ];
    all.extend((0..CROWD).map(|index| {
        json!({"apiVersion": MACHINE.api_version, "kind": "Machine", "metadata": {"name": format!("crowd-{index}")},
            "spec": {"machineClassRef": {"name": "small"}, "networkInterfaces": [{"name": "main", "ephemeral": {
                "networkInterfaceTemplate": {"spec": {"networkRef": {"name": "crowd"}, "ipFamilies": ["IPv4"],
                    "ips": [{"value": format!("10.70.0.{}", index + 1)}]}}}}]}})
    }));
    all
}

// ---- clean-up --------------------------------------------------------------------------------------------------------------

/// Deletes in the order of the manifest, networks first, without waiting in between, and looks for remains.
async fn gone(region: &Region) -> Result<String> {
    let begun = Instant::now();
    let objects = client::documents(EXAMPLE)?;
    client::delete_all(&region.client, &objects, OBJECTS_TIMEOUT).await?;
    let deadline = begun + OBJECTS_TIMEOUT;
    loop {
        let left = client::remains(&region.client).await?;
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            let shown: Vec<&str> = left
                .iter()
                .take(REMAINS_SHOWN)
                .map(String::as_str)
                .collect();
            bail!(
                "{} objects remain, such as {}",
                left.len(),
                shown.join(", ")
            );
        }
        sleep(Duration::from_millis(50)).await;
    }
    for hypervisor in region.topology.hypervisor_names() {
        let interfaces = super::dpservice_interfaces(region, &hypervisor).await?;
        ensure!(
            interfaces.is_empty(),
            "{hypervisor} still has {interfaces:?}"
        );
    }
    Ok(format!(
        "no object, address, VNI or interface is left {} ms after the deletion",
        begun.elapsed().as_millis()
    ))
}

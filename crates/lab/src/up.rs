//! `lab up`: checks, files, network, supervisor, and waiting until the region is ready, with progress.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use apiserver::pki;
use kube::Client;

use crate::parts::{Layout, identities, parts};
use crate::state::{self, Record};
use crate::topology::Topology;
use crate::{UpArgs, client, commands, network, say, supervisor};

/// How long a lab may take from an empty machine to ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Programs a lab calls, and the Debian packages they come from.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("sysctl", "procps"),
    ("udhcpc", "udhcpc"),
    ("dhclient", "isc-dhcp-client"),
];

/// The class of machines that every lab offers.
pub const MACHINE_CLASS: &str = r#"
apiVersion: compute.openkcm.dev/v1alpha1
kind: MachineClass
metadata:
  name: small
capabilities:
  cpu: "1"
  memory: 1Gi
"#;
/// The same class as the machine runtime offers it: CPU in millicores, memory in bytes.
const RUNTIME_CLASSES: &str =
    r#"[{"name": "small", "capabilities": {"cpu": 1000, "memory": 1073741824}, "quantity": 126}]"#;

/// # Errors
/// This executable cannot find itself.
pub fn layout(record: &Record) -> Result<Layout> {
    let openkcm = std::env::current_exe().context("cannot find this executable")?;
    let dpservice = openkcm.with_file_name("dpservice");
    Ok(Layout {
        state: record.state.clone(),
        openkcm,
        dpservice,
        iperf3: find_program("iperf3"),
    })
}

/// Starts a lab and returns a client of its API server once everything is ready.
///
/// # Errors
/// What is missing or did not become ready, and where its log is. Nothing is left behind, except the logs.
pub async fn up(args: &UpArgs) -> Result<(Record, Client)> {
    let record = Record {
        name: args.name.name.clone(),
        hypervisors: args.hypervisors,
        routers: args.routers,
        state: std::path::absolute(
            args.state
                .clone()
                .unwrap_or_else(|| state::default_state(&args.name.name)),
        )?,
    };
    let topology = record.topology()?;
    let layout = layout(&record)?;
    check_machine(&layout)?;
    prepare_files(&layout)?;
    let _starting = state::lock_start(&layout.state)?;
    drop(state::lock(&layout.state)?);
    refuse_other_folder(&record)?;
    state::register(&record)?;
    tokio::select! {
        result = start(&topology, &layout, &record) => match result {
            Ok(client) => Ok((record, client)),
            Err(err) => {
                abandon(&record);
                Err(err)
            }
        },
        _ = tokio::signal::ctrl_c() => {
            say("\ninterrupted; cleaning up");
            abandon(&record);
            bail!("interrupted")
        }
    }
}

/// A lab of this name that is up elsewhere would lose its namespaces to the new one.
fn refuse_other_folder(record: &Record) -> Result<()> {
    match state::find(&record.name) {
        Ok(other) if other.state != record.state && state::is_locked(&other.state) => {
            bail!(
                "lab {} is already up with --state {}; take it down first or choose another --name",
                other.name,
                other.state.display()
            )
        }
        _ => Ok(()),
    }
}

/// Stops what was started; the logs stay for whoever wants to know why.
fn abandon(record: &Record) {
    if let Err(err) = commands::down(&record.name, true) {
        say(&format!("could not clean up: {err:#}"));
    }
}

fn check_machine(layout: &Layout) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab needs root (network namespaces, TAP devices): run it with sudo");
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!("/dev/net/tun is missing: load the kernel module with: modprobe tun");
    }
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(tool, _)| !in_path(tool))
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "programs are missing; install them with: apt-get install {}",
            missing.join(" ")
        );
    }
    if !layout.dpservice.is_file() {
        bail!(
            "{} is missing: build it with: cargo build --release --package dpservice",
            layout.dpservice.display()
        );
    }
    Ok(())
}

fn in_path(tool: &str) -> bool {
    find_program(tool).is_some()
}

fn find_program(tool: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(tool))
        .find(|program| program.is_file())
}

fn prepare_files(layout: &Layout) -> Result<()> {
    for folder in ["", "logs", "kubeconfig", "apiserver"] {
        let folder = layout.state.join(folder);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::set_permissions(&layout.state, fs::Permissions::from_mode(0o700))?;
    fs::write(layout.machine_classes(), RUNTIME_CLASSES)?;
    Ok(())
}

async fn start(topology: &Topology, layout: &Layout, record: &Record) -> Result<Client> {
    let begun = Instant::now();
    let progress = |what: &str| say(&format!("{:>6.2} s  {what}", begun.elapsed().as_secs_f64()));
    progress(&format!(
        "lab {}: {} hypervisors, {} routers, state in {}",
        topology.name,
        topology.hypervisors,
        topology.routers,
        layout.state.display()
    ));
    network::create(topology)?;
    for hypervisor in topology.hypervisor_names() {
        for folder in [
            layout.provider_state(&hypervisor),
            layout.state.join(&hypervisor).join("metalnet"),
        ] {
            fs::create_dir_all(folder)?;
        }
    }
    progress(&format!(
        "network namespaces and links ({} namespaces)",
        topology.netns_all().len()
    ));
    issue_certificates(topology, layout)?;
    progress("region CA and client certificates");
    spawn_supervisor(layout, record)?;
    let client = wait_ready(topology, layout, &progress)
        .await
        .with_context(|| hint(layout))?;
    progress("ready");
    say(&format!(
        "        export KUBECONFIG={}",
        layout.admin_kubeconfig().display()
    ));
    Ok(client)
}

fn hint(layout: &Layout) -> String {
    format!(
        "the region did not become ready; logs are in {}",
        layout.state.join("logs").display()
    )
}

fn issue_certificates(topology: &Topology, layout: &Layout) -> Result<()> {
    let now = SystemTime::now();
    let ca = pki::Ca::load_or_create(&layout.apiserver_state().join("pki"), now)?;
    for identity in identities(topology) {
        let who = pki::Identity {
            user: identity.common_name.clone(),
            groups: vec![identity.organization.clone()],
        };
        pki::issue_kubeconfig(
            &ca,
            &who,
            &topology.api_url(),
            &layout.kubeconfig(&identity.file),
            now,
            pki::CERTIFICATE_LIFE,
        )?;
    }
    Ok(())
}

/// In a session of its own, so that neither Ctrl-C nor the end of this terminal reaches it.
fn spawn_supervisor(layout: &Layout, record: &Record) -> Result<()> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(layout.log("supervisor"))?;
    Command::new("setsid")
        .arg(&layout.openkcm)
        .args(["lab", "supervise", "--name", &record.name])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;
    Ok(())
}

/// The supervisor's own entry point.
///
/// # Errors
/// No such lab, or another supervisor runs it.
pub async fn supervise(name: &str) -> Result<()> {
    let record = state::find(name)?;
    let _lock = state::lock(&record.state)?;
    let layout = layout(&record)?;
    supervisor::run(parts(&record.topology()?, &layout), layout).await
}

async fn wait_ready(
    topology: &Topology,
    layout: &Layout,
    progress: &impl Fn(&str),
) -> Result<Client> {
    let client = client::connect(&layout.admin_kubeconfig()).await?;
    wait_api(&client, layout).await?;
    progress("API server answers");
    client::apply(&client, MACHINE_CLASS).await?;
    let hypervisors = usize::from(topology.hypervisors);
    client::wait(
        &client,
        client::NODE,
        "",
        hypervisors,
        READY_TIMEOUT,
        |_| true,
    )
    .await
    .context("metalnet does not register its node")?;
    progress(&format!("metalnet runs on {hypervisors} hypervisors"));
    let ready = |pool: &serde_json::Value| {
        let conditions = pool["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    client::wait(
        &client,
        client::MACHINE_POOL,
        "",
        hypervisors,
        READY_TIMEOUT,
        ready,
    )
    .await
    .context("a machine pool does not become ready")?;
    progress(&format!("{hypervisors} machine pools are ready"));
    Ok(client)
}

async fn wait_api(client: &Client, layout: &Layout) -> Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        match client.apiserver_version().await {
            Ok(_) => return Ok(()),
            Err(err) if Instant::now() > deadline => {
                return Err(err).with_context(|| {
                    format!(
                        "the API server does not answer; see {}",
                        layout.log("apiserver").display()
                    )
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

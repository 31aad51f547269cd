//! Network namespaces and the devices in them, through iproute2 and by threads that enter a namespace.
//!
//! iproute2 is used in batches (one process per step, about 3 ms) instead of netlink calls of our own: it knows how to
//! name and mount namespaces, which other tools rely on (`ip netns exec`).

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Settings of a machine's namespace. Its addresses come from the region's own allocation, so duplicate address detection
/// (RFC 4862 §5.4) would only cost a second; the first router solicitation goes out at once for the same reason.
const SETTINGS: [(&str, &str); 9] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/accept_ra", "1"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/default/router_solicitation_delay", "0"),
    ("ipv6/conf/default/router_solicitation_interval", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// Why a step failed. All of these may heal; the step can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// iproute2 refused.
    #[error("ip {what}: {text}")]
    Ip {
        /// What was tried.
        what: String,
        /// Its own words.
        text: String,
    },
    /// A system call or file refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The device is in neither of the two namespaces.
    #[error("device {0} is not there")]
    NoDevice(String),
    /// The thread in the namespace ended without an answer.
    #[error("thread in namespace {0} ended")]
    Thread(String),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    let what = what.into();
    move |source| NetError::Io { what, source }
}

/// Where a named namespace is mounted.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Names of all namespaces that start with `prefix`.
pub fn list(prefix: &str) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir("/run/netns") {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes a namespace with its loopback up. Nothing happens when it is there.
pub async fn create(name: &str) -> Result<(), NetError> {
    if !path(name).exists() {
        ip(&["netns", "add", name]).await?;
    }
    let configured = enter(name, || {
        for (key, value) in SETTINGS {
            std::fs::write(format!("/proc/sys/net/{key}"), value)?;
        }
        Ok(())
    });
    configured
        .await?
        .map_err(io_error(format!("settings of namespace {name}")))?;
    batch(Some(name), &["link set lo up".into()]).await
}

/// Ends everything that runs in a namespace and removes it. Nothing happens when it is not there.
pub async fn remove(name: &str) -> Result<(), NetError> {
    if !path(name).exists() {
        return Ok(());
    }
    for pid in ip(&["netns", "pids", name]).await?.split_whitespace() {
        if let Ok(pid) = pid.parse() {
            // It may have ended since it was listed, which is the goal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    ip(&["netns", "delete", name]).await.map(drop)
}

/// Moves device `tap` from our namespace into `netns` as `device`.
pub async fn take(tap: &str, netns: &str, device: &str) -> Result<(), NetError> {
    let line = format!("link set dev {tap} netns {netns} name {device}");
    match batch(None, &[line]).await {
        Err(NetError::Ip { text, .. }) if text.contains("Cannot find device") => {
            Err(NetError::NoDevice(tap.to_owned()))
        }
        other => other,
    }
}

/// Deletes `device` of `netns`, a leftover under a name that is needed.
pub async fn delete(netns: &str, device: &str) -> Result<(), NetError> {
    batch(Some(netns), &[format!("link delete dev {device}")]).await
}

/// Brings `device` of `netns` up.
pub async fn up(netns: &str, device: &str) -> Result<(), NetError> {
    match batch(Some(netns), &[format!("link set dev {device} up")]).await {
        Err(NetError::Ip { text, .. }) if text.contains("Cannot find device") => {
            Err(NetError::NoDevice(device.to_owned()))
        }
        other => other,
    }
}

/// Moves `device` of `netns` back into our namespace as `tap`, down and without addresses. A device or namespace that is
/// gone is fine.
pub async fn release(netns: &str, device: &str, tap: &str) -> Result<(), NetError> {
    if !path(netns).exists() {
        return Ok(());
    }
    // The thread and not the process, so that it also holds for a thread that entered another namespace.
    let own = nix::unistd::gettid();
    let lines = [
        format!("link set dev {device} down"),
        format!("link set dev {device} netns {own} name {tap}"),
    ];
    match batch(Some(netns), &lines).await {
        Err(NetError::Ip { text, .. }) if text.contains("Cannot find device") => Ok(()),
        other => other,
    }
}

/// Addresses of a device: `None` when the device is absent.
pub async fn addresses(netns: &str, device: &str) -> Result<Option<Vec<String>>, NetError> {
    let shown = ip(&["-n", netns, "-o", "addr", "show", "dev", device]).await;
    let text = match shown {
        Ok(text) => text,
        Err(NetError::Ip { text, .. }) if text.contains("does not exist") => return Ok(None),
        Err(NetError::Ip { text, .. }) if text.contains("Cannot open network namespace") => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // `7: eth0    inet 10.0.0.1/32 scope global eth0\ …`
    let words = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    let found = words
        .filter_map(|word| word.split('/').next())
        .map(str::to_owned);
    Ok(Some(found.collect()))
}

/// Runs `work` on a thread of its own inside `netns`. Sockets that it opens and returns stay in the namespace.
pub async fn enter<T: Send + 'static>(
    netns: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetError> {
    let path = path(netns);
    let (answer, wait) = tokio::sync::oneshot::channel();
    // A thread of its own and not one of a pool, because a thread cannot be trusted to come back from a namespace.
    let spawned = std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let entered = File::open(&path)
                .and_then(|file| setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
            // The receiver may be gone: then nobody wants the answer.
            let _ = answer.send(entered.map(|()| work()));
        });
    spawned.map_err(io_error("start a thread"))?;
    match wait.await {
        Ok(entered) => entered.map_err(io_error(format!("enter namespace {netns}"))),
        Err(_) => Err(NetError::Thread(netns.to_owned())),
    }
}

/// A command that will run inside `netns` and dies with us.
pub fn command(netns: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", path(netns).display()))
        .arg("--")
        .arg(program)
        .kill_on_drop(true);
    command
}

/// Runs several iproute2 commands in one process.
pub async fn batch(netns: Option<&str>, lines: &[String]) -> Result<(), NetError> {
    let what = lines.join("; ");
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let spawned = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(io_error("run ip (package iproute2)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        let mut text = lines.join("\n");
        text.push('\n');
        stdin
            .write_all(text.as_bytes())
            .await
            .map_err(io_error("write to ip"))?;
    }
    let out = child
        .wait_with_output()
        .await
        .map_err(io_error("wait for ip"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(NetError::Ip {
        what,
        text: String::from_utf8_lossy(&out.stderr).trim().to_owned(),
    })
}

async fn ip(args: &[&str]) -> Result<String, NetError> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let out = output.map_err(io_error("run ip (package iproute2)"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(NetError::Ip {
        what: args.join(" "),
        text,
    })
}

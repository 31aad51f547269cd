//! Runs a DHCPv4 client (busybox `udhcpc`) in a machine and lets it configure the device by a script of ours.
//!
//! The region's leases are infinite (option 51 = 0xffffffff), so the client ends after it has its lease: nothing stays
//! running per machine. It is started again whenever the device is replaced.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::netns;

/// First patience with a client; doubled after every failure up to [`ATTEMPT_MAX`].
const ATTEMPT_MIN: Duration = Duration::from_millis(600);
const ATTEMPT_MAX: Duration = Duration::from_secs(8);

/// Address /32, classless routes (RFC 3442; they replace the router option), MTU. All in one process.
const SCRIPT: &str = r#"#!/bin/sh
# Called by udhcpc with the event as $1 and the lease in the environment. Written by the machine provider.
case "$1" in bound | renew) ;; *) exit 0 ;; esac
[ -n "$staticroutes" ] || for r in $router; do staticroutes="$staticroutes 0.0.0.0/0 $r"; done
set -- $staticroutes
{
	[ -z "$mtu" ] || echo "link set dev $interface mtu $mtu"
	echo "addr replace $ip/${mask:-32} dev $interface"
	while [ $# -ge 2 ]; do
		case "$2" in
			0.0.0.0) echo "route replace $1 dev $interface scope link metric $METRIC" ;;
			*) echo "route replace $1 via $2 dev $interface onlink metric $METRIC" ;;
		esac
		shift 2
	done
} | ip -batch -
"#;

/// Writes the script below `state` and returns where it is.
pub fn install(state: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = state.join("udhcpc.script");
    let temporary = state.join("udhcpc.script.new");
    std::fs::write(&temporary, SCRIPT)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&temporary, &path)?;
    Ok(path)
}

/// Configures `device` of `netns`; ends when it has its address. Never gives up: the caller drops it when the device goes.
pub async fn configure(netns: &str, device: &str, slot: u32, script: &Path) {
    let mut patience = ATTEMPT_MIN;
    loop {
        match tokio::time::timeout(patience, once(netns, device, slot, script)).await {
            Ok(Ok(true)) => return,
            Ok(Ok(false)) => tracing::info!(netns, device, "no DHCPv4 lease yet"),
            Ok(Err(error)) => {
                tracing::warn!(netns, device, err = %error, "udhcpc (package udhcpc) does not run")
            }
            Err(_) => tracing::info!(netns, device, ?patience, "no DHCPv4 lease in time"),
        }
        patience = (patience * 2).min(ATTEMPT_MAX);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn once(netns: &str, device: &str, slot: u32, script: &Path) -> io::Result<bool> {
    let mut command = netns::command(netns, "udhcpc");
    command
        .args([
            "-i",
            device,
            "-f",
            "-q",
            "-n",
            "-t",
            "8",
            "-T",
            "1",
            "-O",
            "staticroutes",
            "-O",
            "mtu",
            "-s",
        ])
        .arg(script)
        // Several interfaces of one machine each bring a default route: the first wins.
        .env("METRIC", (100 + slot).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command.status().await?.success())
}

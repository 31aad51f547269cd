//! Running other programs from the workspace root, with the step shown before.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The workspace root.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

#[expect(
    clippy::print_stdout,
    reason = "the task runner talks to the person who started it"
)]
pub fn step(what: &str) {
    println!("\n== {what}");
}

#[expect(
    clippy::print_stdout,
    reason = "the task runner talks to the person who started it"
)]
pub fn say(what: &str) {
    println!("{what}");
}

/// # Errors
/// The program is missing or failed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let status = command
        .status()
        .with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// # Errors
/// Cargo failed; it has said why.
pub fn cargo(args: &[&str]) -> Result<()> {
    run(cargo_command().args(args))
}

/// Cargo as a person would start it: what it told this program about the package `xtask` would make build scripts that look
/// at such variables (that of `ring`) run again, and all that depends on them be built again.
fn cargo_command() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Standard output of a program that must succeed.
///
/// # Errors
/// The program is missing or failed.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// # Errors
/// Cargo cannot read the workspace.
pub fn metadata() -> Result<serde_json::Value> {
    let text = output(cargo_command().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    Ok(serde_json::from_str(&text)?)
}

/// # Errors
/// Cargo cannot read the workspace.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(PathBuf::from(dir))
}

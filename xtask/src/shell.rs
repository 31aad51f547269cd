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
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(program).args(args).current_dir(root()))
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
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let text = output(
        Command::new(program)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(root()),
    )?;
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

//! Rules that no lint can check: who may depend on whom, file heads and sizes, documents that name what exists.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{metadata, output, root, say};

const FILE_LINES_MAX: usize = 800;

/// The tier of each crate: a crate may depend only on crates of lower tiers.
const TIERS: &[(&str, u8)] = &[
    ("net", 0),
    ("proto", 0),
    ("api", 0),
    ("metalbond", 0),
    ("dataplane", 1),
    ("dpdk", 2),
    ("ports", 3),
    ("apiserver", 2),
    ("controller", 2),
    ("dpservice", 4),
    ("core-controllers", 4),
    ("apinet", 3),
    ("apinetlet", 3),
    ("metalnetlet", 3),
    ("metalnet", 3),
    ("machine", 3),
    ("edge", 4),
    ("path", 5),
    ("lab", 5),
    ("testkit", 5),
    ("openkcm", 6),
    ("xtask", 6),
];

/// Crates that must reach no runtime, socket, clock or random source, not even through others.
///
/// With each, a library it may use although that reaches an impure one, because only its pure part is used: dhcproto's
/// option coding pulls in a DNS name type whose crate can also draw query ids.
const PURE: &[(&str, Option<&str>)] = &[
    ("net", None),
    ("dataplane", Some("dhcproto")),
    ("api", None),
];
const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "tonic",
    "kube-client",
    "kube-runtime",
    "nix",
    "socket2",
    "rand",
    "getrandom",
    "mio",
];
/// What may contain `unsafe`: the drivers, and the counting allocators that prove the packet path allocates nothing.
const UNSAFE: &[&str] = &[
    "crates/dpdk/",
    "crates/ports/",
    "crates/dataplane/benches/packet/main.rs",
    "crates/dataplane/tests/it/memory.rs",
];

/// # Errors
/// One line per finding.
pub fn tidy() -> Result<()> {
    let mut findings = Vec::new();
    let files = tracked()?;
    for file in files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "rs"))
    {
        source(file, &mut findings)?;
    }
    tiers(&mut findings)?;
    purity(&mut findings)?;
    documents(&mut findings)?;
    if findings.is_empty() {
        say(&format!("tidy: {} files, no findings", files.len()));
        return Ok(());
    }
    for finding in &findings {
        say(finding);
    }
    bail!("tidy: {} findings", findings.len())
}

fn tracked() -> Result<Vec<PathBuf>> {
    let listed = output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root()),
    )?;
    Ok(listed
        .lines()
        .map(PathBuf::from)
        .filter(|f| root().join(f).is_file())
        .collect())
}

fn source(file: &Path, findings: &mut Vec<String>) -> Result<()> {
    let text =
        std::fs::read_to_string(root().join(file)).with_context(|| file.display().to_string())?;
    let mut find = |what: &str| findings.push(format!("{}: {what}", file.display()));
    if !text.starts_with("//!") {
        find("does not open with a //! line that says what the file is");
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        find(&format!(
            "has {lines} lines; split it by responsibility (at most {FILE_LINES_MAX})"
        ));
    }
    // Assembled, so that this file does not find itself.
    let outside = ["..", "/shared"].concat();
    if text.contains(&outside) || text.contains(&["/work", "/"].concat()) {
        find("names a path outside the project");
    }
    let mark = ["TO", "DO"].concat();
    let unnamed = |l: &str| l.contains(&mark) && !l.contains(&format!("{mark}(#"));
    if text.lines().any(unnamed) || text.contains(&["FIX", "ME"].concat()) {
        find("has an open end without an issue number");
    }
    let blocks = ["unsafe", " {"].concat();
    if text.contains(&blocks) && !UNSAFE.iter().any(|u| file.starts_with(u)) {
        find("contains unsafe code outside the driver crates");
    }
    Ok(())
}

fn tiers(findings: &mut Vec<String>) -> Result<()> {
    let tier = |name: &str| TIERS.iter().find(|(n, _)| *n == name).map(|(_, t)| *t);
    let metadata = metadata()?;
    for package in metadata["packages"].as_array().context("no packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(own) = tier(name) else {
            findings.push(format!(
                "crate {name}: has no tier; add it to xtask/src/tidy.rs and ARCHITECTURE.md"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let development = dependency["kind"].as_str() == Some("dev");
            if let Some(theirs) = tier(to)
                && theirs >= own
                && !development
            {
                findings.push(format!(
                    "crate {name} (tier {own}) depends on {to} (tier {theirs}); arrows point down"
                ));
            }
        }
    }
    Ok(())
}

fn purity(findings: &mut Vec<String>) -> Result<()> {
    for (name, exception) in PURE {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(program);
        command.args([
            "tree",
            "--package",
            name,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ]);
        if let Some(exception) = exception {
            command.args(["--prune", exception]);
        }
        let tree = output(command.current_dir(root()))?;
        for line in tree.lines() {
            let dependency = line.split_whitespace().next().unwrap_or_default();
            if IMPURE.contains(&dependency) {
                findings.push(format!("crate {name} is pure but reaches {dependency}"));
            }
        }
    }
    findings.dedup();
    Ok(())
}

fn documents(findings: &mut Vec<String>) -> Result<()> {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap_or_default();
    for entry in std::fs::read_dir(root().join("crates"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !architecture.contains(&format!("`{name}`")) {
            findings.push(format!("ARCHITECTURE.md does not name the crate {name}"));
        }
    }
    for file in ["README.md", "docs/features.md", "LICENSE"] {
        if !root().join(file).is_file() {
            findings.push(format!("{file} is missing"));
        }
    }
    Ok(())
}

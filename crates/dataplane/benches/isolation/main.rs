//! Isolation: tenants with the same addresses on one host, and packets that try everything.
//!
//! ```text
//! cargo bench -p dataplane --bench isolation -- --packets 100000000
//! ```
//!
//! Random and spoofed frames from machines and from the fabric (forged hardware and IP addresses, underlay addresses of other tenants, nested
//! tunnels, neighbour and router advertisements, DHCP servers, fragments, mutilated headers), while interfaces are deleted and come back on each
//! other's ports. Everything that leaves is held to the policy by [`judge`], which knows the configuration and nothing of the engine.

mod frames;
mod judge;
mod region;

use region::Region;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1)?.replace('_', "").parse::<u64>().ok()
    };
    let packets = value("--packets").unwrap_or(10_000_000);
    let seed = value("--seed").unwrap_or(1);
    match Region::new(seed).and_then(|mut region| region.run(packets)) {
        Ok(report) => {
            say(&report.to_string());
            if report.violations.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            say(&format!("isolation: cannot configure: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the output of the program")]
fn say(line: &str) {
    println!("{line}");
}

//! `openkcm get path` in a live region: what it says is what packets do.

use std::process::{Command, Output};

use serde_json::Value;

use crate::{Cleanup, alone, openkcm, succeed, text};

const LAB: &str = "it-path";
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/services.yaml");

fn get_path(arguments: &[&str]) -> Output {
    let program = openkcm().get_program().to_owned();
    let mut command = Command::new(program);
    command.args(["get", "path", "--lab", LAB]).args(arguments);
    command.output().unwrap()
}

/// Verdict, summary and exit code.
fn told(arguments: &[&str]) -> (String, String, i32) {
    let output = get_path(&[arguments, &["-o", "json"]].concat());
    let parsed: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{arguments:?}: {}", text(&output)));
    let path = &parsed["paths"][0];
    let word = |field: &str| path[field].as_str().unwrap().to_owned();
    (
        word("verdict"),
        word("summary"),
        output.status.code().unwrap(),
    )
}

fn pings(from: &str, to: &str) -> bool {
    // Until the first answer, or for three seconds: routes may be a moment behind the conditions.
    let ping = ["ping", "-c", "1", "-i", "0.2", "-w", "3", to];
    let mut command = openkcm();
    command.args(["exec", "--name", LAB, from, "--"]).args(ping);
    command.output().unwrap().status.success()
}

fn address_of(kubeconfig: &str, kind: &str, name: &str) -> String {
    let path = if kind == "virtualip" {
        "jsonpath={.status.ip}"
    } else {
        "jsonpath={.status.ips[0]}"
    };
    kubectl(kubeconfig, &["get", kind, name, "-o", path])
}

fn kubectl(kubeconfig: &str, arguments: &[&str]) -> String {
    let output = Command::new("kubectl")
        .args(["--kubeconfig", kubeconfig])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn get_path_says_what_packets_do() {
    let _alone = alone();
    let _cleanup = Cleanup(LAB);
    succeed(&["up", "--name", LAB]);
    let kubeconfig = succeed(&["kubeconfig", "--name", LAB]).trim().to_owned();
    kubectl(&kubeconfig, &["apply", "-f", EXAMPLE]);
    let kinds = "networks,networkinterfaces,virtualips,loadbalancers,natgateways,networkpolicies";
    let ready = [
        "wait",
        "--for=condition=Ready",
        kinds,
        "--all",
        "--timeout=60s",
    ];
    kubectl(&kubeconfig, &ready);
    let web = address_of(&kubeconfig, "networkinterface", "web-2-front");
    let vip = address_of(&kubeconfig, "virtualip", "bastion");
    // From, end of the path, address to ping.
    let pairs = [
        ("web-1", "web-2", web.as_str()),
        ("web-1", "bastion", "10.50.3.1"),
        ("clerk", "web-2", &web),
        ("web-1", "internet", "203.0.113.1"),
        ("bastion", "internet", "203.0.113.1"),
        ("internet", "vip/bastion", &vip),
        ("web-2", "vip/bastion", &vip),
        ("web-1", "db", "10.50.2.1"),
        ("db", "web-2", &web),
        ("clerk", "bastion", "10.50.3.1"),
        ("bastion", "clerk", "10.60.0.1"),
        ("clerk", "internet", "203.0.113.1"),
    ];
    for (from, end, address) in pairs {
        let real = pings(from, address);
        let (verdict, summary, code) = told(&[from, end]);
        assert_eq!(
            (verdict == "arrives", code == 0),
            (real, real),
            "{from} to {end}: {summary}"
        );
    }
    let (_, summary, _) = told(&["bastion", "db", "--port", "5432"]);
    assert_eq!(
        summary,
        "does not arrive: hv2: policy db denies incoming tcp 5432 at default/db-main"
    );
    let (verdict, _, code) = told(&["web-1", "db", "--port", "5432"]);
    assert_eq!((verdict.as_str(), code), ("arrives", 0));
    let (verdict, _, code) = told(&["internet", "lb/web"]);
    assert_eq!((verdict.as_str(), code), ("arrives", 0));
    assert_eq!(told(&["web-1", "nobody"]).2, 2);
}

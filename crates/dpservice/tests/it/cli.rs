//! The client against a real server: its four output formats, aliases and exit codes.

use crate::harness::Server;
use expect_test::{Expect, expect};
use std::process::Command;

/// Runs the client and compares standard output and exit code.
async fn check(server: &Server, arguments: &str, code: i32, expected: Expect) {
    let address = server.address.to_string();
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_dpservice"))
            .arg("cli")
            .args(["--address", &address])
            .args(arguments)
            .output()
            .expect("run client")
    })
    .await
    .unwrap();
    expected.assert_eq(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(output.status.code(), Some(code));
}

#[tokio::test]
async fn objects_in_all_formats() {
    let server = Server::start().await;
    check(
        &server,
        "get init",
        1,
        expect!["grpc error: not initialized\n"],
    )
    .await;
    server.initialized().await;
    check(&server, "create interface --id vm1 --vni 100 --ipv4 10.0.0.1 --ipv6 fd00::1 --device net_tap2 --hostname h --total-meter-rate 9",
        0, expect!["interface/vm1 created\n"]).await;
    check(&server, "add iface --id vm1", 1, expect![""]).await;
    check(&server, "add iface --ID vm2 --VNI=100 --ipv4 10.0.0.2 --device net_tap3 -o table", 0, expect![[r#"
        ID   VNI  Device    IPv4      IPv6  UnderlayRoute       TotalTx  PublicTx  Hostname  VirtualFunction
        vm2  100  net_tap3  10.0.0.2  ::    fc00:1::d000:1:0:2  0        0                   mem1
    "#]]).await;
    check(
        &server,
        "add iface --id vm2 --vni 100 --ipv4 10.0.0.2 --device net_tap3",
        2,
        expect!["interface/vm2 server error: 202, ALREADY_EXISTS\n"],
    )
    .await;
    check(
        &server,
        "add iface --id vm2 --vni 100 --ipv4 10.0.0.2 --device net_tap3 -o json",
        2,
        expect![[r#"
        {"kind":"Error","spec":{"source":"server"},"status":{"code":202,"message":"ALREADY_EXISTS"}}
    "#]],
    )
    .await;
    check(
        &server,
        "list ifaces --sort-by device -o name",
        0,
        expect!["interface/vm1\ninterface/vm2\n"],
    )
    .await;
    check(&server, "get interface --id vm1 -o json", 0, expect![[r#"
        {"kind":"Interface","metadata":{"id":"vm1"},"spec":{"vni":100,"device":"net_tap2","primary_ipv4":"10.0.0.1","primary_ipv6":"fd00::1","underlay_route":"fc00:1::d000:1:0:1","metering":{"total_rate":9},"hostname":"h"},"status":{"code":0,"message":"Success"}}
    "#]]).await;
    check(
        &server,
        "create prfx --prefix 10.5.0.0/24 --interface-id vm1 -o yaml",
        0,
        expect![[r#"
        kind: Prefix
        metadata:
          interface_id: vm1
        spec:
          prefix: 10.5.0.0/24
          underlay_route: fc00:1::d000:1:0:3
        status:
          code: 0
          message: Success
    "#]],
    )
    .await;
    let route = "create rt --vni 100 --next-hop-vni 100 --next-hop-ip fc00:2::1 --prefix";
    check(
        &server,
        &format!("{route} 10.1.0.0/16"),
        0,
        expect!["route/10.1.0.0/16 created\n"],
    )
    .await;
    check(
        &server,
        &format!("{route} 0.0.0.0/0"),
        0,
        expect!["route/0.0.0.0/0 created\n"],
    )
    .await;
    check(
        &server,
        &format!("{route} fd01::/64"),
        0,
        expect!["route/fd01::/64 created\n"],
    )
    .await;
    check(
        &server,
        "list routes --vni 100",
        0,
        expect![[r#"
        Prefix       VNI  NextHopVNI  NextHopIP
        0.0.0.0/0    100  100         fc00:2::1
        10.1.0.0/16  100  100         fc00:2::1
        fd01::/64    100  100         fc00:2::1
    "#]],
    )
    .await;
    check(
        &server,
        "list routes --vni 7",
        2,
        expect!["server error: 206, NO_VNI\n"],
    )
    .await;
    check(&server, "list routes --sort-by weight", 1,
        expect!["client error: no column \"weight\" to sort by; there are Prefix, VNI, NextHopVNI, NextHopIP\n"]).await;
    check(
        &server,
        "get vni --vni 100 --vni-type 0",
        0,
        expect!["VNI  VniType  inUse\n100  IPv4     true\n"],
    )
    .await;
    check(
        &server,
        "list prefixes",
        0,
        expect![[r#"
        VNI  Prefix       UnderlayRoute       InterfaceID
        100  10.5.0.0/24  fc00:1::d000:1:0:3  vm1
    "#]],
    )
    .await;
    check(
        &server,
        "reset vni --vni 100",
        0,
        expect!["vni/100 reset\n"],
    )
    .await;
    check(
        &server,
        "del prefix --prefix 10.5.0.0/24 --interface-id vm1",
        0,
        expect!["prefix/10.5.0.0/24 deleted\n"],
    )
    .await;
    check(
        &server,
        "del route --vni 100 --prefix 10.1.0.0/16",
        2,
        expect!["route/10.1.0.0/16 server error: 302, ROUTE_NOT_FOUND\n"],
    )
    .await;
    check(
        &server,
        "del iface --id vm1",
        0,
        expect!["interface/vm1 deleted\n"],
    )
    .await;
}

#[tokio::test]
async fn objects_from_files() {
    let server = Server::start().await;
    server.initialized().await;
    let folder = tempfile::tempdir().unwrap();
    let yaml = "---\nkind: Interface\nmetadata: {id: vm1}\nspec: {vni: 100, device: net_tap2, primary_ipv4: 10.0.0.1}\n\
                ---\nkind: Route\nmetadata: {vni: 100}\nspec:\n  prefix: 10.1.0.0/16\n  next_hop: {vni: 100, address: 'fc00:2::1'}\n";
    let json =
        r#"{"kind":"Prefix","metadata":{"interface_id":"vm1"},"spec":{"prefix":"10.5.0.0/24"}}"#;
    std::fs::write(folder.path().join("a.yaml"), yaml).unwrap();
    std::fs::write(folder.path().join("b.json"), json).unwrap();
    let path = folder.path().to_str().unwrap();
    check(
        &server,
        &format!("create -f {path}"),
        0,
        expect!["interface/vm1 created\nroute/10.1.0.0/16 created\nprefix/10.5.0.0/24 created\n"],
    )
    .await;
    check(
        &server,
        &format!("create -f {path}"),
        2,
        expect![[r#"
        interface/vm1 server error: 202, ALREADY_EXISTS
        route/10.1.0.0/16 server error: 301, ROUTE_EXISTS
        prefix/10.5.0.0/24 server error: 301, ROUTE_EXISTS
    "#]],
    )
    .await;
    check(
        &server,
        &format!("delete -f {path}"),
        0,
        expect!["prefix/10.5.0.0/24 deleted\nroute/10.1.0.0/16 deleted\ninterface/vm1 deleted\n"],
    )
    .await;
}

#[test]
fn completion_and_lack_of_a_server() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_dpservice"))
            .arg("cli")
            .args(arguments)
            .output()
            .expect("run client");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (code, text) = run(&["completion", "bash"]);
    assert!(
        code == Some(0) && text.contains("complete -F _dpservice__cli"),
        "no completion"
    );
    // Port 9 (discard) of this host: nobody listens.
    let (code, text) = run(&["--address", "[::1]:9", "list", "interfaces", "-o", "json"]);
    assert_eq!(code, Some(1));
    assert!(
        text.starts_with(r#"{"kind":"Error","spec":{"source":"client"},"status":{"code":1000,"#),
        "{text}"
    );
}

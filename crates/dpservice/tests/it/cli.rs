//! The client against a real server: its four output formats, aliases and exit codes.

use crate::harness::Server;
use expect_test::{Expect, expect};
use std::process::Command;

/// Runs the client and compares standard output and exit code.
pub async fn check(server: &Server, arguments: &str, code: i32, expected: Expect) {
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
        expect!["route/10.1.0.0/16-100 created\n"],
    )
    .await;
    check(
        &server,
        &format!("{route} 0.0.0.0/0"),
        0,
        expect!["route/0.0.0.0/0-100 created\n"],
    )
    .await;
    check(
        &server,
        &format!("{route} fd01::/64"),
        0,
        expect!["route/fd01::/64-100 created\n"],
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
        expect!["route/10.1.0.0/16-0 server error: 302, ROUTE_NOT_FOUND\n"],
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
async fn services_in_all_formats() {
    let server = Server::start().await;
    server.initialized().await;
    let iface = "add iface --vni 100 --id";
    check(
        &server,
        &format!("{iface} vm1 --ipv4 10.100.1.1 --device net_tap2"),
        0,
        expect![[r#"
            interface/vm1 created
        "#]],
    )
    .await;
    check(
        &server,
        &format!("{iface} vm2 --ipv4 10.100.1.2 --device net_tap3"),
        0,
        expect![[r#"
            interface/vm2 created
        "#]],
    )
    .await;
    for (arguments, code, expected) in [
        (
            "add vip --vip 1.2.3.4 --interface-id vm1",
            0,
            expect![[r#"
            virtualip/on interface: vm1 created
        "#]],
        ),
        (
            "add virtualip --vip 1.2.3.4 --interface-id vm2",
            2,
            expect![[r#"
                virtualip/on interface: vm2 server error: 323, DNAT_EXISTS
            "#]],
        ),
        (
            "get vip --interface-id vm1 -o table",
            0,
            expect![[r#"
            InterfaceID  VirtualIP  UnderlayRoute
            vm1          1.2.3.4    fc00:1::d000:1:0:3
        "#]],
        ),
        (
            "get virtualip --interface-id vm1 -o json",
            0,
            expect![[r#"
            {"kind":"VirtualIP","metadata":{"interface_id":"vm1"},"spec":{"vip_ip":"1.2.3.4","underlay_route":"fc00:1::d000:1:0:3"},"status":{"code":0,"message":"Success"}}
        "#]],
        ),
        (
            "add nat --interface-id vm1 --nat-ip 9.9.9.9 --minport 100 --maxport 200",
            0,
            expect![[r#"
                nat/vm1 created
            "#]],
        ),
        (
            "create translation --interface-id vm2 --nat-ip 9.9.9.9 --minport 200 --maxport 300 -o table",
            0,
            expect![[r#"
                InterfaceID  NatIP    MinPort  MaxPort  UnderlayRoute
                vm2          9.9.9.9  200      300      fc00:1::d000:1:0:6
            "#]],
        ),
        (
            "get nat --interface-id vm1",
            0,
            expect![[r#"
            InterfaceID  NatIP    MinPort  MaxPort  UnderlayRoute
            vm1          9.9.9.9  100      200      fc00:1::d000:1:0:5
        "#]],
        ),
        (
            "get nat --interface-id vm1 -o json",
            0,
            expect![[r#"
            {"kind":"Nat","metadata":{"interface_id":"vm1"},"spec":{"nat_ip":"9.9.9.9","min_port":100,"max_port":200,"underlay_route":"fc00:1::d000:1:0:5","vni":0},"status":{"code":0,"message":"Success"}}
        "#]],
        ),
        (
            "add nnat --nat-ip 9.9.9.9 --vni 100 --minport 500 --maxport 520 --underlayroute fc00:2::1",
            0,
            expect![[r#"
                neighbornat/9.9.9.9 created
            "#]],
        ),
        (
            "list nats",
            0,
            expect![[r#"
            VNI  IP          MinPort  MaxPort  UnderlayRoute  NatIP    NatType
            100  10.100.1.2  200      300                     9.9.9.9  Local
            100  10.100.1.1  100      200                     9.9.9.9  Local
            100              500      520      fc00:2::1      9.9.9.9  Neighbor
        "#]],
        ),
        (
            "list nats --nat-type 2 -o json",
            0,
            expect![[r#"
            {"kind":"NatList","metadata":{"nat_ip":"0.0.0.0","nat_type":"neighbor"},"status":{"code":0,"message":"Success"},"items":[{"kind":"Nat","metadata":{},"spec":{"min_port":500,"max_port":520,"underlay_route":"fc00:2::1","vni":100,"actual_nat_ip":"9.9.9.9"},"status":{"code":0,"message":"Success"}}]}
        "#]],
        ),
        ("list nat --nat-ip 8.8.8.8 --nat-type local", 0, expect![""]),
        (
            "get interface --id vm1 -w",
            0,
            expect![[r#"
            ID   VNI  Device    IPv4        IPv6  UnderlayRoute       TotalTx  PublicTx  Hostname  Nat                 VirtualIP
            vm1  100  net_tap2  10.100.1.1  ::    fc00:1::d000:1:0:1  0        0                   9.9.9.9 <100, 200>  1.2.3.4
        "#]],
        ),
        (
            "list interfaces -w -o json",
            0,
            expect![[r#"
            {"kind":"InterfaceList","metadata":{},"status":{"code":0,"message":"Success"},"items":[{"kind":"Interface","metadata":{"id":"vm1"},"spec":{"vni":100,"device":"net_tap2","primary_ipv4":"10.100.1.1","primary_ipv6":"::","underlay_route":"fc00:1::d000:1:0:1","metering":{},"nat":{"kind":"Nat","metadata":{"interface_id":"vm1"},"spec":{"nat_ip":"9.9.9.9","min_port":100,"max_port":200,"underlay_route":"fc00:1::d000:1:0:5","vni":0},"status":{"code":0,"message":"Success"}},"vip":{"kind":"VirtualIP","metadata":{"interface_id":"vm1"},"spec":{"vip_ip":"1.2.3.4","underlay_route":"fc00:1::d000:1:0:3"},"status":{"code":0,"message":"Success"}}},"status":{"code":0,"message":"Success"}},{"kind":"Interface","metadata":{"id":"vm2"},"spec":{"vni":100,"device":"net_tap3","primary_ipv4":"10.100.1.2","primary_ipv6":"::","underlay_route":"fc00:1::d000:1:0:2","metering":{},"nat":{"kind":"Nat","metadata":{"interface_id":"vm2"},"spec":{"nat_ip":"9.9.9.9","min_port":200,"max_port":300,"underlay_route":"fc00:1::d000:1:0:6","vni":0},"status":{"code":0,"message":"Success"}}},"status":{"code":0,"message":"Success"}}]}
        "#]],
        ),
        (
            "add lb --id lb1 --vni 100 --vip 5.6.7.8 --lbports TCP/443,UDP/53",
            0,
            expect![[r#"
                loadbalancer/lb1 created
            "#]],
        ),
        (
            "add lb --id lb2 --vni 100 --vip 5.6.7.8 --lbports TCP/443,SCTP/53",
            1,
            expect![""],
        ),
        (
            "get lb --id lb1",
            0,
            expect![[r#"
            ID   VNI  LbVipIP  Lbports         UnderlayRoute
            lb1  100  5.6.7.8  TCP/443,UDP/53  fc00:1::d000:1:0:7
        "#]],
        ),
        (
            "list loadbalancers -o json",
            0,
            expect![[r#"
            {"kind":"LoadBalancerList","metadata":{},"status":{"code":0,"message":"Success"},"items":[{"kind":"LoadBalancer","metadata":{"id":"lb1"},"spec":{"vni":100,"loadbalanced_ip":"5.6.7.8","loadbalanced_ports":[{"protocol":6,"port":443},{"protocol":17,"port":53}],"underlay_route":"fc00:1::d000:1:0:7"},"status":{"code":0,"message":"Success"}}]}
        "#]],
        ),
        (
            "add lbtarget --target-ip fc00:2::2 --lb-id lb1",
            0,
            expect![[r#"
                loadbalancertarget/on loadbalancer: lb1 created
            "#]],
        ),
        (
            "add lbtrgt --target-ip fc00:2::1 --lb-id lb1",
            0,
            expect![[r#"
                loadbalancertarget/on loadbalancer: lb1 created
            "#]],
        ),
        (
            "list lbtargets --lb-id lb1",
            0,
            expect![[r#"
            IpVersion  Address
            IPV6       fc00:2::1
            IPV6       fc00:2::2
        "#]],
        ),
        (
            "get lbtarget -o json",
            0,
            expect![[r#"
            {"kind":"LoadBalancerTargetList","metadata":{"loadbalancer_id":""},"status":{"code":0,"message":"Success"},"items":[{"kind":"LoadBalancerTarget","metadata":{"loadbalancer_id":"lb1"},"spec":{"target_ip":"fc00:2::1"},"status":{"code":0,"message":"Success"}},{"kind":"LoadBalancerTarget","metadata":{"loadbalancer_id":"lb1"},"spec":{"target_ip":"fc00:2::2"},"status":{"code":0,"message":"Success"}}]}
        "#]],
        ),
        (
            "add lbprefix --prefix 5.6.7.8/32 --interface-id vm1",
            0,
            expect![[r#"
                loadbalancerprefix/5.6.7.8/32 created
            "#]],
        ),
        (
            "list lbprefixes",
            0,
            expect![[r#"
            VNI  Prefix      UnderlayRoute       InterfaceID
            100  5.6.7.8/32  fc00:1::d000:1:0:8  vm1
        "#]],
        ),
        (
            "get lbprfx --interface-id vm1 -o json",
            0,
            expect![[r#"
            {"kind":"PrefixList","metadata":{"interface_id":"vm1"},"status":{"code":0,"message":"Success"},"items":[{"kind":"LoadBalancerPrefix","metadata":{"interface_id":"vm1"},"spec":{"prefix":"5.6.7.8/32","underlay_route":"fc00:1::d000:1:0:8"},"status":{"code":0,"message":"Success"}}]}
        "#]],
        ),
        (
            "add fwrule --interface-id vm1 --rule-id r1 --direction ingress --action allow --src 0.0.0.0/0 --dst 10.100.1.1/32 --protocol tcp --dst-port-min 22 --dst-port-max 22",
            0,
            expect![[r#"
                firewallrule/vm1/r1 created
            "#]],
        ),
        (
            "add fw-rule --interface-id vm1 --rule-id r0 --direction 1 --action deny --src ::/0 --dst ::/0 --priority 7",
            0,
            expect![[r#"
                firewallrule/vm1/r0 created
            "#]],
        ),
        (
            "add fwrule --interface-id vm1 --rule-id r0 --direction sideways --action deny --src ::/0 --dst ::/0",
            1,
            expect![""],
        ),
        (
            "list firewallrules --interface-id vm1",
            0,
            expect![[r#"
            InterfaceID  RuleID  Direction  Src        Dst            Action  Protocol                                                                       Priority
            vm1          r0      Egress     ::/0       ::/0           Drop    Any                                                                            7
            vm1          r1      Ingress    0.0.0.0/0  10.100.1.1/32  Accept  tcp:{src_port_lower:-1 src_port_upper:-1 dst_port_lower:22 dst_port_upper:22}  1000
        "#]],
        ),
        (
            "get fwrule --interface-id vm1 --rule-id r1 -o json",
            0,
            expect![[r#"
                {"kind":"FirewallRule","metadata":{"interface_id":"vm1"},"spec":{"id":"r1","direction":"Ingress","action":"Accept","priority":1000,"source_prefix":"0.0.0.0/0","destination_prefix":"10.100.1.1/32","protocol_filter":{"Filter":{"Tcp":{"src_port_lower":-1,"src_port_upper":-1,"dst_port_lower":22,"dst_port_upper":22}}}},"status":{"code":0,"message":"Success"}}
            "#]],
        ),
        (
            "get fwrule --interface-id vm1 --rule-id r0 -o yaml",
            0,
            expect![[r#"
                kind: FirewallRule
                metadata:
                  interface_id: vm1
                spec:
                  id: r0
                  direction: Egress
                  action: Drop
                  priority: 7
                  source_prefix: "::/0"
                  destination_prefix: "::/0"
                  protocol_filter:
                    Filter: null
                status:
                  code: 0
                  message: Success
            "#]],
        ),
        (
            "capture status",
            0,
            expect![[r#"
            Operation Status  SinkNodeIP  UdpSrcPort  UdpDstPort  PF Interfaces  VF Interfaces
            NOT_ACTIVE                    0           0
        "#]],
        ),
        (
            "capture start --sink-node-ip fc00:9::1 --udp-src-port 100 --udp-dst-port 200 --pf 0 --vf vm1,vm2",
            0,
            expect![[r#"
                SinkNodeIP  UdpSrcPort  UdpDstPort  PF Interfaces  VF Interfaces
                fc00:9::1   100         200         0              vm1,vm2
            "#]],
        ),
        (
            "capture status -o json",
            0,
            expect![[r#"
            {"kind":"CaptureStatus","metadata":{},"spec":{"operation_status":true,"capture_config":{"sink_node_ipv6":"fc00:9::1","udp_src_port":100,"udp_dst_port":200},"interfaces":[{"interface_type":"pf","interface_info":"0"},{"interface_type":"vf","interface_info":"vm1"},{"interface_type":"vf","interface_info":"vm2"}]},"status":{"code":0,"message":"Success"}}
        "#]],
        ),
        (
            "capture stop",
            0,
            expect![[r#"
            Stopped Interface
            3
        "#]],
        ),
        (
            "capture stop",
            2,
            expect![[r#"
            server error: 211, NOT_ACTIVE
        "#]],
        ),
        (
            "del fwrule --interface-id vm1 --rule-id r1",
            0,
            expect![[r#"
            firewallrule/vm1/r1 deleted
        "#]],
        ),
        (
            "del fwrule --interface-id vm1 --rule-id r1",
            2,
            expect![[r#"
            firewallrule/vm1/r1 server error: 201, NOT_FOUND
        "#]],
        ),
        (
            "del lbprefix --prefix 5.6.7.8/32 --interface-id vm1",
            0,
            expect![[r#"
                loadbalancerprefix/5.6.7.8/32 deleted
            "#]],
        ),
        (
            "del lbtarget --target-ip fc00:2::2 --lb-id lb1",
            0,
            expect![[r#"
                loadbalancertarget/on loadbalancer: lb1 deleted
            "#]],
        ),
        (
            "del lb --id lb1",
            0,
            expect![[r#"
            loadbalancer/lb1 deleted
        "#]],
        ),
        (
            "del nnat --nat-ip 9.9.9.9 --vni 100 --minport 500 --maxport 520",
            0,
            expect![[r#"
                neighbornat/9.9.9.9 deleted
            "#]],
        ),
        (
            "del nat --interface-id vm1",
            0,
            expect![[r#"
            nat/vm1 deleted
        "#]],
        ),
        (
            "del vip --interface-id vm1",
            0,
            expect![[r#"
            virtualip/on interface: vm1 deleted
        "#]],
        ),
    ] {
        check(&server, arguments, code, expected).await;
    }
}

#[tokio::test]
async fn services_from_files() {
    let server = Server::start().await;
    server.initialized().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.yaml");
    let yaml = r#"
kind: Interface
metadata: {id: vm1}
spec: {vni: 100, device: net_tap2, primary_ipv4: 10.0.0.1}
---
kind: VirtualIP
metadata: {interface_id: vm1}
spec: {vip_ip: 1.2.3.4}
---
kind: Nat
metadata: {interface_id: vm1}
spec: {nat_ip: 9.9.9.9, min_port: 100, max_port: 200}
---
kind: NeighborNat
metadata: {nat_ip: 9.9.9.9}
spec: {vni: 100, min_port: 500, max_port: 600, underlay_route: 'fc00:2::1'}
---
kind: LoadBalancer
metadata: {id: lb}
spec: {vni: 100, loadbalanced_ip: 5.6.7.8, loadbalanced_ports: [{protocol: 6, port: 443}]}
---
kind: LoadBalancerTarget
metadata: {loadbalancer_id: lb}
spec: {target_ip: 'fc00:2::2'}
---
kind: LoadBalancerPrefix
metadata: {interface_id: vm1}
spec: {prefix: 5.6.7.8/32}
---
kind: FirewallRule
metadata: {interface_id: vm1}
spec:
  id: r1
  direction: Ingress
  action: Accept
  priority: 5
  source_prefix: 0.0.0.0/0
  destination_prefix: 0.0.0.0/0
  protocol_filter: {Filter: {Udp: {src_port_lower: -1, src_port_upper: -1, dst_port_lower: 53, dst_port_upper: 53}}}
"#;
    std::fs::write(&path, yaml).unwrap();
    let path = path.to_str().unwrap();
    check(
        &server,
        &format!("create -f {path}"),
        0,
        expect![[r#"
        interface/vm1 created
        virtualip/on interface: vm1 created
        nat/vm1 created
        neighbornat/9.9.9.9 created
        loadbalancer/lb created
        loadbalancertarget/on loadbalancer: lb created
        loadbalancerprefix/5.6.7.8/32 created
        firewallrule/vm1/r1 created
    "#]],
    )
    .await;
    check(&server, "list fwrules --interface-id vm1", 0, expect![[r#"
        InterfaceID  RuleID  Direction  Src        Dst        Action  Protocol                                                                       Priority
        vm1          r1      Ingress    0.0.0.0/0  0.0.0.0/0  Accept  udp:{src_port_lower:-1 src_port_upper:-1 dst_port_lower:53 dst_port_upper:53}  5
    "#]]).await;
    check(
        &server,
        &format!("delete -f {path}"),
        0,
        expect![[r#"
        firewallrule/vm1/r1 deleted
        loadbalancerprefix/5.6.7.8/32 deleted
        loadbalancertarget/on loadbalancer: lb deleted
        loadbalancer/lb deleted
        neighbornat/9.9.9.9 deleted
        nat/vm1 deleted
        virtualip/on interface: vm1 deleted
        interface/vm1 deleted
    "#]],
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
        expect![
            "interface/vm1 created\nroute/10.1.0.0/16-100 created\nprefix/10.5.0.0/24 created\n"
        ],
    )
    .await;
    check(
        &server,
        &format!("create -f {path}"),
        2,
        expect![[r#"
        interface/vm1 server error: 202, ALREADY_EXISTS
        route/10.1.0.0/16-100 server error: 301, ROUTE_EXISTS
        prefix/10.5.0.0/24 server error: 301, ROUTE_EXISTS
    "#]],
    )
    .await;
    check(
        &server,
        &format!("delete -f {path}"),
        0,
        expect!["prefix/10.5.0.0/24 deleted\nroute/10.1.0.0/16-0 deleted\ninterface/vm1 deleted\n"],
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
    // A device that takes nothing: the program ends with its own code, not by a panic.
    let full = std::fs::File::create("/dev/full").expect("/dev/full");
    let status = Command::new(env!("CARGO_BIN_EXE_dpservice-cli"))
        .args(["completion", "bash"])
        .stdout(full)
        .status()
        .expect("run client");
    assert_eq!(status.code(), Some(1));
    for flag in ["-v", "--version", "--Version", "-V"] {
        let (code, text) = run(&[flag]);
        let version = format!("dpservice-cli {}\n", dpservice::VERSION);
        assert_eq!((code, text), (Some(0), version), "{flag}");
    }
    // Port 9 (discard) of this host: nobody listens.
    let (code, text) = run(&["--address", "[::1]:9", "list", "interfaces", "-o", "json"]);
    assert_eq!(code, Some(1));
    assert!(
        text.starts_with(r#"{"kind":"Error","spec":{"source":"client"},"status":{"code":1000,"#),
        "{text}"
    );
}

//! Two hosts, a router and machines in network namespaces: real processes, real kernel, real DHCP client.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

/// Puts the calling thread into a new network namespace.
pub fn enter_private_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("cannot make a network namespace: run the tests as root (CAP_SYS_ADMIN)");
}

/// Runs iproute2's `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    let status = status.expect("cannot run `ip`: install iproute2");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// A network namespace that ends with this value.
pub struct Namespace(Option<Process>);

impl Namespace {
    /// The calling thread's own one.
    pub fn own() -> Namespace {
        Namespace(None)
    }

    fn new() -> Namespace {
        let process = Process::spawn(Command::new("unshare").args(["--net", "sleep", "600"]));
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let theirs = format!("/proc/{}/ns/net", process.id());
        let deadline = Instant::now() + DEADLINE;
        while std::fs::read_link(&theirs).is_ok_and(|theirs| theirs == own) {
            assert!(Instant::now() < deadline, "no namespace");
            std::thread::yield_now();
        }
        let namespace = Namespace(Some(process));
        namespace.ip("link set lo up");
        // There is nobody to collide with. An address is still tentative until the kernel's worker has looked at it, and a route
        // cannot name it as source before: addresses that are used at once say `nodad` themselves.
        namespace.run(
            "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.dad_transmits=0",
        );
        namespace
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().map_or_else(std::process::id, Process::id)
    }

    fn command(&self, command: &str) -> Command {
        let mut words = command.split_whitespace();
        if self.0.is_none() {
            let mut own = Command::new(words.next().expect("a program"));
            own.args(words);
            return own;
        }
        let mut inside = Command::new("nsenter");
        inside
            .args(["-t", &self.pid().to_string(), "-n"])
            .args(words);
        inside
    }

    fn try_run(&self, command: &str) -> Result<String, String> {
        let output = self
            .command(command)
            .output()
            .expect("cannot run nsenter: install util-linux");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{command}: {}\n{text}{error}", output.status))
    }

    pub fn run(&self, command: &str) -> String {
        self.try_run(command)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn ip(&self, arguments: &str) {
        self.run(&format!("ip {arguments}"));
    }

    /// Repeats a command until it succeeds.
    pub fn eventually(&self, command: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.try_run(command) {
                Ok(text) => return text,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }
}

/// A child that dies with the calling thread at the latest.
pub struct Process(Child);

impl Process {
    fn spawn(command: &mut Command) -> Process {
        let mut guarded = Command::new("setpriv");
        guarded
            .args(["--pdeathsig", "KILL"])
            .arg(command.get_program())
            .args(command.get_args());
        guarded.stdout(Stdio::null());
        Process(
            guarded
                .spawn()
                .expect("cannot run setpriv: install util-linux"),
        )
    }

    /// dpservice with one uplink `pf0` in a namespace.
    pub fn dpservice(namespace: Option<&Namespace>, address: &str, more: &[&str]) -> Process {
        let line = format!(
            "{} --pf0 pf0 --ipv6 {address} --enable-ipv6-overlay --tap-count 8 {}",
            env!("CARGO_BIN_EXE_dpservice"),
            more.join(" ")
        );
        match namespace {
            Some(namespace) => Process::spawn(&mut namespace.command(&line)),
            None => Process::spawn(&mut Namespace::own().command(&line)),
        }
    }

    /// Any command line in a namespace.
    #[cfg(feature = "dpdk")]
    pub fn start(namespace: &Namespace, line: &str) -> Process {
        Process::spawn(&mut namespace.command(line))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// `kill -9`, and waits.
    pub fn kill(mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }

    /// `kill -TERM`, and waits.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill");
        assert!(sent.success());
        self.0.wait().expect("wait")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended ones cannot be killed: fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host with its dpservice.
struct Host {
    namespace: Namespace,
    service: Option<Process>,
    number: u8,
}

/// Two hosts joined by a router that forwards the underlay.
struct Fabric {
    _router: Namespace,
    hosts: [Host; 2],
}

impl Fabric {
    fn new() -> Fabric {
        let router = Namespace::new();
        router.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
        let hosts = [1, 2].map(|number| {
            let namespace = Namespace::new();
            let (host_pid, router_pid) = (namespace.pid(), router.pid());
            ip(&format!(
                "link add pf0 netns {host_pid} mtu 1560 type veth peer name host{number} netns {router_pid} mtu 1560"
            ));
            namespace.ip("link set pf0 up");
            router.ip(&format!("link set host{number} up"));
            router.ip(&format!("address add fe80::1/64 dev host{number} nodad"));
            namespace.ip(&format!("address add fc00:{number}::1/128 dev lo nodad"));
            namespace.ip("address add fe80::2/64 dev pf0 nodad");
            namespace.ip(&format!("route add default via fe80::1 dev pf0 src fc00:{number}::1"));
            router.ip(&format!("route add fc00:{number}::/64 via fe80::2 dev host{number}"));
            let mut host = Host { namespace, service: None, number };
            host.start();
            host
        });
        Fabric {
            _router: router,
            hosts,
        }
    }
}

impl Host {
    /// Starts and initializes dpservice.
    fn start(&mut self) {
        let address = format!("fc00:{}::1", self.number);
        self.service = Some(Process::dpservice(
            Some(&self.namespace),
            &address,
            &["--log-level", "warn"],
        ));
        self.namespace.eventually(&self.cli("init"));
    }

    fn cli(&self, command: &str) -> String {
        format!("{} cli {command}", env!("CARGO_BIN_EXE_dpservice"))
    }

    /// Attaches a machine and returns its underlay address.
    fn attach(&self, machine: &Machine, index: u16) -> String {
        let Machine {
            id,
            vni,
            ipv4,
            ipv6,
            ..
        } = machine;
        let device = index + 2;
        let reply = self.namespace.run(&self.cli(&format!(
            "create interface --id {id} --vni {vni} --ipv4 {ipv4} --ipv6 {ipv6} --device net_tap{device} -o json"
        )));
        let pid = machine.namespace.pid();
        self.namespace
            .ip(&format!("link set dtapvf_{index} netns {pid} name eth0"));
        machine.namespace.ip("link set eth0 up");
        let (_, rest) = reply
            .split_once("\"underlay_route\":\"")
            .expect("underlay route");
        rest.split('"').next().expect("closing quote").to_owned()
    }

    fn route(&self, vni: u32, prefix: &str, underlay: &str) {
        self.namespace.run(&self.cli(&format!(
            "create route --vni {vni} --prefix {prefix} --next-hop-vni {vni} --next-hop-ip {underlay}"
        )));
    }
}

struct Machine {
    namespace: Namespace,
    id: &'static str,
    vni: u32,
    ipv4: &'static str,
    ipv6: &'static str,
}

/// What udhcpc calls with the lease in its environment.
const LEASE_SCRIPT: &str = "#!/bin/sh
[ \"$1\" = bound ] || exit 0
[ \"$serverid $mtu $mask\" = '169.254.0.1 1500 32' ] || exit 1
[ \"$staticroutes\" = '169.254.0.0/16 0.0.0.0 0.0.0.0/0 169.254.0.1' ] || exit 1
ip address add $ip/32 dev $interface
ip route add 169.254.0.0/16 dev $interface
ip route add default via 169.254.0.1 dev $interface
";

impl Machine {
    fn new(id: &'static str, vni: u32, ipv4: &'static str, ipv6: &'static str) -> Machine {
        Machine {
            namespace: Namespace::new(),
            id,
            vni,
            ipv4,
            ipv6,
        }
    }

    /// Configures eth0 with a real DHCP client and the router's advertisement.
    fn configure(&self) {
        let mut script = tempfile::Builder::new()
            .prefix("lease")
            .tempfile()
            .expect("file");
        script.write_all(LEASE_SCRIPT.as_bytes()).expect("write");
        script
            .as_file()
            .set_permissions(PermissionsExt::from_mode(0o755))
            .expect("mode");
        // Closed for writing, or it could not be executed.
        let script = script.into_temp_path();
        let path = script.to_str().expect("path");
        self.namespace.run(&format!(
            "udhcpc -i eth0 -n -q -t 5 -T 1 -O staticroutes -O mtu -O hostname -s {path}"
        ));
        self.namespace
            .ip(&format!("address add {}/128 dev eth0 nodad", self.ipv6));
        self.namespace.eventually("ip -6 route get fd00::99");
    }

    fn ping(&self, target: &str) -> Result<String, String> {
        self.namespace
            .try_run(&format!("ping -c 3 -i 0.2 -W 2 {target}"))
    }

    fn mac(&self) -> String {
        self.namespace.run("cat /sys/class/net/eth0/address")
    }
}

#[test]
fn machines_on_two_hosts_reach_each_other_and_nobody_else() {
    enter_private_namespace();
    let fabric = Fabric::new();
    let [left, right] = &fabric.hosts;
    let a = Machine::new("a", 100, "10.0.0.1", "fd00::1");
    let b = Machine::new("b", 100, "10.0.0.2", "fd00::2");
    // The same addresses in another network.
    let c = Machine::new("c", 200, "10.0.0.2", "fd00::2");
    let local = Machine::new("d", 100, "10.0.0.3", "fd00::3");
    let at_a = left.attach(&a, 0);
    left.attach(&c, 1);
    left.attach(&local, 2);
    let at_b = right.attach(&b, 0);
    for machine in [&a, &b, &c, &local] {
        machine.configure();
    }
    assert!(
        a.ping("10.0.0.3").is_ok() && a.ping("fd00::3").is_ok(),
        "machines of one host"
    );
    assert!(a.ping("10.0.0.2").is_err(), "no route yet");
    left.route(100, "10.0.0.2/32", &at_b);
    left.route(100, "fd00::2/128", &at_b);
    right.route(100, "10.0.0.1/32", &at_a);
    right.route(100, "fd00::1/128", &at_a);
    a.namespace.eventually("ping -c 1 -W 1 10.0.0.2");
    for target in [
        "10.0.0.2",
        "fd00::2",
        "-s 1472 -M do 10.0.0.2",
        "-s 1452 -M do fd00::2",
    ] {
        a.ping(target).unwrap_or_else(|error| panic!("{error}"));
    }
    b.ping("10.0.0.1").unwrap_or_else(|error| panic!("{error}"));
    assert!(
        c.ping("10.0.0.1").is_err() && c.ping("fd00::1").is_err(),
        "networks are separate"
    );

    tcp_of_machines_and_of_the_kernel(&a, left, right, &b);
    restart(fabric, &a, &at_b);
}

/// Both at the same time over the same uplink, and how fast.
fn tcp_of_machines_and_of_the_kernel(a: &Machine, left: &Host, right: &Host, b: &Machine) {
    let _overlay = Process::spawn(&mut b.namespace.command("iperf3 -s"));
    let _underlay = Process::spawn(&mut right.namespace.command("iperf3 -s"));
    left.namespace
        .eventually("bash -c echo>/dev/tcp/fc00:2::1/5201");
    a.namespace
        .eventually("bash -c echo>/dev/tcp/10.0.0.2/5201");
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            left.namespace
                .run("iperf3 -c fc00:2::1 -B fc00:1::1 -b 100M -t 2")
        });
        println!("overlay:\n{}", a.namespace.run("iperf3 -c 10.0.0.2 -t 2"));
        println!(
            "kernel beside it:\n{}",
            kernel.join().expect("kernel's TCP")
        );
    });
}

/// A killed dpservice leaves no device; configured again, the machine finds the same gateway.
fn restart(mut fabric: Fabric, a: &Machine, at_b: &str) {
    let [left, right] = &mut fabric.hosts;
    let mac = a.mac();
    let gateway = a.namespace.run("ip neighbour show 169.254.0.1");
    let begun = Instant::now();
    left.service.take().expect("running").kill();
    left.start();
    println!("restarted and initialized after {:?}", begun.elapsed());
    assert!(
        a.namespace.try_run("ip link show eth0").is_err(),
        "the device outlived its process"
    );
    let at_a = left.attach(a, 0);
    left.route(100, "10.0.0.2/32", at_b);
    let delete = right.cli("delete route --vni 100 --prefix 10.0.0.1/32");
    right.namespace.run(&delete);
    right.route(100, "10.0.0.1/32", &at_a);
    a.configure();
    a.namespace.eventually("ping -c 1 -W 1 10.0.0.2");
    println!("ping again after {:?}", begun.elapsed());
    assert_eq!(a.mac(), mac);
    let lladdr = |text: &str| {
        let mut words = text.split_whitespace().skip_while(|word| *word != "lladdr");
        words.nth(1).map(str::to_owned)
    };
    let again = a.namespace.run("ip neighbour show 169.254.0.1");
    assert_eq!(lladdr(&again), lladdr(&gateway));
    let stopped = left.service.take().expect("running").terminate();
    assert!(stopped.success(), "{stopped}");
}

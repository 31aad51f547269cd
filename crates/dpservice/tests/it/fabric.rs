//! Hosts, a router and machines in network namespaces: real processes, real kernel, real DHCP client. Tests and benchmarks use it.

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

    pub fn new() -> Namespace {
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

    pub fn pid(&self) -> u32 {
        self.0.as_ref().map_or_else(std::process::id, Process::id)
    }

    pub fn command(&self, command: &str) -> Command {
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

    pub fn try_run(&self, command: &str) -> Result<String, String> {
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

    pub fn ip(&self, arguments: &str) {
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
    pub fn spawn(command: &mut Command) -> Process {
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
    pub fn start(namespace: &Namespace, line: &str) -> Process {
        Process::spawn(&mut namespace.command(line))
    }

    pub fn id(&self) -> u32 {
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
pub struct Host {
    pub namespace: Namespace,
    pub service: Option<Process>,
    number: u8,
    options: Vec<String>,
}

/// Two hosts joined by a router that forwards the underlay.
pub struct Fabric {
    _router: Namespace,
    pub hosts: [Host; 2],
}

impl Fabric {
    /// `mtu` is the fabric's; `options` are more options of dpservice.
    pub fn new(mtu: u16, options: &[&str]) -> Fabric {
        let router = Namespace::new();
        router.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
        let hosts = [1, 2].map(|number| {
            let namespace = Namespace::new();
            let (host_pid, router_pid) = (namespace.pid(), router.pid());
            ip(&format!(
                "link add pf0 netns {host_pid} mtu {mtu} type veth peer name host{number} netns {router_pid} mtu {mtu}"
            ));
            namespace.ip("link set pf0 up");
            router.ip(&format!("link set host{number} up"));
            router.ip(&format!("address add fe80::1/64 dev host{number} nodad"));
            namespace.ip(&format!("address add fc00:{number}::1/128 dev lo nodad"));
            namespace.ip("address add fe80::2/64 dev pf0 nodad");
            namespace.ip(&format!("route add default via fe80::1 dev pf0 src fc00:{number}::1"));
            router.ip(&format!("route add fc00:{number}::/64 via fe80::2 dev host{number}"));
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            let mut host = Host { namespace, service: None, number, options };
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
    pub fn start(&mut self) {
        let address = format!("fc00:{}::1", self.number);
        let mut options = vec!["--log-level", "warn"];
        options.extend(self.options.iter().map(String::as_str));
        self.service = Some(Process::dpservice(
            Some(&self.namespace),
            &address,
            &options,
        ));
        self.namespace.eventually(&self.cli("init"));
    }

    pub fn cli(&self, command: &str) -> String {
        format!("{} cli {command}", env!("CARGO_BIN_EXE_dpservice"))
    }

    /// Attaches a machine and returns its underlay address.
    pub fn attach(&self, machine: &Machine, index: u16) -> String {
        let Machine {
            id,
            vni,
            ipv4,
            ipv6,
            ..
        } = machine;
        let device = index + 2;
        let underlay = self.create(&format!(
            "create interface --id {id} --vni {vni} --ipv4 {ipv4} --ipv6 {ipv6} --device net_tap{device} -o json"
        ));
        let pid = machine.namespace.pid();
        self.namespace
            .ip(&format!("link set dtapvf_{index} netns {pid} name eth0"));
        machine.namespace.ip("link set eth0 up");
        underlay
    }

    /// Creates something that gets an underlay address, and returns that.
    pub fn create(&self, command: &str) -> String {
        let reply = self.namespace.run(&self.cli(command));
        let (_, rest) = reply
            .split_once("\"underlay_route\":\"")
            .expect("underlay route");
        rest.split('"').next().expect("closing quote").to_owned()
    }

    pub fn route(&self, vni: u32, prefix: &str, underlay: &str) {
        self.namespace.run(&self.cli(&format!(
            "create route --vni {vni} --prefix {prefix} --next-hop-vni {vni} --next-hop-ip {underlay}"
        )));
    }
}

pub struct Machine {
    pub namespace: Namespace,
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
    pub fn new(id: &'static str, vni: u32, ipv4: &'static str, ipv6: &'static str) -> Machine {
        Machine {
            namespace: Namespace::new(),
            id,
            vni,
            ipv4,
            ipv6,
        }
    }

    /// Configures eth0 with a real DHCP client and the router's advertisement.
    pub fn configure(&self) {
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

    pub fn ping(&self, target: &str) -> Result<String, String> {
        self.namespace
            .try_run(&format!("ping -c 3 -i 0.2 -W 2 {target}"))
    }

    pub fn mac(&self) -> String {
        self.namespace.run("cat /sys/class/net/eth0/address")
    }
}

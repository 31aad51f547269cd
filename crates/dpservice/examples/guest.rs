//! A QEMU guest on DPDK's vhost-user device, with hugepages: boots, gets its address by DHCP, pings a machine on a TAP, is pinged, and moves
//! 11 MB of TCP each way, its own in super-frames.
//!
//! Guest: Debian's cloud kernel and a static busybox, fetched by `apt-get download`, in software emulation (no KVM needed). Needs root,
//! `qemu-system-x86`, and about 700 MiB of free memory; the number of hugepages is put back afterwards. Run: `cargo xtask guest`, or
//! `cargo build -p dpservice --features dpdk --bin dpservice --example guest` and then `target/debug/examples/guest`.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program that drives others and tells a person what it sees"
)]

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Hugepages of 2 MiB for DPDK.
const HUGEPAGES: u32 = 192;
const HUGEPAGES_FILE: &str = "/proc/sys/vm/nr_hugepages";
/// The longest that booting and pinging may take; about 15 s are needed on an idle machine without KVM.
const BOOT_MAX: Duration = Duration::from_secs(240);
const START_MAX: Duration = Duration::from_secs(30);
const GUEST: &str = "10.0.0.1";
const PEER: &str = "10.0.0.2";
/// What is moved: the numbers from 1 to this, a line each.
const NUMBERS_MAX: u32 = 1_500_000;
/// Ports at which the peer takes it, and gives it.
const TAKES: u16 = 5000;
const GIVES: u16 = 5001;
/// Where dpservice serves its metrics.
const METRICS: &str = "127.0.0.1:9064";
/// What the guest loads, in this order.
const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
ip link set lo up
ip link set eth0 up
echo \"GUEST features $(cat /sys/class/net/eth0/device/features)\"
udhcpc -i eth0 -n -q -t 20 -T 1 -s /lease
ping -c 3 -W 5 10.0.0.2 && echo GUEST pinged
seq 1 1500000 | nc 10.0.0.2 5000 && echo GUEST sent
echo \"GUEST received $(nc 10.0.0.2 5001 | md5sum)\"
# Until the host has pinged us.
sleep 600
";
const LEASE: &str = "#!/bin/busybox sh
[ \"$1\" = bound ] || exit 0
echo \"GUEST lease $ip mtu $mtu\"
ip address add $ip/32 dev $interface
ip route add 169.254.0.1 dev $interface
ip route add default via 169.254.0.1 dev $interface
";

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (kernel, initrd) = guest_image(folder.path())?;
    // From here on there is no way out.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("cannot make a network namespace: run as root")?;
    let _hugepages = Hugepages::reserve(folder.path())?;
    let service = Service::start(folder.path())?;
    attach_peer(&service)?;
    let listeners = [TAKES, GIVES].map(|port| TcpListener::bind((PEER, port)));
    let bulk = std::thread::spawn(move || move_bulk(listeners));
    let began = Instant::now();
    let guest = Guest::boot(folder.path(), &kernel, &initrd)?;
    let features = guest.expect("GUEST features ")?;
    // Bits of VIRTIO 1.2 §5.1.3, lowest first.
    let has = |bit| features.as_bytes().get(bit) == Some(&b'1');
    let names = [
        (0, "csum"),
        (1, "guest_csum"),
        (7, "guest_tso4"),
        (11, "host_tso4"),
        (15, "mrg_rxbuf"),
    ];
    let on: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| has(*bit))
        .map(|(_, name)| *name)
        .collect();
    println!(
        "guest negotiated {} after {:.1?}",
        on.join(", "),
        began.elapsed()
    );
    ensure!(has(0), "the guest leaves checksums to the device");
    let lease = guest.expect("GUEST lease ")?;
    ensure!(lease == format!("{GUEST} mtu 1500"), "lease {lease}");
    println!("guest has {lease} after {:.1?}", began.elapsed());
    guest.expect("GUEST pinged")?;
    println!("guest has pinged {PEER} after {:.1?}", began.elapsed());
    run(&format!("ping -c 3 -W 5 {GUEST}"))?;
    println!("{PEER} has pinged the guest");
    bulk.join().map_err(|_| anyhow!("the peer failed"))??;
    let numbers = numbers();
    println!("{PEER} has the {} bytes of the guest", numbers.len());
    let received = guest.expect("GUEST received ")?;
    let wanted = output_for("md5sum", &numbers)?;
    ensure!(received == wanted.trim(), "received {received}");
    println!("the guest has the same bytes of {PEER}");
    let supers = supers()?;
    println!("super-frames of the guest: {supers}");
    ensure!(supers > 0, "no super-frame came from the guest");
    let hugepages = std::fs::read_to_string("/proc/meminfo")?;
    for line in hugepages
        .lines()
        .filter(|line| line.starts_with("HugePages_"))
    {
        println!("{line}");
    }
    Ok(())
}

fn numbers() -> Vec<u8> {
    let mut text = Vec::new();
    for number in 1..=NUMBERS_MAX {
        // Writing to memory does not fail.
        let _ = writeln!(text, "{number}");
    }
    text
}

/// Takes the numbers at one place and gives them at the other.
fn move_bulk([takes, gives]: [std::io::Result<TcpListener>; 2]) -> Result<()> {
    let (takes, gives) = (takes?, gives?);
    let expected = numbers();
    let mut taken = Vec::new();
    takes.accept()?.0.read_to_end(&mut taken)?;
    ensure!(taken == expected, "the guest's bytes are damaged");
    gives.accept()?.0.write_all(&expected)?;
    Ok(())
}

/// Super-frames that came in, as dpservice counts them.
fn supers() -> Result<u64> {
    let mut connection = TcpStream::connect(METRICS)?;
    connection.write_all(b"GET /ethdev/xstats,1 HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (_, number) = answer
        .split_once("\"rx_super\":")
        .with_context(|| format!("no rx_super in {answer}"))?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// What a program writes when it reads `input`.
fn output_for(program: &str, input: &[u8]) -> Result<String> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    child
        .stdin
        .take()
        .context("standard input")?
        .write_all(input)?;
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

/// A child that ends with this value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Running> {
        let shown = format!("{command:?}");
        Ok(Running(
            command
                .spawn()
                .with_context(|| format!("cannot run {shown}"))?,
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended ones cannot be killed: fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn output(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("a program")?;
    let output = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{line}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(line: &str) -> Result<()> {
    output(line).map(drop)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries
        .collect::<Result<Vec<_>, _>>()?
        .iter()
        .map(std::fs::DirEntry::path)
        .collect())
}

/// Fetches the packages and puts kernel and first file system together.
fn guest_image(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let depends = output("apt-cache depends linux-image-cloud-amd64")?;
    let image = depends
        .split_whitespace()
        .find(|word| word.starts_with("linux-image-6"))
        .context("Debian's cloud kernel: apt-get update")?;
    let download = Command::new("apt-get")
        .args(["download", "-qq", image, "busybox-static"])
        .current_dir(folder)
        .status();
    ensure!(
        download.is_ok_and(|status| status.success()),
        "apt-get download {image} busybox-static"
    );
    let unpacked = folder.join("unpacked");
    for package in files(folder)?
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
    {
        run(&format!(
            "dpkg -x {} {}",
            package.display(),
            unpacked.display()
        ))?;
    }
    let root = folder.join("root");
    for inner in ["bin", "proc", "sys", "dev", "modules"] {
        std::fs::create_dir_all(root.join(inner))?;
    }
    let mut bin = files(&unpacked.join("bin"))?;
    bin.retain(|path| path.ends_with("busybox"));
    let busybox = bin.first().context("busybox")?;
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    let modules = files(&unpacked.join("lib/modules"))?;
    let modules = modules.first().context("kernel modules")?.join("kernel");
    let mut order = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        std::fs::copy(
            modules.join(format!("{module}.ko")),
            root.join(format!("modules/{name}.ko")),
        )
        .with_context(|| module.to_owned())?;
        order.push_str(name);
        order.push('\n');
    }
    std::fs::write(root.join("modules/order"), order)?;
    for (name, text) in [("init", INIT), ("lease", LEASE)] {
        std::fs::write(root.join(name), text)?;
        run(&format!("chmod 755 {}", root.join(name).display()))?;
    }
    let initrd = folder.join("initrd");
    let archive = format!(
        "cd {} && find . | {} cpio -o -H newc > {} 2>/dev/null",
        root.display(),
        busybox.display(),
        initrd.display()
    );
    ensure!(
        Command::new("sh")
            .args(["-c", &archive])
            .status()?
            .success(),
        "{archive}"
    );
    let mut kernels = files(&unpacked.join("boot"))?;
    kernels.retain(|path| path.display().to_string().contains("vmlinuz"));
    Ok((kernels.first().context("kernel")?.clone(), initrd))
}

/// Hugepages as long as this lives, and a place where DPDK finds them.
struct Hugepages {
    before: String,
    mount: PathBuf,
}

impl Hugepages {
    fn reserve(folder: &Path) -> Result<Hugepages> {
        let before = std::fs::read_to_string(HUGEPAGES_FILE)?;
        let mount = folder.join("huge");
        std::fs::create_dir(&mount)?;
        let hugepages = Hugepages { before, mount };
        let wanted = hugepages.before.trim().parse::<u32>()? + HUGEPAGES;
        std::fs::write(HUGEPAGES_FILE, wanted.to_string())?;
        let reserved: u32 = std::fs::read_to_string(HUGEPAGES_FILE)?.trim().parse()?;
        ensure!(
            reserved == wanted,
            "only {reserved} hugepages of 2 MiB are to be had"
        );
        run(&format!(
            "mount -t hugetlbfs -o pagesize=2M none {}",
            hugepages.mount.display()
        ))?;
        Ok(hugepages)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        // DPDK has ended by now. What fails here shows in `mount` and `sysctl vm.nr_hugepages`.
        let _ = run(&format!("umount {}", self.mount.display()));
        let _ = std::fs::write(HUGEPAGES_FILE, &self.before);
    }
}

/// dpservice with a TAP as uplink, the guest's vhost-user device and a TAP as the other machine.
struct Service {
    _process: Running,
    program: PathBuf,
}

impl Service {
    fn start(folder: &Path) -> Result<Service> {
        let own = std::env::current_exe()?;
        let program = own
            .parent()
            .and_then(Path::parent)
            .context("a folder")?
            .join("dpservice");
        let prefix = format!("okm-guest-{}", std::process::id());
        let (huge, socket) = (folder.join("huge"), folder.join("guest.sock"));
        let mut command = Command::new(&program);
        command.args(["-l", "0,1", "--no-pci", "-m", "256", "--log-level=error"]);
        command
            .args(["--file-prefix", &prefix, "--huge-dir"])
            .arg(huge);
        command.arg("--vdev=net_tap0,iface=dtap0");
        let offloads = "tso=1,linear-buffer=1,ext-buffer=1";
        command.arg(format!(
            "--vdev=net_vhost0,iface={},{offloads}",
            socket.display()
        ));
        command.arg("--vdev=net_tap1,iface=vhtap1,mac=66:66:66:66:66:01");
        command.args([
            "--",
            "--pf0",
            "dtap0",
            "--vf-pattern",
            "vh",
            "--nic-type",
            "tap",
        ]);
        command.args(["--no-offload", "--ipv6", "fc00:1::1", "--log-level", "warn"]);
        command.args(["--metrics-bind-address", METRICS]);
        run("ip link set lo up")?;
        let service = Service {
            _process: Running::start(&mut command)?,
            program,
        };
        let deadline = Instant::now() + START_MAX;
        while let Err(error) = service.client("init") {
            if Instant::now() > deadline {
                return Err(
                    error.context("dpservice (built with --features dpdk?) does not answer")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for (id, address, device) in [("guest", GUEST, "net_vhost0"), ("peer", PEER, "net_tap1")] {
            service.client(&format!(
                "create interface --id {id} --vni 100 --ipv4 {address} --ipv6 :: --device {device}"
            ))?;
        }
        Ok(service)
    }

    fn client(&self, line: &str) -> Result<()> {
        run(&format!("{} cli {line}", self.program.display()))
    }
}

/// The kernel becomes the machine behind the TAP.
fn attach_peer(_service: &Service) -> Result<()> {
    // Its gateway has the address that the device was made with.
    run("ip link set vhtap1 address 02:00:00:00:00:02 up")?;
    run(&format!("ip address add {PEER}/32 dev vhtap1"))?;
    run("ip route add 169.254.0.1 dev vhtap1")?;
    run(&format!(
        "ip route add {GUEST} via 169.254.0.1 dev vhtap1 src {PEER}"
    ))
}

/// The guest and what it says on its console.
struct Guest {
    _process: Running,
    lines: Receiver<String>,
    began: Instant,
}

impl Guest {
    fn boot(folder: &Path, kernel: &Path, initrd: &Path) -> Result<Guest> {
        let socket = folder.join("guest.sock");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "128"]);
        command.args([
            "-nographic",
            "-no-reboot",
            "-nodefaults",
            "-serial",
            "stdio",
        ]);
        command.args([
            "-object",
            "memory-backend-memfd,id=memory,size=128M,share=on",
        ]);
        command.args([
            "-numa",
            "node,memdev=memory",
            "-netdev",
            "vhost-user,id=net,chardev=socket",
        ]);
        command
            .arg("-chardev")
            .arg(format!("socket,id=socket,path={}", socket.display()));
        // Without message-signalled interrupts: QEMU 7.2 in software emulation breaks down over them with a vhost-user device.
        command.args([
            "-device",
            "virtio-net-pci,netdev=net,mac=52:54:00:00:00:01,romfile=,vectors=0",
        ]);
        command
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd);
        command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Running::start(&mut command).context("install qemu-system-x86")?;
        let console = process.0.stdout.take().context("the guest's console")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                println!("  | {line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Guest {
            _process: process,
            lines,
            began: Instant::now(),
        })
    }

    /// What follows `beginning` in the first line that has it.
    fn expect(&self, beginning: &str) -> Result<String> {
        loop {
            let left = BOOT_MAX.saturating_sub(self.began.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some((_, rest)) = line.split_once(beginning) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("the guest did not say {beginning:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended before {beginning:?}")
                }
            }
        }
    }
}

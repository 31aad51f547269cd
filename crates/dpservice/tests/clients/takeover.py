"""Two instances of dpservice on one host, one of which is killed, against packets of scapy: whoever is connected stays connected.

Arguments: the executable, and a folder that is ours. The instances have devices of their own (uplinks up_a and up_b, machines' devices a_0 and b_0);
the test plays the machine, the fabric, and the NIC that hands both to whoever works.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request

from scapy.config import conf

conf.verb = 0
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6  # noqa: E402
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

EXECUTABLE, FOLDER = sys.argv[1:]
PATIENCE_S = 15
MACHINE = "52:54:00:aa:bb:cc"
FABRIC = "02:00:00:00:00:fe"
ADDRESS, ADDRESS6 = "10.100.1.1", "2000:100:1::1"
NAT, ROUTER, SERVER, SERVER6 = "172.20.1.1", "fc00::ffff", "45.86.6.6", "64:ff9b::2d56:606"
SERVICE, VIRTUAL = "2001:db8::53", "1.2.3.4"
SOURCES = (2000, 2002, 2005, 2009)


def run(line):
    return subprocess.run(line.split(), capture_output=True, text=True)


def eventually(what, attempt):
    deadline = time.monotonic() + PATIENCE_S
    while not (result := attempt()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)
    return result


class Wire:
    """The kernel's end of a device."""

    def __init__(self, device):
        eventually(device, lambda: run(f"ip link set {device} up").returncode == 0)
        self.socket = conf.L2socket(iface=device)

    def send(self, packet):
        self.socket.send(packet)

    def expect(self, what, wanted):
        deadline = time.monotonic() + PATIENCE_S
        while (left := deadline - time.monotonic()) > 0:
            if not self.socket.select([self.socket], left):
                break
            packet = self.socket.recv(65536)
            # What we send shows here as well.
            if packet is not None and packet.src not in (MACHINE, FABRIC) and wanted(packet):
                return packet
        raise AssertionError(f"no {what}")


class Instance:
    def __init__(self, name, port):
        self.client = f"{FOLDER}/dpservice-cli --address localhost:{port}"
        self.metrics = f"http://127.0.0.1:{port + 1000}/metrics"
        self.process = subprocess.Popen(
            f"setpriv --pdeathsig KILL {EXECUTABLE} --pf0 up_{name} --tap-prefix {name}_ --uplink-driver tap --tap-count 1 --ipv6 fc00:1::1 "
            f"--enable-ipv6-overlay --grpc-port {port} --metrics-bind-address 127.0.0.1:{port + 1000} --log-level warn "
            f"--udp-virtsvc {VIRTUAL},53,{SERVICE},53 --active-lockfile {FOLDER}/active --sync-tap sync_{name}".split()
        )
        eventually("link to the other instance", lambda: run(f"ip link set sync_{name} master sync").returncode == 0)
        eventually("service", lambda: run(f"{self.client} init").returncode == 0)
        self.cli(f"create interface --id vm1 --vni 100 --ipv4 {ADDRESS} --ipv6 {ADDRESS6} --device net_tap2")
        for prefix in ("0.0.0.0/0", "::/0"):
            self.cli(f"create route --vni 100 --prefix {prefix} --next-hop-vni 100 --next-hop-ip {ROUTER}")
        self.cli(f"create nat --interface-id vm1 --nat-ip {NAT} --minport 1100 --maxport 1104 --underlay fc00:1::8000:0:9")
        self.machine, self.uplink = Wire(f"{name}_0"), Wire(f"up_{name}")

    def cli(self, line):
        done = run(f"{self.client} {line}")
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"

    def counts(self, line):
        """Whether the metrics have this line."""
        return line in urllib.request.urlopen(self.metrics).read().decode().splitlines()

    def out(self, packet, wanted):
        """What becomes of a packet of the machine on the uplink."""
        self.machine.send(Ether(src=MACHINE, dst="02:00:00:00:00:01") / packet)
        return self.uplink.expect(f"{packet.summary()} on the uplink", wanted)

    def back(self, packet, wanted):
        """What becomes of a packet from the fabric at the machine."""
        self.uplink.send(Ether(src=FABRIC, dst=self.uplink_mac) / packet)
        return self.machine.expect(f"{packet.summary()} at the machine", wanted)

    def answer(self, packet, wanted):
        return self.back(IPv6(src=ROUTER, dst="fc00:1::8000:0:9") / packet, wanted)

    def learn(self):
        """The machine asks for its gateway, and shows its address by that."""
        request = ARP(op=1, hwsrc=MACHINE, psrc=ADDRESS, pdst="169.254.0.1")
        self.machine.send(Ether(src=MACHINE, dst="ff:ff:ff:ff:ff:ff") / request)
        self.machine.expect("gateway", lambda packet: ARP in packet and packet[ARP].op == 2)


def syn(source, flags="S"):
    return IP(src=ADDRESS, dst=SERVER) / TCP(sport=source, dport=443, flags=flags)


def is_inner(kind):
    return lambda packet: kind in packet and packet.type == 0x86DD and packet[IPv6].nh == 4


def is_to(kind, port):
    return lambda packet: kind in packet and packet[kind].dport == port


assert run("ip link add sync type bridge").returncode == 0 and run("ip link set sync up").returncode == 0
active = Instance("a", 1337)
active.learn()
# The range has four ports, so most connections have not the first one that they would try.
taken = {}
for source in SOURCES:
    sent = active.out(syn(source), is_inner(TCP))
    active.uplink_mac = sent.src
    taken[source] = sent[TCP].sport
assert sorted(taken.values()) == [1100, 1101, 1102, 1103], taken
early = active.out(IPv6(src=ADDRESS6, dst=SERVER6) / UDP(sport=1300, dport=1234) / Raw(b"hello"), is_inner(UDP))[UDP].sport

# Comes late, and asks for what there is.
standby = Instance("b", 1338)
eventually("dump", lambda: standby.counts('dpservice_sync_kept{what="nat"} 5'))
# From now on it is told one by one.
echo = active.out(IPv6(src=ADDRESS6, dst=SERVER6) / ICMPv6EchoRequest(id=77), is_inner(ICMP))[ICMP].id
is_query = lambda packet: IPv6 in packet and packet[IPv6].dst == SERVICE
query = active.out(IP(src=ADDRESS, dst=VIRTUAL) / UDP(sport=5000, dport=53) / Raw(b"query"), is_query)
eventually("message about NAT", lambda: standby.counts('dpservice_sync_kept{what="nat"} 6'))
eventually("message about a virtual service", lambda: standby.counts('dpservice_sync_kept{what="virtsvc"} 1'))
assert not standby.counts('dpservice_sync_received_total{what="port_mac"} 0')

os.kill(active.process.pid, 9)
active.process.wait()
eventually("change", lambda: standby.counts('dpservice_sync_taken_total{what="nat"} 6'))
assert standby.counts('dpservice_sync_taken_total{what="virtsvc"} 1')
standby.uplink_mac = json.loads(run("ip -j link show up_b").stdout)[0]["address"]
# The first ones to speak are the others, the last connection first.
for source, port in reversed(taken.items()):
    answer = IP(src=SERVER, dst=NAT) / TCP(sport=443, dport=port, flags="SA")
    came = standby.answer(answer, is_to(TCP, source))
    # The machine has said nothing to this instance, which knows its address all the same.
    assert (came.dst, came[IP].dst) == (MACHINE, ADDRESS), came.show(dump=True)
for source, port in taken.items():
    sent = standby.out(syn(source, "A"), is_inner(TCP))
    assert sent[TCP].sport == port, (taken, sent.show(dump=True))
standby.answer(IP(src=SERVER, dst=NAT) / UDP(sport=1234, dport=early) / Raw(b"hi"), is_to(UDP, 1300))
again = standby.out(IPv6(src=ADDRESS6, dst=SERVER6) / ICMPv6EchoRequest(id=77), is_inner(ICMP))
assert again[ICMP].id == echo
reply = IPv6(src=SERVICE, dst=query[IPv6].src) / UDP(sport=53, dport=query[UDP].sport) / Raw(b"reply")
came = standby.back(reply, is_to(UDP, 5000))
assert (came[IP].src, came[UDP].sport) == (VIRTUAL, 53)

# The one that works tells the next one.
third = Instance("c", 1339)
eventually("dump of the second", lambda: third.counts('dpservice_sync_kept{what="nat"} 6'))

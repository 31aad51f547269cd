"""Packets made and read by scapy, a stack of its own, against a running dpservice with six devices: two uplinks and four machines.

Arguments: the client `dpservice-cli`, then the kernel names of the uplinks' and of the four machines' devices.
"""

import json
import subprocess
import sys
import time

from scapy.config import conf

conf.verb = 0
# Kernel devices come up while we run: nothing of them is to be remembered.
from scapy.layers.dhcp import BOOTP, DHCP  # noqa: E402
from scapy.layers.dhcp6 import (  # noqa: E402
    DHCP6_Advertise,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DUID_LL,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

CLI, UPLINK, SECOND_UPLINK, *MACHINES = sys.argv[1:]
PATIENCE_S = 10
ROUTER = "fc00::ffff"
NEIGHBOUR = "fc00:2::64:0:1"
GATEWAY = "169.254.0.1"
BROADCAST = "ff:ff:ff:ff:ff:ff"


def cli(line):
    """The client's answer as JSON; its failure is ours."""
    run = subprocess.run([CLI, *line.split(), "-o", "json"], capture_output=True, text=True)
    assert run.returncode == 0, f"{line}: {run.stdout}{run.stderr}"
    answer = json.loads(run.stdout)
    assert answer["status"] == {"code": 0, "message": "Success"}, f"{line}: {answer}"
    return answer


class Wire:
    """The kernel's end of a device."""

    def __init__(self, device, mac):
        self.mac = mac
        self.socket = conf.L2socket(iface=device)

    def send(self, packet):
        self.socket.send(packet)

    def expect(self, what, wanted, patience_s=PATIENCE_S):
        """The next packet that `wanted` accepts, with all lengths and checksums right."""
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            if not self.socket.select([self.socket], left):
                break
            packet = self.socket.recv(65536)
            # What we send shows here as well.
            if packet is None or packet.src == self.mac or not wanted(packet):
                continue
            check(packet)
            return packet
        raise AssertionError(f"no {what}")


class Machine(Wire):
    def __init__(self, number, vni, ipv4, ipv6="::"):
        # Names of devices are those of the reference: the first two are uplinks.
        self.id = f"vm{number}"
        answer = cli(
            f"create interface --id {self.id} --vni {vni} --ipv4 {ipv4} --ipv6 {ipv6} --device net_tap{number + 1}"
        )
        assert answer["kind"] == "Interface" and answer["metadata"]["id"] == self.id, answer
        self.ipv4, self.ipv6 = ipv4, ipv6
        self.underlay = answer["spec"]["underlay_route"]
        device = MACHINES[number - 1]
        subprocess.run(["ip", "link", "set", device, "up"], check=True)
        super().__init__(device, f"02:00:00:00:00:{number:02x}")
        self.gateway = BROADCAST

    def frame(self, *layers):
        packet = Ether(src=self.mac, dst=self.gateway)
        for layer in layers:
            packet = packet / layer
        return packet


def check(packet):
    """Compares with what scapy itself computes for lengths and checksums; an absent UDP checksum over IPv4 is fine."""
    again = Ether(bytes(packet))
    layer = again
    while layer:
        for name in ("chksum", "cksum", "len", "plen"):
            if name in layer.fields and not (isinstance(layer, UDP) and layer.fields[name] == 0):
                # Unlike removal from the fields alone, this forgets the bytes that were read.
                layer.delfieldval(name)
        layer = layer.payload
    # Frames are padded to what a wire carries at least.
    made, seen = bytes(again), bytes(packet)
    assert made == seen[: len(made)], f"\n{packet.show(dump=True)}\n{Ether(made).show(dump=True)}"


def self_test():
    """What `check` has to notice."""
    addresses = Ether(src=BROADCAST, dst=BROADCAST) / IP(src="10.0.0.1", dst="10.0.0.2")
    for wrong in (ICMP(chksum=1), UDP(chksum=1), TCP(chksum=1), UDP(len=9)):
        frame = Ether(bytes(addresses / wrong / Raw(b"x" * 20)))
        try:
            check(frame)
        except AssertionError:
            continue
        raise AssertionError(f"unnoticed: {frame!r}")


def outer(source, inner):
    """From the fabric to us."""
    return Ether(src="02:00:00:00:00:fe", dst=uplink_mac) / source / inner


def tunnel(source, destination, inner):
    return outer(IPv6(src=source, dst=destination), inner)


def arp(machine):
    request = ARP(op=1, hwsrc=machine.mac, psrc="0.0.0.0", pdst=GATEWAY)
    machine.send(Ether(src=machine.mac, dst=BROADCAST) / request)
    is_reply = lambda packet: ARP in packet and packet[ARP].op == 2
    reply = machine.expect("ARP reply", is_reply)
    assert reply[ARP].psrc == GATEWAY and reply[ARP].hwsrc == reply.src, reply.show(dump=True)
    assert reply[ARP].hwdst == machine.mac and reply[ARP].pdst == "0.0.0.0", reply.show(dump=True)
    machine.gateway = reply.src


def dhcp(machine):
    for kind, answer in (("discover", 2), ("request", 5)):
        machine.send(
            Ether(src=machine.mac, dst=BROADCAST)
            / IP(src="0.0.0.0", dst="255.255.255.255")
            / UDP(sport=68, dport=67)
            / BOOTP(chaddr=bytes.fromhex(machine.mac.replace(":", "")), xid=0x1234)
            / DHCP(options=[("message-type", kind), "end"])
        )
        offer = machine.expect(f"answer to {kind}", lambda packet: DHCP in packet)
        options = dict(option[:2] for option in offer[DHCP].options if isinstance(option, tuple))
        dns = next(option[1:] for option in offer[DHCP].options if option[0] == "name_server")
        assert offer[BOOTP].yiaddr == machine.ipv4 and offer[BOOTP].xid == 0x1234
        assert options["message-type"] == answer and options["server_id"] == GATEWAY, options
        assert options["interface-mtu"] == 1337 and options["subnet_mask"] == "255.255.255.255", options
        assert options["lease_time"] == 0xFFFFFFFF and dns == ("8.8.4.4", "8.8.8.8"), (options, dns)


def dhcp6(machine):
    client = DUID_LL(lladdr=machine.mac)
    machine.send(
        machine.frame(
            IPv6(src="fe80::2", dst="ff02::1:2"),
            UDP(sport=546, dport=547),
            DHCP6_Solicit(trid=0x4321),
            DHCP6OptClientId(duid=client),
            DHCP6OptIA_NA(iaid=7),
        )
    )
    offer = machine.expect("DHCPv6 advertisement", lambda packet: DHCP6_Advertise in packet)
    assert offer[DHCP6_Advertise].trid == 0x4321 and offer[DHCP6OptClientId].duid == client
    assert offer[DHCP6OptIA_NA].iaid == 7 and offer[DHCP6OptIAAddress].addr == machine.ipv6
    assert offer[DHCP6OptDNSServers].dnsservers == ["2001:4860:4860::6464", "2001:4860:4860::64"]


def neighbour_discovery(machine):
    to_all = IPv6(src="fe80::2", dst="ff02::1:ff00:1", hlim=255)
    machine.send(machine.frame(to_all, ICMPv6ND_NS(tgt="fe80::1"), ICMPv6NDOptSrcLLAddr(lladdr=machine.mac)))
    solicited = lambda packet: ICMPv6ND_NA in packet and packet[ICMPv6ND_NA].S == 1
    answer = machine.expect("neighbour advertisement", solicited)
    assert answer[ICMPv6ND_NA].tgt == "fe80::1" and answer[IPv6].src == "fe80::1"
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == machine.gateway
    machine.send(machine.frame(IPv6(src="fe80::2", dst="ff02::2", hlim=255), ICMPv6ND_RS()))
    answer = machine.expect("router advertisement", lambda packet: ICMPv6ND_RA in packet)
    flags = answer[ICMPv6ND_RA]
    assert (flags.chlim, flags.M, flags.O, flags.routerlifetime) == (255, 1, 1, 65535)


def encapsulated(packet, machine, next_hop):
    """Whether the uplink sends it from this machine to this next hop."""
    return (
        packet.type == 0x86DD
        and packet[IPv6].src == machine.underlay
        and packet[IPv6].dst == next_hop
        and packet[IPv6].nh in (4, 41)
    )


def remote(machine):
    """Both families to a machine on another host, and back."""
    inner = IP(src=machine.ipv4, dst="10.100.2.102") / ICMP(id=5) / Raw(b"x" * 40)
    machine.send(machine.frame(inner))
    sent = uplink.expect("ping in the tunnel", lambda packet: encapsulated(packet, machine, NEIGHBOUR))
    assert (sent[IPv6].nh, sent[IPv6].hlim, sent[IP].dst, sent[IP].ttl) == (4, 64, "10.100.2.102", 64)
    answer = IP(src="10.100.2.102", dst=machine.ipv4) / ICMP(type=0, id=5) / Raw(b"x" * 40)
    uplink.send(tunnel(NEIGHBOUR, machine.underlay, answer))
    came = machine.expect("ping's answer", lambda packet: ICMP in packet and packet[ICMP].type == 0)
    assert (came.src, came.dst, came[IP].src) == (machine.gateway, machine.mac, "10.100.2.102")

    there = "2000:100:2::102"
    machine.send(machine.frame(IPv6(src=machine.ipv6, dst=there), ICMPv6EchoRequest(id=6)))
    sent = uplink.expect("IPv6 ping in the tunnel", lambda packet: encapsulated(packet, machine, NEIGHBOUR))
    assert (sent[IPv6].nh, sent[IPv6].payload.dst) == (41, there)
    uplink.send(tunnel(NEIGHBOUR, machine.underlay, IPv6(src=there, dst=machine.ipv6) / ICMPv6EchoReply(id=6)))
    machine.expect("IPv6 ping's answer", lambda packet: ICMPv6EchoReply in packet and packet[IPv6].src == there)


def local(left, right):
    """Machines of one host, which never show on the uplink; one in another network hears nothing."""
    left.send(left.frame(IP(src=left.ipv4, dst=right.ipv4), TCP(sport=1000, dport=443, flags="S")))
    came = right.expect("SYN of the neighbour", lambda packet: TCP in packet and packet[TCP].dport == 443)
    assert (came.src, came.dst) == (right.gateway, right.mac)
    right.send(right.frame(IP(src=right.ipv4, dst=left.ipv4), TCP(sport=443, dport=1000, flags="SA")))
    left.expect("SYN+ACK of the neighbour", lambda packet: TCP in packet and packet[TCP].flags == "SA")


def virtual_ip(machine):
    vip = "172.20.0.1"
    underlay = cli(f"create vip --interface-id {machine.id} --vip {vip}")["spec"]["underlay_route"]
    machine.send(machine.frame(IP(src=machine.ipv4, dst="9.9.9.9"), UDP(sport=1200, dport=53), Raw(b"query")))
    sent = uplink.expect("query from the virtual IP", lambda packet: encapsulated(packet, machine, ROUTER))
    assert (sent[IP].src, sent[UDP].sport) == (vip, 1200)
    uplink.send(tunnel(ROUTER, underlay, IP(src="9.9.9.9", dst=vip) / UDP(sport=53, dport=1200) / Raw(b"answer")))
    came = machine.expect("answer to the virtual IP", lambda packet: UDP in packet and packet[UDP].dport == 1200)
    assert came[IP].dst == machine.ipv4


def network_nat(machine):
    address = "172.20.1.1"
    line = f"create nat --interface-id {machine.id} --nat-ip {address} --minport 1100 --maxport 1102"
    underlay = cli(line)["spec"]["underlay_route"]
    ports = {}
    for source in (1240, 1241):
        machine.send(machine.frame(IP(src=machine.ipv4, dst="45.86.6.6"), TCP(sport=source, dport=443, flags="S")))
        sent = uplink.expect("translated SYN", lambda packet: encapsulated(packet, machine, ROUTER) and TCP in packet)
        assert sent[IP].src == address and sent[TCP].sport in (1100, 1101), sent.show(dump=True)
        ports[source] = sent[TCP].sport
    assert len(set(ports.values())) == 2, ports
    for source, port in ports.items():
        answer = IP(src="45.86.6.6", dst=address) / TCP(sport=443, dport=port, flags="SA")
        uplink.send(tunnel(ROUTER, underlay, answer))
        came = machine.expect("translated answer", lambda packet: TCP in packet and packet[TCP].dport == source)
        assert came[IP].dst == machine.ipv4

    # NAT64: the same address for IPv6.
    there = "64:ff9b::2d56:606"
    machine.send(machine.frame(IPv6(src=machine.ipv6, dst=there), UDP(sport=1300, dport=1234), Raw(b"hello")))
    sent = uplink.expect("IPv4 made of IPv6", lambda packet: encapsulated(packet, machine, ROUTER) and UDP in packet)
    assert (sent[IP].src, sent[IP].dst, sent[UDP].dport) == (address, "45.86.6.6", 1234)
    answer = IP(src="45.86.6.6", dst=address) / UDP(sport=1234, dport=sent[UDP].sport) / Raw(b"hi")
    uplink.send(tunnel(ROUTER, underlay, answer))
    came = machine.expect("IPv6 made of IPv4", lambda packet: UDP in packet and packet[UDP].dport == 1300)
    assert (came[IPv6].src, came[IPv6].dst) == (there, machine.ipv6)

    # The address answers pings itself, and what belongs to another host goes there.
    uplink.send(tunnel(ROUTER, underlay, IP(src="1.2.3.4", dst=address) / ICMP(id=9)))
    uplink.expect("ping's answer of the NAT address", lambda packet: ICMP in packet and packet[ICMP].type == 0 and packet[IP].src == address)
    cli(f"create neighbornat --nat-ip {address} --vni 100 --minport 500 --maxport 520 --underlayroute {NEIGHBOUR}")
    uplink.send(tunnel(ROUTER, underlay, IP(src="1.2.3.4", dst=address) / TCP(sport=7, dport=510, flags="S")))
    sent = uplink.expect("relayed SYN", lambda packet: TCP in packet and packet[TCP].dport == 510)
    assert (sent[IPv6].dst, sent[IP].dst) == (NEIGHBOUR, address)


def load_balancer(target):
    address = "172.20.2.1"
    created = cli(f"create loadbalancer --id lb --vni 100 --vip {address} --lbports TCP/80")
    underlay = created["spec"]["underlay_route"]
    prefix = cli(f"create lbprefix --interface-id {target.id} --prefix {address}/32")
    cli(f"create lbtarget --lb-id lb --target-ip {prefix['spec']['underlay_route']}")
    uplink.send(tunnel(ROUTER, underlay, IP(src="1.2.3.4", dst=address) / TCP(sport=1234, dport=80, flags="S")))
    came = target.expect("SYN to the load balancer", lambda packet: TCP in packet and packet[TCP].dport == 80)
    assert (came[IP].dst, came.dst) == (address, target.mac)
    for family, ping in ((IP, ICMP(id=3)),):
        uplink.send(tunnel(ROUTER, underlay, family(src="1.2.3.4", dst=address) / ping))
        uplink.expect("ping's answer of the load balancer", lambda packet: ICMP in packet and packet[ICMP].type == 0 and packet[IP].src == address)


def failover(machine):
    """What is sent takes the other uplink while the first one is down, and the first one again afterwards."""
    packet = machine.frame(IP(src=machine.ipv4, dst="10.100.2.77"), UDP(sport=77, dport=78))
    wanted = lambda seen: encapsulated(seen, machine, NEIGHBOUR) and UDP in seen and seen[UDP].dport == 78
    second = Wire(SECOND_UPLINK, "02:00:00:00:00:fd")
    for first_is, state in ((second, "down"), (None, "up")):
        subprocess.run(["ip", "link", "set", UPLINK, state], check=True)
        # A socket hears once that its device went down.
        wire = first_is or Wire(UPLINK, "02:00:00:00:00:fe")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            machine.send(packet)
            try:
                wire.expect(f"packet while the first uplink is {state}", wanted, patience_s=0.2)
                break
            except AssertionError:
                assert time.monotonic() < deadline, f"no packet while the first uplink is {state}"


def silence(machine):
    """Nothing of the others' traffic came to a machine of another network."""
    alien = lambda packet: IP in packet and packet[IP].src.startswith("10.100.")
    try:
        machine.expect("anything", alien, patience_s=0.2)
    except AssertionError:
        return
    raise AssertionError("a machine of another network hears others")


def started():
    """The uplink and the client, once the service answers."""
    deadline = time.monotonic() + 3 * PATIENCE_S
    while subprocess.run([CLI, "init"], capture_output=True).returncode != 0:
        assert time.monotonic() < deadline, "dpservice does not answer"
        time.sleep(0.05)
    for device in (UPLINK, SECOND_UPLINK):
        subprocess.run(["ip", "link", "set", device, "up"], check=True)
    return Wire(UPLINK, "02:00:00:00:00:fe")


self_test()
uplink = started()
vm1 = Machine(1, 100, "10.100.1.1", "2000:100:1::1")
vm2 = Machine(2, 100, "10.100.1.2", "2000:100:1::2")
vm3 = Machine(3, 200, "10.100.1.1")
vm4 = Machine(4, 100, "10.100.1.4", "2000:100:1::4")
for destination, hop in (
    ("10.100.2.0/24", NEIGHBOUR),
    ("2000:100:2::/104", NEIGHBOUR),
    ("0.0.0.0/0", ROUTER),
    ("::/0", ROUTER),
):
    cli(f"create route --vni 100 --prefix {destination} --next-hop-vni 100 --next-hop-ip {hop}")
for one in (vm1, vm2, vm3, vm4):
    arp(one)
dhcp(vm1)
dhcp6(vm1)
neighbour_discovery(vm1)
# Whatever comes in has the uplink's own address.
vm1.send(vm1.frame(IP(src=vm1.ipv4, dst="10.100.2.1"), UDP(sport=9, dport=9)))
uplink_mac = uplink.expect("first packet", lambda packet: encapsulated(packet, vm1, NEIGHBOUR)).src
remote(vm1)
for one in (vm2, vm4):
    # Machines are known by their own address before others reach them.
    dhcp(one)
local(vm1, vm2)
virtual_ip(vm2)
network_nat(vm1)
load_balancer(vm4)
silence(vm3)
listed = cli("list interfaces")["items"]
assert [item["metadata"]["id"] for item in listed] == ["vm1", "vm2", "vm3", "vm4"], listed
failover(vm2)

"""A site that a host under test is plugged into: a network of its own, with whatever serves on it.

How: a network namespace that lives as long as a process in it (`sleep`), a tap as the switch that the host's card ends
at, and dnsmasq, which hands out addresses. Servers are started in the namespace; sockets of this process can be opened
in it, too. Nothing of it is seen from, or reaches, the network of the machine that tests.

It may touch: processes that it starts, the folder it is given."""

import os
import re
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

MAC = "52:54:00:12:34:56"
ADDRESS = "192.0.2.1"  # of the site's server, for everything
NTP_EPOCH = 2208988800  # seconds from 1900 to 1970 (RFC 5905)


class Site:
    """Use as a context manager. Options of dnsmasq as in its configuration file, one a line."""

    def __init__(self, folder: Path, options: str = "dhcp-range=192.0.2.100,192.0.2.199,1h\n"):
        self.folder, self.options = folder, options
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> "Site":
        self.folder.mkdir(exist_ok=True)
        make = "ip link set lo up; ip tuntap add lan0 mode tap; ip addr add %s/24 dev lan0; ip link set lan0 up; echo made; exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-ec", make % ADDRESS], stdout=subprocess.PIPE)
        self.processes.append(self.holder)
        assert self.holder.stdout.readline() == b"made\n", "no network namespace with a tap could be made"
        (self.folder / "dnsmasq.conf").write_text(self.options)
        self.start("dnsmasq", "--keep-in-foreground", "--user=root", f"--conf-file={self.folder}/dnsmasq.conf",
                   f"--dhcp-leasefile={self.folder}/leases", "--log-dhcp", f"--log-facility={self.folder}/dnsmasq.log", "--no-hosts", "--no-resolv",
                   "--pid-file=")
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()

    @property
    def inside(self) -> list[str]:
        """What a command is to begin with to run in the site's network."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]

    def start(self, *command: object, **options) -> subprocess.Popen:
        process = subprocess.Popen([*self.inside, *map(str, command)], **options)
        self.processes.append(process)
        return process

    def run(self, *command: object) -> subprocess.CompletedProcess:
        return subprocess.run([*self.inside, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def card(self, boot: bool = False) -> list[str]:
        """QEMU's options for the host's network card, for a QEMU that runs inside. The firmware's own driver runs it."""
        first = ",bootindex=0" if boot else ""
        return ["-netdev", "tap,id=net,ifname=lan0,script=no,downscript=no", "-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile={first}"]

    def socket(self, kind: socket.SocketKind, port: int) -> socket.socket:
        """A socket of this process in the site's network: namespaces belong to threads, sockets keep theirs."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self.holder.pid}/ns/net") as namespace:
                os.setns(namespace.fileno(), os.CLONE_NEWNET)
            one = socket.socket(socket.AF_INET, kind)
            one.bind((ADDRESS, port))
            made.append(one)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def log(self) -> str:
        path = self.folder / "dnsmasq.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def serve_time(self, now: float) -> None:
        """A time server (RFC 5905) at which it is @now when it starts."""
        server, started = self.socket(socket.SOCK_DGRAM, 123), time.time()

        def stamp(when: float) -> bytes:
            return struct.pack(">II", int(when) + NTP_EPOCH & 0xFFFFFFFF, int(when % 1 * (1 << 32)))

        def serve() -> None:
            while True:
                asked, who = server.recvfrom(1024)
                here = now + time.time() - started
                # No leap second, version 4, mode server; stratum 1, poll 2^6 s, precision 2^-20 s; delay and dispersion of 0.
                head = struct.pack(">BBbbII4s", 4 << 3 | 4, 1, 6, -20, 0, 0, b"TEST")
                server.sendto(head + stamp(here) + asked[40:48] + stamp(here) + stamp(here), who)

        threading.Thread(target=serve, daemon=True).start()

    def lease(self) -> str:
        """The address that the host has."""
        found = re.search(rf"{MAC} (\S+)", (self.folder / "leases").read_text())
        assert found, self.log()
        return found[1]

"""Taps for tests, each in a network namespace of its own, with a raw socket as the host's side of it."""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x2, 0x1000, 0x4000, 0x100
ETHERTYPE = 0x88B5  # for experiments
MAC = bytes.fromhex("020000000001")  # the guest's
HOST = bytes.fromhex("02000000aa01")


class Tap:
    """The queues' descriptors, and a packet socket bound to the interface."""

    def __init__(self, queues: int = 1, mtu: int = 1500) -> None:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        os.unshare(os.CLONE_NEWNET)
        try:
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)
            self.fds = []
            for _ in range(queues):
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
                fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tap0", flags))
                self.fds.append(fd)
            up = f"echo 1 >/proc/sys/net/ipv6/conf/tap0/disable_ipv6; ip link set tap0 mtu {mtu} up"
            subprocess.run(["sh", "-c", up], check=True)
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            self.socket.bind(("tap0", ETHERTYPE))
            self.socket.settimeout(60)
        finally:
            os.setns(before, os.CLONE_NEWNET)
            os.close(before)

    @property
    def option(self) -> str:
        return ":".join(f"fd={fd}" for fd in self.fds)

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)


@contextlib.contextmanager
def tap(queues: int = 1, mtu: int = 1500) -> Iterator[Tap]:
    made = Tap(queues, mtu)
    try:
        yield made
    finally:
        made.close()


def frame(number: int, size: int, to: bytes = MAC, source: bytes = HOST) -> bytes:
    """A frame of tests/native/test_net.c: @size bytes of content in whole words, with their sum."""
    words = [(number * 0x9E3779B97F4A7C15 + i * 0x2545F4914F6CDD1D) & (1 << 64) - 1 for i in range(size // 8)]
    head = to + source + struct.pack(">HH", ETHERTYPE, 0)
    return head + struct.pack(f"<QQ{len(words)}Q", number, sum(words) & (1 << 64) - 1, *words)

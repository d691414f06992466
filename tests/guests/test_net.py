"""Stock guests on the network: a tap through vhost-net."""

from collections.abc import Iterator

import pytest

from host import CLONE, Host
from vm import Guest

TAP = "tap0"
HOST_IP, GUEST_IP = "192.0.2.1", "192.0.2.2"
MAC = "02:00:00:00:00:01"


@pytest.fixture
def network(host: Host) -> Iterator[Host]:
    """The host's side: a tap of several queues, and vhost-net."""
    host.run(["modprobe", "-a", "tun", "vhost_net"])
    host.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap", "multi_queue", "vnet_hdr"])
    host.run(["ip", "addr", "add", f"{HOST_IP}/24", "dev", TAP])
    host.run(["ip", "link", "set", TAP, "up"])
    yield host
    host.run(["ip", "link", "del", TAP])


def test_device_on_vhost(network: Host) -> None:
    """The unit tests of the device, where there is a vhost-net."""
    result = network.run([CLONE / "build/release/vmm/net_tap_test"], timeout=120, check=False)
    text = (result.stdout + result.stderr).decode()
    assert result.rc == 0 and "SKIPPED" not in text, text


def test_tap_with_vhost(network: Host) -> None:
    """A stock driver finds its address, MTU and two pairs of queues, and frames pass by vhost-net."""
    net = f"tap={TAP},vhost=on,queues=2,mac={MAC},mtu=1450"
    with Guest(network, "--cpus", "2", "--net", net, "--memory", "512M", modules=("virtio_net",)).ready() as guest:
        assert guest.sh("cat /sys/class/net/eth0/address") == MAC
        assert guest.sh("cat /sys/class/net/eth0/mtu") == "1450"
        assert guest.sh("ls -d /sys/class/net/eth0/queues/rx-*").count("rx-") == 2
        guest.sh(f"ip addr add {GUEST_IP}/24 dev eth0; ip link set eth0 up")
        assert " 0% packet loss" in guest.sh(f"ping -c 3 {HOST_IP}")
        assert guest.call("stats")["result"]["nets"][0]["vhost"]

"""Hot-plug with Linux's pciehp: a disk comes, is used, goes by consent, again and again; saved and restored."""

import time

import pytest

from host import Host
from vm import Guest


def ports(guest: Guest) -> list[dict]:
    return guest.call("status")["result"]["ports"]


def add(guest: Guest, disk: str, **params: object) -> None:
    guest.call("device-add", f"+{disk}", kind="disk", id="hot", **params)
    guest.sh("n=0; while [ ! -b /dev/vda ] && [ $n -lt 300 ]; do sleep 0.2; n=$((n + 1)); done; [ -b /dev/vda ]")


def remove(guest: Guest) -> None:
    guest.call("device-remove", id="hot")
    end = time.monotonic() + 60
    while ports(guest):
        assert time.monotonic() < end, "the guest does not let it go"
        time.sleep(0.5)
    guest.sh("[ ! -b /dev/vda ]")


@pytest.fixture
def disk(host: Host) -> str:
    host.run(["truncate", "-s", "8M", "/tmp/hot.raw"])
    return "/tmp/hot.raw"


def use(guest: Guest, round_: int) -> None:
    guest.sh(f"echo round {round_} >/tmp/in; dd if=/tmp/in of=/dev/vda bs=512 seek={round_} conv=sync,fsync 2>/dev/null")
    assert guest.sh(f"dd if=/dev/vda bs=512 skip={round_} count=1 iflag=direct 2>/dev/null | head -n 1") == f"round {round_}"


def test_again_and_again(host: Host, disk: str) -> None:
    with Guest(host, "--cpus", "2") as guest:
        guest.ready()
        for round_ in range(10):
            add(guest, disk, port=1 + round_ % 4)
            use(guest, round_)
            remove(guest)
        guest.send("poweroff -f")
        assert guest.wait() == 0


def test_moves(host: Host, disk: str) -> None:
    """The plugged disk goes along with a saved machine, and can be removed where it arrives."""
    state = "/tmp/hot.state"
    with Guest(host) as guest:
        guest.ready()
        add(guest, disk, port=2)
        use(guest, 1)
        guest.call("save", state)
        guest.call("quit")
        assert guest.wait() == 0
    with Guest(host, "--disk", f"path={disk},id=hot,port=2", restore=state) as guest:
        use(guest, 2)
        remove(guest)
        add(guest, disk)
        use(guest, 3)


def test_there_at_boot_and_busy(host: Host, disk: str) -> None:
    """A disk in a port from the start; Linux lets a disk go that is open."""
    with Guest(host, "--disk", f"path={disk},id=hot,port=3") as guest:
        guest.ready()
        use(guest, 1)
        guest.sh("exec 9<>/dev/vda")
        guest.call("device-remove", id="hot")
        end = time.monotonic() + 60
        while ports(guest):
            assert time.monotonic() < end
            time.sleep(0.5)
        guest.sh("[ ! -b /dev/vda ]")

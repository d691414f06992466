"""Linux in trouble: a panic is told and acted on; a watchdog that nobody feeds resets the machine."""

import time

from host import Host
from vm import Guest


def wait_for(guest: Guest, state: str, seconds: float = 60) -> dict:
    end = time.monotonic() + seconds
    while (status := guest.call("status")["result"])["state"] != state:
        assert time.monotonic() < end, status
        time.sleep(0.2)
    return status


def test_panic_pauses(host: Host) -> None:
    with Guest(host, "--on-panic", "pause") as guest:
        guest.ready()
        guest.send("echo c >/proc/sysrq-trigger")
        assert wait_for(guest, "paused")["why"] == "the guest panicked"
        # Its own wish, panic=-1, comes true when it goes on.
        guest.call("resume")
        guest.ready()


def test_watchdog(host: Host) -> None:
    with Guest(host, "--watchdog", "reset") as guest:
        guest.ready()
        assert guest.sh("cat /sys/class/watchdog/watchdog0/bootstatus") == "0"
        guest.sh("watchdog -T 6 -t 1 /dev/watchdog")
        guest.sh("sleep 8")  # it is fed
        # And nobody feeds it while the machine is paused.
        guest.call("pause")
        time.sleep(8)
        guest.call("resume")
        guest.sh("true")
        guest.sh("killall -9 watchdog")
        guest.ready()
        assert guest.sh("cat /sys/class/watchdog/watchdog0/bootstatus") == "32"  # WDIOF_CARDRESET

"""A whole Debian 13 on a disk, as its installer leaves it: shim, GRUB, kernel, systemd, a login on the serial port."""

from contextlib import ExitStack

from host import Host
from uefi import Machine, debian_disk
from vm import Guest


def log_in(guest: Guest) -> Guest:
    """Root's shell on the guest's serial port, for Guest.sh()."""
    process = guest.process
    process.read_until("guest login: ", timeout=600)
    process.write(b"root\n")
    process.read_until("Password: ", timeout=120)
    process.write(b"glint\n")
    process.read_until(r"root@guest:~# ", timeout=120)
    process.write(b"stty -echo; bind 'set enable-bracketed-paste off'; PS1= PS2=\n")
    guest.sh("true")
    return guest


def test_debian(host: Host) -> None:
    """It boots by what shim writes into the variables at its first start, comes up whole, is saved and restored while
    it writes, and powers off by the button."""
    machine = Machine(host, debian_disk())
    with ExitStack() as stack:
        guest = log_in(stack.enter_context(Guest(host, *machine.args, "--rng", direct=False)))
        assert guest.sh("systemctl is-system-running --wait", timeout=300) == "running"
        assert guest.sh("findmnt -no SOURCE /") == "/dev/vda2"
        assert "shimx64.efi" in guest.sh("cat /sys/firmware/efi/efivars/Boot0*-8be4df61-* | tr -d '\\000'")
        guest.sh("dd if=/dev/urandom of=/var/tmp/random bs=1M count=24; sync")
        expected = guest.sh("sha256sum </var/tmp/random").split()[0]
        guest.send("(while [ ! -e /tmp/stop ]; do cp /var/tmp/random /var/tmp/copy; sync; done; touch /tmp/stopped) &")
        for round_ in range(2):
            guest.sh("sleep 2")
            state = f"/tmp/debian-{round_}.state"
            guest.call("save", state)
            guest.process.kill()
            guest.wait()
            guest = stack.enter_context(Guest(host, *machine.args, "--rng", restore=state))
            guest.sh("true")
            host.run(["rm", state])
        guest.sh("touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.2; done", timeout=300)
        assert guest.sh("sha256sum </var/tmp/copy").split()[0] == expected
        assert guest.sh("systemctl is-system-running") == "running"
        guest.call("power-button")
        assert guest.wait(timeout=300) == 0

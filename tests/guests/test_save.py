"""Saving a machine in the middle of disk load and going on in a new process: nothing lost, nothing torn."""

from host import Host
from vm import Guest

ROUNDS = 3
CPUS = 2

# For each CPU: writes random blocks, reads them back past the page cache, compares. /tmp/count is how many were right.
LOAD = (
    "load() { n=0; while [ ! -e /tmp/stop ]; do at=$(($1 * 100 + n % 97)); "
    "dd if=/dev/urandom of=/tmp/out$1 bs=64k count=1 2>/dev/null; "
    "dd if=/tmp/out$1 of=/dev/vda bs=64k seek=$at oflag=direct conv=notrunc 2>/dev/null || echo BAD write $1 $n; "
    "dd if=/dev/vda of=/tmp/in$1 bs=64k skip=$at count=1 iflag=direct 2>/dev/null || echo BAD read $1 $n; "
    "cmp /tmp/out$1 /tmp/in$1 || echo BAD data $1 $n; "
    "n=$((n + 1)); echo $n >/tmp/count$1; done; touch /tmp/done$1; }"
)


def counts(guest: Guest) -> list[int]:
    return [int(n) for n in guest.sh("cat " + " ".join(f"/tmp/count{cpu}" for cpu in range(CPUS))).split()]


def test_save_under_load(host: Host) -> None:
    disk = "/tmp/save.raw"
    host.run(["truncate", "-s", "32M", disk])
    args = ["--cpus", str(CPUS), "--disk", f"path={disk},queues={CPUS}", "--rng"]
    guest = Guest(host, *args)
    try:
        guest.ready()
        guest.sh(LOAD)
        for cpu in range(CPUS):
            guest.sh(f"(load {cpu}) & sleep 1")
        before = counts(guest)
        uptime = float(guest.sh("cut -d' ' -f1 /proc/uptime"))
        for round_ in range(ROUNDS):
            state = f"/tmp/save-{round_}.state"
            guest.call("save", state)
            assert guest.state() == "saved"
            if round_ == 0:
                # It may also just go on, as if nothing had been.
                guest.call("resume")
                guest.sh("true")
                guest.call("save", state)
            # What was printed before the save but read by nobody yet must not be lost either.
            guest.call("quit")
            assert guest.wait() == 0
            assert b"BAD" not in guest.process.stdout
            guest = Guest(host, *args, restore=state)
            now = counts(guest)
            assert all(new >= old for new, old in zip(now, before)), (now, before)
            guest.sh("sleep 2")
            later = counts(guest)
            assert all(new > old for new, old in zip(later, now)), (later, now)
            before = later
        # Time went on without a jump back, and interrupts, timers and both CPUs work.
        assert float(guest.sh("cut -d' ' -f1 /proc/uptime")) > uptime
        assert guest.sh("nproc") == str(CPUS)
        guest.sh("touch /tmp/stop; while [ ! -e /tmp/done0 ] || [ ! -e /tmp/done1 ]; do sleep 0.2; done")
        assert b"BAD" not in guest.process.stdout
        guest.send("poweroff -f")
        assert guest.wait() == 0
    finally:
        guest.__exit__()


def test_a_state_fits_its_machine_only(host: Host) -> None:
    """Restoring into another machine is refused by name; a damaged state too; a taken disk too."""
    disk, state = "/tmp/fit.raw", "/tmp/fit.state"
    host.run(["truncate", "-s", "1M", disk])
    args = ["--cpus", "1", "--disk", f"path={disk}"]
    with Guest(host, *args) as guest:
        guest.ready()
        guest.call("save", state)

        def refusal(*other: str, restore: str = state) -> str:
            with Guest(host, *other, restore=restore) as wrong:
                assert wrong.wait() == 1
                return wrong.process.stderr.decode()

        assert "2 vCPUs" in refusal("--cpus", "2", "--disk", f"path={disk}") or "vCPUs" in refusal("--cpus", "2")
        assert "memory" in refusal(*args, "--memory", "512M")
        assert "the saved machine has 'disk:disk0'" in refusal("--cpus", "1")
        host.run(["sh", "-c", f"head -c 100000 {state} >{state}.cut; cp {state} {state}.bad"])
        host.run(["sh", "-c", f"printf X | dd of={state}.bad bs=1 seek=200000 conv=notrunc status=none"])
        assert "ends" in refusal(*args, restore=state + ".cut")
        assert refusal(*args, restore=state + ".bad")
        # The machine goes on here; its disk is then taken for everyone else.
        guest.call("resume")
        assert "in use" in refusal(*args) or "another process" in refusal(*args)
        guest.send("poweroff -f")
        assert guest.wait() == 0

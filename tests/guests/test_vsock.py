"""vsock and console ports with the drivers of a stock Debian kernel: both ways, many at once, and over a move."""

from host import CLONE, Host
from initrd import busybox_initrd
from vm import CMDLINE, INIT, VMLINUZ, Guest

TALK = CLONE / "build/release/tests/guests/talk"
PATH = "/tmp/guest.vsock"
PORT = "/tmp/guest.port"
MODULES = ["vmw_vsock_virtio_transport", "virtio_console"]
DEVICES = ["--vsock", f"path={PATH},cid=42", "--console-port", f"name=org.glint.test,path={PORT}"]


def start(host: Host) -> Guest:
    initrd = busybox_initrd(INIT, modules=MODULES, files={"bin/talk": TALK.read_bytes()})
    args = ["--kernel", VMLINUZ, "--initrd", initrd, "--cmdline", CMDLINE, *DEVICES]
    return Guest(host, *args, direct=False)


def talk_by_port(host: Host) -> None:
    """A client of the console port, which the guest echoes: it comes, gets all its bytes back, and goes."""
    result = host.run([str(TALK), "send", PORT, "256"], timeout=120)
    assert "TALKED 256 KiB" in result.text


def test_vsock(host: Host) -> None:
    echo = host.spawn([str(TALK), "echo", f"{PATH}_1024"])
    guest = start(host)
    try:
        echo.read_until("LISTENING", timeout=30)
        guest.ready()
        # To the host: one long, many short ones, and to where nobody listens.
        assert "TALKED 4096 KiB" in guest.sh("talk send vsock:2:1024 4096")
        many = guest.sh("for i in 1 2 3 4 5 6 7 8; do talk send vsock:2:1024 64 & done; wait")
        assert many.count("TALKED 64 KiB") == 8, many
        assert "reset" in guest.sh("talk send vsock:2:1025 64 || true").lower()
        # To the guest.
        guest.sh("talk echo vsock:-1:52 >/tmp/echo & while ! grep LISTENING /tmp/echo; do sleep 0.1; done")
        result = host.run([str(TALK), "send", PATH, "4096", "CONNECT 52"], timeout=120)
        assert "TALKED 4096 KiB" in result.text
        refused = host.run([str(TALK), "send", PATH, "64", "CONNECT 53"], timeout=60, check=False)
        assert refused.rc == 1
        # The console port, by its name; one client behind another.
        port = guest.sh("grep -lx org.glint.test /sys/class/virtio-ports/*/name | cut -d/ -f5")
        guest.send(f"while :; do cat 0<>/dev/{port} >&0; sleep 0.1; done 2>/dev/null &")
        talk_by_port(host)
        talk_by_port(host)
        # A move ends connections, and the guest knows; what listens in it goes on, as does its way out.
        guest.sh("talk hold vsock:2:1024 >/tmp/hold 2>&1 & while ! grep HOLDING /tmp/hold; do sleep 0.1; done")
        guest.call("save", "/tmp/vsock.state")
        guest.call("quit")
        assert guest.wait() == 0
        guest = Guest(host, *DEVICES, restore="/tmp/vsock.state")
        guest.sh("for i in $(seq 300); do grep -q ENDED /tmp/hold && break; sleep 0.1; done; grep ENDED /tmp/hold")
        assert "TALKED 256 KiB" in guest.sh("talk send vsock:2:1024 256")
        result = host.run([str(TALK), "send", PATH, "256", "CONNECT 52"], timeout=120)
        assert "TALKED 256 KiB" in result.text
        talk_by_port(host)
        guest.send("poweroff -f")
        assert guest.wait() == 0
    finally:
        guest.__exit__()
        echo.kill()

"""Stock programs on the display, driven by keyboard and pointer, in one boot: OVMF's shell starts GRUB, and that Debian's
graphical installer, which is seen and driven over VNC.
"""

import re

from display import Alphabet, Picture, Viewer, wait_for
from host import Host
from rfb import DOWN
from uefi import Machine, installer_disk
from vm import Guest

WIDTH, HEIGHT = 800, 600

# Of the installer's theme.
BACKGROUND, SELECTED, PAPER = (237, 233, 227), (39, 90, 119), (255, 255, 255)


def press(guest: Guest, *keys: str) -> None:
    for key in keys:
        guest.call("send-keys", keys=key)


def selection(picture: Picture) -> range:
    """The rows of the installer's list that are selected: at a place right of all words."""
    runs = [run for run in picture.runs(600, SELECTED) if len(run) >= 15 and run.start > 180]
    return runs[0] if len(runs) == 1 else range(0)


def use_shell(host: Host, guest: Guest) -> Alphabet:
    """OVMF's shell is on the display, in the mode that was asked for, in the words that the serial port has; its keyboard
    is the PS/2 one."""
    guest.process.read_until("seconds to skip", timeout=240)
    press(guest, "esc")
    guest.process.read_until("Shell> ", timeout=60)
    press(guest, "v", "e", "r", "enter")
    guest.process.read_until("Shell> ", timeout=60)
    complete = guest.process.stdout.decode(errors="replace").rpartition("\n")[0]
    words = re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r", "", complete)

    def told(picture: Picture) -> bool:
        text = Alphabet(picture, words).text(picture)
        return "Shell> ver" in text and text[-1] == "Shell>"

    shell = wait_for(host, guest, "shell", told, 120)
    assert (shell.width, shell.height) == (WIDTH, HEIGHT)
    alphabet = Alphabet(shell, words)
    version = [line for line in alphabet.text(shell) if line.startswith("UEFI ")]
    assert len(version) == 4 and version[:2] == version[2:] and words.count(version[0]) == 2, alphabet.text(shell)
    return alphabet


def use_grub(host: Host, guest: Guest, alphabet: Alphabet) -> None:
    """GRUB's menu, which is on the display only; it is left with the installer's entry chosen."""
    press(guest, "f", "s", "0", "shift-semicolon", "g", "r", "u", "b", "enter")
    menu = wait_for(host, guest, "grub", lambda p: alphabet.highlighted(p) == "another", 120)
    assert any("GRUB" in line and "version 2." in line for line in alphabet.text(menu)), alphabet.text(menu)
    press(guest, "down")
    wait_for(host, guest, "grub-down", lambda p: alphabet.highlighted(p) == "Debian installer", 120)


def use_installer(host: Host, guest: Guest) -> None:
    """A viewer picks a language by keyboard and by pointer."""

    def asks(picture: Picture) -> bool:
        return picture.at(10, 90) == BACKGROUND and len(selection(picture)) > 0 and PAPER == picture.at(700, 500)

    first = wait_for(host, guest, "installer", asks, 900, pause=5)
    assert (first.width, first.height) == (WIDTH, HEIGHT)
    viewer = Viewer(host, guest)
    rfb = viewer.rfb
    was = selection(first)
    rfb.key(DOWN)
    moved = wait_for(host, guest, "installer-down", lambda p: selection(p).start >= was.stop, 120)
    # Two lines further, by the tablet: the row under the pointer becomes the selected one.
    target = selection(moved).stop + 35
    rfb.click(100, target)
    picked = wait_for(host, guest, "installer-click", lambda p: target in selection(p), 120)
    # The pointer is drawn where the viewer's is: black or white upon the selection's colour, nothing else changed
    # in a line's distance.
    arrow = {picked.at(100 + dx, target + dy) for dx in range(1, 4) for dy in range(4, 8)}
    assert arrow & {(0, 0, 0), (255, 255, 255)}, arrow
    viewer.sees("installer-viewer", range(target - 20, target + 20))
    guest.process.kill()
    assert viewer.ended()


def test_shell_grub_installer(host: Host) -> None:
    machine = Machine(host, installer_disk())
    args = ["1G" if word == "512M" else word for word in machine.args]
    with Guest(host, *args, "--display", f"{WIDTH}x{HEIGHT}", direct=False) as guest:
        alphabet = use_shell(host, guest)
        use_grub(host, guest, alphabet)
        press(guest, "enter")
        use_installer(host, guest)

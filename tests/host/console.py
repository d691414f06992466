"""A command or a shell on a freshly booted nested host, on this terminal. Run by tests/host/nested."""

import os
import select
import sys
import termios
import threading
import tty

from host import NestedHost, Process


def show(process: Process, done: int) -> None:
    """Copies its output to this terminal until it ends."""
    shown_out = shown_err = 0
    while True:
        with process._changed:
            process._changed.wait_for(
                lambda: len(process._stdout) > shown_out or len(process._stderr) > shown_err or not process.running
            )
        running = process.running
        out, err = process.stdout[shown_out:], process.stderr[shown_err:]
        os.write(1, out)
        os.write(2, err)
        shown_out += len(out)
        shown_err += len(err)
        if not running and not out and not err:
            os.close(done)
            return


def converse(process: Process) -> int:
    done, end = os.pipe()
    threading.Thread(target=show, args=(process, end), daemon=True).start()
    watched = [0, done]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if done in ready:
            return process.wait()
        if data := os.read(0, 65536):
            process.write(data)
        else:
            process.close_stdin()
            watched = [done]


def main() -> int:
    host = NestedHost()
    try:
        print(f"nested host: up after {host.boot_seconds:.1f} s", file=sys.stderr)
        command = sys.argv[1:] or ["bash", "-i"]
        if not os.isatty(0):
            return converse(host.spawn(command))
        size = os.get_terminal_size(0)
        before = termios.tcgetattr(0)
        tty.setraw(0)
        try:
            return converse(host.spawn(command, env={"TERM": "xterm"}, size=(size.lines, size.columns)))
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
    finally:
        host.close()


sys.exit(main() & 0xFF)

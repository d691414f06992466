"""A guest's shell on its serial port: for tests and benchmarks, whichever monitor runs the guest."""

import secrets

from host import Process

# Runs each line that comes as a command of its shell: no prompt, no echo, so what is read is what was printed.
INIT = """
stty -echo
echo SHELL READY
while read -r line; do eval "$line"; done
"""


class Shell:
    """The monitor's process, whose standard streams are the guest's first serial port."""

    process: Process

    def await_shell(self, timeout: float) -> None:
        self.process.read_until("SHELL READY", timeout=timeout)

    def send(self, command: str) -> None:
        self.process.write(command.encode() + b"\n")

    def sh(self, command: str, timeout: float = 120) -> str:
        """Runs a command line in the guest's shell and returns what it printed. Fails when the command fails."""
        mark = secrets.token_hex(4)
        self.send(f"{{ {command}; }} 2>&1; echo '<{mark}'$?'>'")
        text = self.process.read_until(rf"<{mark}\d+>", timeout=timeout).decode(errors="replace").replace("\r", "")
        output, _, status = text.rpartition(f"<{mark}")
        assert status == "0>", f"in the guest: {command}: {status} {output}"
        return output.strip("\n")

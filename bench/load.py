"""Load by wrk, and what it costs a process: user and system CPU time divided by requests answered.

That figure holds on a noisy machine, where requests per second do not.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import LOAD_CORE, CannotMeasure, plain_environment

CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Party:
    """Somebody who forwards to the upstream; ``pid`` is the root of its process tree."""

    name: str
    pid: int
    port: int  # on 127.0.0.1
    path: str
    headers: tuple[str, ...] = field(default=(), repr=False)  # "Name: value"; one is a key
    scheme: str = "http"
    script: str = ""  # what wrk asks for, if not always for ``path``: a file beside this one
    arguments: tuple[str, ...] = field(default=(), repr=False)  # of the script

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk has seen. ``bad`` answers are other than 2xx or 3xx; ``errors`` is its line on socket errors."""

    requests: int
    per_second: float
    p99: str
    bad: int
    errors: str


@dataclass(frozen=True, slots=True)
class Measurement:
    cpu_us: float  # for each request
    load: Load


def parse_wrk(output: str) -> Load:
    """Raises CannotMeasure for what is not wrk's report with ``--latency``."""
    requests = re.search(r"(\d+) requests in", output)
    per_second = re.search(r"Requests/sec:\s+(\S+)", output)
    p99 = re.search(r"\n\s+99%\s+(\S+)", output)
    if requests is None or per_second is None or p99 is None:
        raise CannotMeasure(f"wrk has not reported what was expected: {output.strip()[-300:]}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: (.*)", output)
    return Load(int(requests[1]), float(per_second[1]), p99[1], int(bad[1]) if bad else 0, errors[1] if errors else "")


def run_wrk(party: Party, seconds: int, connections: int = CONNECTIONS, core: int | None = LOAD_CORE) -> Load:
    """As many requests as ``connections`` can ask for one after another. Raises CannotMeasure, also when an answer is
    other than 2xx or 3xx (of which nobody here makes any)."""
    command = [
        *(() if core is None else ("taskset", "-c", str(core))),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
    ]
    for header in party.headers:
        command += ["-H", header]
    if party.script:
        command += ["-s", str(Path(__file__).with_name(party.script))]
    done = subprocess.run(
        [*command, party.url, *(("--", *party.arguments) if party.arguments else ())],
        capture_output=True,
        text=True,
        env=plain_environment(),
    )
    if done.returncode != 0:
        raise CannotMeasure(f"wrk fails at {party.name}: {(done.stderr or done.stdout).strip()[-300:]}")
    load = parse_wrk(done.stdout)
    if load.bad or not load.requests:
        raise CannotMeasure(f"{party.name} answered other than 2xx, or not at all: the run does not count")
    return load


def measure(party: Party, seconds: int, connections: int = CONNECTIONS) -> Measurement:
    """One second to warm up, then ``seconds`` that count. Raises CannotMeasure."""
    run_wrk(party, 1, connections)
    before = cpu_s(party.pid)
    load = run_wrk(party, seconds, connections)
    spent_s = cpu_s(party.pid) - before
    return Measurement(1e6 * spent_s / load.requests, load)


def cpu_s(pid: int) -> float:
    """User and system CPU time of a process tree so far."""
    ticks = 0
    for each in _tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended meanwhile
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> list[int]:
    pids = [pid]
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                pids += _tree(int(child))
    except OSError:
        pass
    return pids


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident set and proportional set of a process, in MB of 2**20 bytes."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) / 1024
    return sizes["Rss"], sizes["Pss"]

"""A mixed load for a long time, and what the gateway's processes take meanwhile: ``make soak``, or
``python -m tests.faults.soak --minutes 10``.

Requests of every kind (one target of four flaps), cached ones over ever new paths, uploads, slow readers, WebSockets
that come and go, tasks, changes of the configuration. Memory and descriptors of every process are compared between the
first third and the last: growth fails the run, and so does a wrong answer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

import httpx
from websockets.sync.client import connect

from tests.faults.load import Load, tally
from tests.faults.targets import TargetProcess
from tests.gateway_process import GatewayProcess
from tests.gateway_traffic import NO_LIMIT, create, new_key, panel_api

SAMPLE_S = 5.0
GROWTH_MIB, GROWTH_SHARE, GROWTH_DESCRIPTORS = 6.0, 1.1, 40
_BODY = os.urandom(512 * 1024)


class Soak:
    """One gateway of two workers, its targets, and those who use it."""

    def __init__(self, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        self.targets = [TargetProcess(directory, number) for number in range(4)]
        for target in self.targets:
            stack.callback(target.end)
        self.gateway = GatewayProcess(directory / "var", environment={"WORKERS": "2", "CACHE_BYTES": str(4 * 2**20)})
        stack.callback(self.gateway.end)
        self.gateway.start()
        self.echo = TargetProcess(directory, 9, "bench.servers", "echo")
        stack.callback(self.echo.end)
        self.key = self._configure()
        self.counts: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.samples: dict[str, list[tuple[float, int]]] = {}

    def _configure(self) -> str:
        first = f"http://127.0.0.1:{self.targets[0].port}"
        with panel_api(self.gateway) as admin:
            for name, policies in (
                ("orders", {"loadBalancing": {"strategy": "peak_ewma"}, "retries": {"attempts": 2}}),
                ("cached", {"caching": {"defaultTtlS": 60}, "compression": {"minBytes": 0}}),
            ):
                create(admin, "/admin/routing/services", name=name, requestTimeoutMs=2000, **policies)
                versions = f"/admin/routing/services/{name}/versions"
                create(admin, versions, version="v1", url=first, weight=100)
                for target in self.targets:
                    create(admin, f"{versions}/v1/targets", url=f"http://127.0.0.1:{target.port}")
            create(admin, "/admin/routing/services", name="echo", defaultUrl=f"http://127.0.0.1:{self.echo.port}")
            application = create(
                admin, "/admin/access/applications", name="soak", allowedServices=["*"], rateLimit=NO_LIMIT
            )
            return str(new_key(admin, application["id"])["key"])

    # --- those who use it ---
    def users(self) -> list[threading.Thread]:
        kinds: tuple[Callable[[Random], None], ...] = (
            self._read_cached, self._upload, self._read_slowly, self._talk, self._change, self._flap,
        )  # fmt: skip
        threads = [
            threading.Thread(target=self._repeat, args=(kind, seed), daemon=True) for seed, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _repeat(self, use: Callable[[Random], None], seed: int) -> None:
        random = Random(seed)
        while not self.stopped.wait(0.02):
            try:
                use(random)
                self.counts[use.__name__] += 1
            except Exception as error:
                self.counts[f"{use.__name__}: {type(error).__name__}"] += 1
                self.stopped.wait(0.5)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.gateway.url, headers={"X-API-Key": self.key, "X-Id": "s"}, timeout=20)

    def _read_cached(self, random: Random) -> None:
        with self._client() as client:
            for _ in range(50):
                client.get(f"/api/v1/cached/{random.randrange(20_000)}")

    def _upload(self, random: Random) -> None:
        with self._client() as client:
            client.put("/api/v1/orders/upload", content=_BODY[: random.randrange(len(_BODY))])

    def _read_slowly(self, random: Random) -> None:
        with self._client() as client, client.stream("GET", "/api/v1/orders/slow") as answer:
            for _ in answer.iter_raw(10):
                time.sleep(0.01)

    def _talk(self, random: Random) -> None:
        url = self.gateway.url.replace("http", "ws") + "/api/v1/echo/chat"
        with connect(url, additional_headers={"X-API-Key": self.key}, compression=None, proxy=None) as socket:
            for _ in range(20):
                socket.send("x" * random.randrange(1, 100))
                socket.recv(timeout=10)

    def _change(self, random: Random) -> None:
        with panel_api(self.gateway, Prefer="wait=0") as admin:
            admin.patch("/admin/routing/services/orders", json={"description": f"change {random.random()}"})
        self.stopped.wait(1.0)

    def _flap(self, random: Random) -> None:
        self.targets[0].be("flapping")
        self.stopped.wait(10.0)
        self.targets[0].be("well")
        self.stopped.wait(10.0)

    # --- what it takes ---
    def sample(self) -> None:
        page = os.sysconf("SC_PAGESIZE") / 2**20
        for name, pid in self.gateway.children().items():
            with contextlib.suppress(OSError):
                memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
                descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                self.samples.setdefault(f"{name} ({pid})", []).append((memory, descriptors))

    def growth(self) -> list[str]:
        """What has grown between the first third (after a warm-up) and the last, in words."""
        found = []
        for name, samples in self.samples.items():
            third = len(samples) // 3
            before, after = samples[third // 2 : third + 1], samples[-max(third, 1) :]
            memory = [statistics.median(each[0] for each in part) for part in (before, after)]
            descriptors = [statistics.median(each[1] for each in part) for part in (before, after)]
            line = f"{name:24} {memory[0]:7.1f} to {memory[1]:7.1f} MiB"
            line += f"  {descriptors[0]:5.0f} to {descriptors[1]:5.0f} descriptors"
            grows = (
                memory[1] > memory[0] * GROWTH_SHARE + GROWTH_MIB
                or descriptors[1] > descriptors[0] + GROWTH_DESCRIPTORS
            )
            print(f"  {'grows' if grows else 'steady':7} {line}")
            if grows:
                found.append(line)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    with ExitStack() as stack:
        soak = Soak(stack)
        load = Load(int(soak.gateway.environment["PORT"]), "/api/v1/orders/1", soak.key, per_second=200).start()
        users = soak.users()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            time.sleep(min(SAMPLE_S, max(end - time.monotonic(), 0.1)))
            soak.sample()
            print(
                f"\r  {max(0.0, end - time.monotonic()):4.0f} s left, {len(load.outcomes):,} requests told apart",
                end="",
                flush=True,
            )
        print()
        soak.stopped.set()
        outcomes = load.stop()
        for user in users:
            user.join(30)
        wrong = [outcome for outcome in outcomes if not outcome.is_right or outcome.ending == "silent"]
        print(f"  told apart: {dict(tally(iter(outcomes)).most_common())}")
        print(f"  beside them: {dict(soak.counts.most_common())}")
        grown = soak.growth()
    if wrong or grown:
        sys.exit(f"soak: {len(wrong)} wrong answers, {len(grown)} processes grow")
    print(f"soak: {minutes:g} minutes without growth or a wrong answer")


if __name__ == "__main__":
    main()

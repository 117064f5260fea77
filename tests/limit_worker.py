"""A process that charges one limit in Redis with several clients until it has been refused often enough.

``python -m tests.limit_worker`` with a line of JSON on standard input: url, key, algorithm, limit, mode, clients, asks,
dies (it kills itself in the middle). Says that it is connected, begins with the next line, and writes how many were
admitted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import orjson
import uvloop

from access.limits.charges import Charge, Verdict, compiled
from access.limits.shared.limits import SharedLimits
from access.policies import LimitRule
from tests.shared_limits import until_up


class Client:
    """Asks, one at a time, as often as it was told."""

    def __init__(self, limits: SharedLimits, charge: Charge, asks: int) -> None:
        self._limits, self._charge, self._left = limits, charge, asks
        self.admitted = 0
        self.done = asyncio.get_running_loop().create_future()

    def ask(self) -> None:
        if not self._left:
            self.done.set_result(None)
            return
        self._left -= 1
        verdict = None
        if self._charge.policy.mode == "leased":
            verdict = self._limits.leased(self._charge, time.monotonic())
        if verdict is None:
            self._limits.strict([self._charge], self._judged)
        else:
            asyncio.get_running_loop().call_soon(self._judged, [verdict])

    def _judged(self, verdicts: list[Verdict] | None) -> None:
        assert verdicts is not None, "Redis is away"
        self.admitted += verdicts[0].allowed
        self.ask()


async def main(told: dict[str, Any]) -> None:
    made = LimitRule(limit=told["limit"], algorithm=told["algorithm"], window_s=2_678_400, mode=told["mode"])
    charge = Charge(compiled(told["key"], "test", made), "bucket", 1)
    limits = SharedLimits(told["url"], wait_s=10.0, digest_key=b"k")
    await until_up(limits)
    print("connected", flush=True)
    sys.stdin.readline()
    clients = [Client(limits, charge, told["asks"]) for _ in range(told["clients"])]
    for client in clients:
        client.ask()
    await asyncio.gather(*(client.done for client in clients))
    print(sum(client.admitted for client in clients), flush=True)
    if told["dies"]:
        os.kill(os.getpid(), signal.SIGKILL)
    await limits.close()


if __name__ == "__main__":
    uvloop.run(main(orjson.loads(sys.stdin.readline())))

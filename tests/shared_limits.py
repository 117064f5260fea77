"""Helpers for tests of limits that workers count together."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import uvloop

from access.limits.charges import Charge, LimitPolicy, Verdict, compiled
from access.limits.shared.limits import LEASE_S, SharedLimits
from access.policies import LimitRule

PATIENCE_S = 10.0


def rule(limit: int = 10, algorithm: str = "token_bucket", **more: Any) -> LimitPolicy:
    """A policy that has never been charged before."""
    made = LimitRule(limit=limit, algorithm=algorithm, **({"window_s": 60} | more))  # type: ignore[arg-type]
    return compiled(f"lim_{secrets.token_hex(6)}", "test", made)


def ask(limits: SharedLimits, *charges: Charge) -> asyncio.Future[list[Verdict] | None]:
    future: asyncio.Future[list[Verdict] | None] = asyncio.get_running_loop().create_future()
    limits.strict(charges, future.set_result)
    return future


async def admitted(limits: SharedLimits, charge: Charge, times: int) -> int:
    """How many of so many at once."""
    answers = await asyncio.gather(*(ask(limits, charge) for _ in range(times)))
    return sum(1 for verdicts in answers if verdicts is not None and verdicts[0].allowed)


async def until_up(limits: SharedLimits) -> None:
    await until(lambda: limits.is_up, "Redis is used")


async def until(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)
    assert holds(), what


def figures(limits: SharedLimits) -> dict[str, float]:
    told = {name.split("_")[3]: value for name, labels, value in limits.counters() if not labels}
    return told | {labels["reason"]: value for _, labels, value in limits.counters() if labels}


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, on the event loop of workers."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def workers(
    url: str, number: int = 1, *, wait_s: float = 5.0, lease_s: float = LEASE_S
) -> AsyncIterator[Sequence[SharedLimits]]:
    """As many workers as needed, which are all connected."""
    made = [SharedLimits(url, wait_s=wait_s, digest_key=b"k", lease_s=lease_s) for _ in range(number)]
    try:
        for each in made:
            await until_up(each)
        yield made
    finally:
        for each in made:
            await each.close()

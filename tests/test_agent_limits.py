"""What the agent keeps of what its workers count against limits (A10, A11)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from access.models import LimitUse, LimitViolation, QuotaUse
from core.faults import InternalFault
from tests.agents import Bench, Play, on_both_databases, play_in


@pytest.fixture
def play(tmp_path: Path, settings: Any) -> Play:
    return play_in(tmp_path, settings)


def row(subject: str, cost: int) -> list[Any]:
    return ["default", "lim_1", subject, "2026-11", cost]


@on_both_databases
@pytest.mark.usefixtures("database")
def test_each_worker_hears_what_all_have_used(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, first), bench.link(1) as second:

            async def tell(link: Any, *rows: list[Any]) -> list[int]:
                used: list[int] = (await link.call("quotas", {"rows": list(rows)}, 10.0))["used"]
                return used

            assert await tell(first, row("a", 0), row("b", 0)) == [0, 0]
            answers = await asyncio.gather(
                *(tell(link, row("a", 2), row("b", 1)) for link in (first, second) for _ in range(5))
            )
            assert max(answers) == [20, 10]
            assert await tell(second, row("a", 0), row("c", 3)) == [20, 3]
        assert await bench.do(lambda: sorted(QuotaUse.objects.values_list("subject", "used"))) == [
            ("a", 20),
            ("b", 10),
            ("c", 3),
        ]

    play(scenario)


@pytest.mark.django_db(transaction=True)
def test_uses_and_refusals_of_all_workers_are_written_down(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, first), bench.link(1) as second:
            for link in (first, second):
                link.send({"type": "limit_uses", "rows": [["lim_1", "key:a", 3, 1, 4, False]]})
                link.send(
                    {"type": "violations", "rows": [["", "lim_1", "burst", "key:a", "app_1", "192.0.2.1", 1, True]]}
                )

            async def refused() -> int:
                return await bench.do(lambda: sum(LimitViolation.objects.values_list("refused", flat=True)))

            async with asyncio.timeout(20):
                while await refused() < 2 or not await bench.do(LimitUse.objects.exists):
                    await asyncio.sleep(0.05)
        (use,) = await bench.do(lambda: list(LimitUse.objects.values("subject", "admitted", "refused", "used")))
        assert use == {"subject": "key:a", "admitted": 6, "refused": 2, "used": 4}, "both run in one process here"

    play(scenario)


@pytest.mark.django_db(transaction=True)
def test_while_quotas_cannot_be_stored_workers_are_told_so(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link):
            await bench.do(rename, "gateway_quota_use", "elsewhere")
            try:
                with pytest.raises(InternalFault) as fault:
                    await link.call("quotas", {"rows": [row("a", 1)]}, 10.0)
                assert fault.value.code == "dependency_unavailable"
            finally:
                await bench.do(rename, "elsewhere", "gateway_quota_use")
            assert (await link.call("quotas", {"rows": [row("a", 1)]}, 10.0))["used"] == [1]

    play(scenario)


def rename(table: str, to: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {to}")

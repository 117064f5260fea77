"""From an admin's purge to the workers of a host: at once, after an outage of the agent, after a restored backup."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from core.revisions import Actor
from core.wire import Message
from gateway_project.dataplane.agent_link import AgentLink
from routing.cache.dropping import Rule
from routing.cache.purges import PurgeBook
from routing.cache_purges import MOST_TOLD, purge_cache, purges_after
from routing.models import CachePurge
from tests.agents import Bench, Play, on_both_databases, play_in
from tests.links import until

ANN = Actor("user", "1", "ann")


@pytest.fixture
def play(database: str, tmp_path: Path, settings: Any) -> Play:
    return play_in(tmp_path, settings)


def purge(kind: str, value: str = "") -> int:
    return purge_cache(kind=kind, value=value, actor=ANN, source="api").number


class Worker:
    """What the cache of a worker does with the news."""

    def __init__(self, link: AgentLink) -> None:
        self.book = PurgeBook()
        self.dropped: list[Rule] = []
        self.messages: list[Message] = []
        link.on("purges", self._take)

    def _take(self, message: Message) -> None:
        self.messages.append(message)
        self.dropped += self.book.take(message)


@on_both_databases
def test_workers_hear_of_purges_and_of_those_before_they_came(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.do(purge, "tag", "early")
        async with bench.joined() as (_, link):
            worker = Worker(link)
            await until(lambda: link.has_snapshot)
            number = await bench.do(purge, "tag", "late")
            await until(lambda: worker.book.number == number)
            assert worker.dropped[-1] == Rule("tag", "late")
            async with bench.link(1) as second:
                other = Worker(second)
                await bench.do(purge, "all")
                await until(lambda: other.dropped[-1:] == [Rule("all")] == worker.dropped[-1:])

    play(scenario)


@on_both_databases
def test_what_was_purged_while_the_agent_was_away_is_told_when_it_is_back(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with AsyncExitStack() as links:
            async with bench.agent():
                worker = Worker(await links.enter_async_context(bench.link()))
                first = await bench.do(purge, "tag", "one")
                await until(lambda: worker.book.number == first)
            second = await bench.do(purge, "tag", "two")
            async with bench.agent():
                await until(lambda: worker.book.number == second)
                assert worker.dropped[-1] == Rule("tag", "two")

    play(scenario)


@on_both_databases
def test_a_restored_backup_empties_every_cache(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link):
            worker = Worker(link)
            for value in ("one", "two"):
                number = await bench.do(purge, "tag", value)
            await until(lambda: worker.book.number == number)
            await bench.do(CachePurge.objects.filter(number=number).delete)
            await until(lambda: worker.dropped[-1:] == [Rule("all")])
            assert worker.book.number == number - 1

    play(scenario)


@pytest.mark.django_db(transaction=True)
def test_purges_at_the_same_moment_get_numbers_one_after_the_other() -> None:
    def work(number: int) -> int:
        try:
            return purge("tag", f"t{number}")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(work, range(40)))
    assert sorted(numbers) == list(range(1, 41))
    assert purges_after(38)[1] == sorted(
        (number, "tag", f"t{place}") for place, number in enumerate(numbers) if number > 38
    )


@pytest.mark.django_db
def test_of_very_many_purges_the_oldest_count_as_everything() -> None:
    rows = [
        CachePurge(number=number, kind="tag", value=f"t{number}", actor_kind="user", source="api")
        for number in range(1, MOST_TOLD + 12)
    ]
    CachePurge.objects.bulk_create(rows)
    latest, told = purges_after(0)
    assert (latest, len(told), told[0]) == (MOST_TOLD + 11, MOST_TOLD + 1, (11, "all", ""))

"""The configuration feed from a committed change to a worker's snapshot, on the real databases."""

import asyncio
import os
import stat
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from django.conf import settings as django_settings
from django.contrib.sessions.models import Session
from django.db import transaction
from django.utils import timezone

from access.models import Application, EndpointWhitelist
from core.models import ConfigChange, ConfigRevision, GatewayNode
from core.propagation import pending_nodes
from core.revisions import revision
from core.wire import encode
from gateway_project.agent.changes import everything
from gateway_project.agent.database import DatabaseThread
from gateway_project.agent.writer import clean
from gateway_project.dataplane.agent_link import AgentLink
from keys.models import ApiKey, KeyCaller
from routing.models import Route, ServiceConfig, ServiceVersion
from tests.agents import Bench, Play, on_both_databases, play_in
from tests.links import until
from tests.random_config import ACTOR, RandomConfig, delete, new_key
from tests.snapshots import answers, built

pytestmark = [on_both_databases, pytest.mark.usefixtures("database")]


@pytest.fixture
def play(tmp_path: Path, settings: Any) -> Play:
    return play_in(tmp_path, settings)


def add(*rows: Any) -> int:
    """Save new rows in one revision; its number."""
    with revision(actor=ACTOR, source="command") as change:
        for row in rows:
            change.save_new(row)
    return change.number


def change(row: Any, **values: Any) -> int:
    with revision(actor=ACTOR, source="command") as writer:
        before = row.recorded()
        for name, value in values.items():
            setattr(row, name, value)
        writer.save(row, before)
    return writer.number


def remove(row: Any) -> int:
    with revision(actor=ACTOR, source="command") as writer:
        delete(writer, row)
    return writer.number


def new_service(name: str = "orders", **fields: Any) -> ServiceConfig:
    return ServiceConfig(name=name, default_url="http://10.0.0.1:8000", **fields)


def latest() -> tuple[int, str]:
    newest = ConfigRevision.objects.first()
    return (newest.number, newest.token) if newest else (0, "")


def fresh_answers() -> dict[str, Any]:
    """What a snapshot made of the whole database decides."""
    _, compiled = everything()
    assert not compiled.problems
    return answers(built({kind: map(orjson.loads, each.values()) for kind, each in compiled.records.items()}))


async def at(link: AgentLink, number: int) -> None:
    await until(lambda: link.snapshot.revision == number)


async def at_position(link: AgentLink, position: tuple[int, str]) -> None:
    await until(lambda: (link.snapshot.revision, link.snapshot.token) == position)


# --- the way of a change -------------------------------------------------------------------------------------------
def test_a_change_reaches_a_joined_worker_and_its_node_tells_so(play: Play, settings: Any) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link):
            number = await bench.do(add, new_service())
            await at(link, number)
            assert list(link.snapshot.services) == ["orders"]
            lately = timezone.now() - timedelta(seconds=5)
            nodes = GatewayNode.objects.filter(applied_revision=number, seen_at__gt=lately)
            (node,) = await until_database(bench, lambda: list(nodes.all()))
            assert (node.id, node.slot, node.problems) == (f"{settings.NODE_NAME}/0", 0, [])
            assert link.is_fresh(time.time())

    play(scenario)


async def until_database(bench: Bench, condition: Any) -> Any:
    async with asyncio.timeout(20):
        while not (value := await bench.do(condition)):
            await asyncio.sleep(0.02)
    return value


@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_a_worker_decides_as_one_that_read_everything_anew(play: Play, seed: int) -> None:
    async def scenario(bench: Bench) -> None:
        config = RandomConfig(seed)
        for _ in range(10):
            await bench.do(config.change)
        async with bench.joined() as (_, link):
            for _ in range(12):
                for _ in range(4):
                    await bench.do(config.change)
                await at_position(link, await bench.do(latest))
                assert answers(link.snapshot) == await bench.do(fresh_answers)

    play(scenario)


def test_no_change_of_many_writers_at_once_is_missed(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link):
            threads = [DatabaseThread(f"writer {number}") for number in range(8)]

            async def write(thread: DatabaseThread, number: int) -> None:
                for count in range(10):
                    await thread.run(add, new_service(f"s{number}-{count}"))

            await asyncio.gather(*(write(thread, number) for number, thread in enumerate(threads)))
            await until(lambda: len(link.snapshot.services) == 80)
            await at(link, 80)
            await asyncio.gather(*(thread.close() for thread in threads))

    play(scenario)


def test_a_route_that_comes_and_goes_takes_and_gives_back_the_implicit_route(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        one, two = new_service("one"), new_service("two")
        async with bench.joined() as (_, link):
            await at(link, await bench.do(add, one, two))

            def implicit() -> set[str]:
                return {name for name, service in link.snapshot.services.items() if service.implicit}

            assert implicit() == {"one", "two"}
            route = Route(name="r", path="/api/x", service=one)
            await at(link, await bench.do(add, route))
            assert implicit() == {"two"}
            await at(link, await bench.do(lambda: change(route, service=two)))
            assert implicit() == {"one"}
            await at(link, await bench.do(remove, route))
            assert implicit() == {"one", "two"}

    play(scenario)


@pytest.mark.parametrize(
    "end",
    [
        {"status": ApiKey.Status.REVOKED},
        {"status": ApiKey.Status.SUSPENDED},
        {"expires_at": timezone.now() - timedelta(seconds=1)},
    ],
    ids=["revoked", "suspended", "expired"],
)
def test_a_key_that_ends_leaves_the_workers_and_comes_back_when_it_is_revived(play: Play, end: dict[str, Any]) -> None:
    async def scenario(bench: Bench) -> None:
        application = Application(name="web")
        key = new_key(application)
        await bench.do(add, application, key)
        async with bench.joined() as (_, link):
            digest = bytes.fromhex(key.digest)
            assert link.snapshot.keys.get(digest) is not None
            await at(link, await bench.do(lambda: change(key, **end)))
            assert link.snapshot.keys.get(digest) is None
            back = {"status": ApiKey.Status.ACTIVE, "expires_at": None}
            await at(link, await bench.do(lambda: change(key, **back)))
            assert link.snapshot.keys.get(digest) is not None

    play(scenario)


# --- rows broken by hand -------------------------------------------------------------------------------------------
def test_a_row_broken_by_hand_is_reported_and_its_former_record_stays_while_the_rest_goes_on(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        service = new_service()
        version = ServiceVersion(service=service, version="v1", url="http://10.0.0.1", weight=1)
        await bench.do(add, service, version)
        async with bench.joined() as (agent, link):
            await bench.do(lambda: ServiceVersion.objects.filter(pk=version.pk).update(url="gopher://10.0.0.1"))
            number = await bench.do(add, new_service("users"), Route(name="r", path="/api/x", service=service))
            await at(link, number)
            assert sorted(link.snapshot.services) == ["orders", "users"]
            (target,) = link.snapshot.services["orders"].versions["v1"].targets
            assert target.origin == ("http", "10.0.0.1", 80)
            node = await until_database(bench, lambda: GatewayNode.objects.exclude(problems=[]).first())
            (problem,) = node.problems
            assert (problem["kind"], problem["id"], problem["name"]) == ("service", service.pk, "orders")
            assert "http" in problem["error"]
            assert b"api_gateway_config_problems 1.0" in agent.metrics.text()
            version.url = "gopher://10.0.0.1"
            await at(link, await bench.do(lambda: change(version, url="http://10.0.0.2")))
            assert await until_database(bench, lambda: GatewayNode.objects.filter(problems=[]).first())

    play(scenario)


def test_a_row_broken_before_the_start_is_skipped_and_the_rest_is_served(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        broken, whole = Application(name="broken"), Application(name="whole")
        await bench.do(add, broken, whole, EndpointWhitelist(application=broken, endpoint_path="no slash"))
        async with bench.joined() as (agent, link):
            assert list(link.snapshot.applications) == [whole.pk]
            assert list(agent.store.problems) == [("application", broken.pk)]

    play(scenario)


def test_a_change_made_by_hand_is_noticed_when_the_agent_starts_again(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        service = new_service()
        await bench.do(add, service, new_service("users"))
        async with bench.agent(), bench.link() as link:
            assert len(link.snapshot.services) == 2
        await bench.do(lambda: ServiceConfig.objects.filter(pk=service.pk).update(path_prefix="/by-hand"))
        async with bench.agent(), bench.link() as link:

            def base_path() -> bytes | None:
                default = link.snapshot.services["orders"].default
                return default.base_path if default is not None else None

            await until(lambda: base_path() == b"/by-hand")

    play(scenario)


# --- another history -----------------------------------------------------------------------------------------------
def test_a_restored_backup_is_recognised_by_its_token_and_read_as_a_whole(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.do(add, new_service("kept"))
        lost = new_service("lost")
        async with bench.joined() as (_, link):
            await at(link, await bench.do(add, lost))

            def restore() -> tuple[int, str]:
                """As it was before `lost`, and then something else under the same number."""
                with transaction.atomic():  # a backup is restored as a whole
                    ConfigChange.objects.filter(revision_id=2).delete()
                    ConfigRevision.objects.filter(number=2).delete()
                    ServiceConfig.objects.filter(pk=lost.pk).delete()
                assert add(new_service("new")) == 2
                return latest()

            await at_position(link, await bench.do(restore))
            assert sorted(link.snapshot.services) == ["kept", "new"]
            await at(link, await bench.do(add, new_service("next")))
            assert answers(link.snapshot) == await bench.do(fresh_answers)

    play(scenario)


def test_a_restored_backup_that_ends_at_a_revision_passed_long_ago_is_read_as_a_whole(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link):
            await at(link, await bench.do(add, new_service("kept")))
            first = await bench.do(latest)
            lost = new_service("lost")
            await at(link, await bench.do(add, lost))

            def restore() -> None:
                with transaction.atomic():  # a backup is restored as a whole
                    ConfigChange.objects.filter(revision_id=2).delete()
                    ConfigRevision.objects.filter(number=2).delete()
                    ServiceConfig.objects.filter(pk=lost.pk).delete()

            await bench.do(restore)
            await at_position(link, first)
            assert list(link.snapshot.services) == ["kept"]
            # Nobody takes revision 2 of the other history for an acknowledgement of the next one.
            await until_database(bench, lambda: pending_nodes(2))
            await at(link, await bench.do(add, new_service("next")))
            assert sorted(link.snapshot.services) == ["kept", "next"]

    play(scenario)


# --- several workers -----------------------------------------------------------------------------------------------
def test_every_worker_of_a_host_follows_and_has_a_node_of_its_own(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.agent(), bench.link(0) as first, bench.link(1) as second:
            number = await bench.do(add, new_service())
            await at(first, number)
            await at(second, number)
            applied = GatewayNode.objects.filter(applied_revision=number).values_list("slot", flat=True)
            assert await until_database(bench, lambda: sorted(applied.all()) == [0, 1])

    play(scenario)


def test_the_socket_is_private_and_gone_after_the_end(play: Play, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined():
            assert stat.S_IMODE((tmp_path / "agent.sock").stat().st_mode) == 0o600
        assert not (tmp_path / "agent.sock").exists()
        assert stat.S_IMODE((tmp_path / "snapshot.bin").stat().st_mode) == 0o600

    play(scenario)


# --- last uses -----------------------------------------------------------------------------------------------------
def used(key_id: str, at_s: float, address: str = "192.0.2.1", requests: int = 1) -> dict[str, Any]:
    return {"type": "used", "rows": [[key_id, address, requests, at_s], ["key_unknown", address, 1, at_s]]}


def test_uses_are_stored_without_a_revision_and_never_move_back(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        application = Application(name="web")
        key, other = new_key(application), new_key(application)
        number = await bench.do(add, application, key, other)
        async with bench.joined() as (agent, link):
            for at_s, of, address in (
                (1_700_000_100.5, key, "192.0.2.1"),
                (1_700_000_050.0, key, "192.0.2.2"),
                (1_700_000_200.0, other, "192.0.2.1"),
            ):
                assert link.send(used(of.pk, at_s, address, requests=2))
            await until(lambda: (other.pk, "192.0.2.1") in agent.writer._used)
            await agent.writer.flush()
            link.send(used(key.pk, 1_700_000_075.0, "192.0.2.2"))
            await until(lambda: (key.pk, "192.0.2.2") in agent.writer._used)
            await agent.writer.flush()

            def stored() -> dict[str, tuple[object, ...]]:
                return {
                    each.pk: (each.use_count, each.last_used_at.timestamp(), each.last_used_address, each.revision)  # type: ignore[union-attr]
                    for each in ApiKey.objects.all()
                }

            def callers() -> list[tuple[object, ...]]:
                rows = KeyCaller.objects.filter(key=key).order_by("address")
                return [(each.address, each.requests, each.last_at.timestamp()) for each in rows]

            assert await bench.do(stored) == {
                key.pk: (5, 1_700_000_100.5, "192.0.2.1", number),
                other.pk: (2, 1_700_000_200, "192.0.2.1", number),
            }
            assert await bench.do(callers) == [("192.0.2.1", 2, 1_700_000_100.5), ("192.0.2.2", 3, 1_700_000_075.0)]
            assert (await bench.do(latest))[0] == number

    play(scenario)


# --- nodes ---------------------------------------------------------------------------------------------------------
def test_nodes_that_were_not_seen_for_an_hour_and_sessions_that_have_ended_are_forgotten(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        seen = {"old/0": timedelta(minutes=61), "recent/0": timedelta(minutes=59)}

        def store() -> None:
            for id, ago in seen.items():
                GatewayNode.objects.create(id=id, host=id[:-2], slot=0, seen_at=timezone.now() - ago)
            for key, ago in (("ended", timedelta(seconds=1)), ("alive", timedelta(days=-1))):
                Session.objects.create(session_key=key, session_data="", expire_date=timezone.now() - ago)

        await bench.do(store)
        await bench.do(clean)
        assert await bench.do(lambda: [node.pk for node in GatewayNode.objects.all()]) == ["recent/0"]
        assert await bench.do(lambda: [session.pk for session in Session.objects.all()]) == ["alive"]

    play(scenario)


def test_a_slot_with_two_workers_is_where_the_slower_one_is(play: Play) -> None:
    """While a worker is replaced, both serve."""

    async def scenario(bench: Bench) -> None:
        async with bench.agent():
            _, former = await asyncio.open_unix_connection(str(bench.var_dir / "agent.sock"))
            former.write(encode({"type": "join", "slot": 0, "pid": 1, "revision": 0, "token": ""}))
            await until_database(bench, GatewayNode.objects.exists)
            async with bench.link() as successor:
                number = await bench.do(add, new_service())
                await at(successor, number)
                known = GatewayNode.objects.filter(pid=os.getpid())
                await until_database(bench, known.exists)
                assert await bench.do(pending_nodes, number) == [f"{django_settings.NODE_NAME}/0"]
                former.close()
                await until_database(bench, lambda: not pending_nodes(number))

    play(scenario)


def test_nodes_are_seen_by_the_clock_of_the_database(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is fast would make the others look silent, and nobody would wait for them."""

    class Fast(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Fast":
            return super().now(tz) + timedelta(hours=1)

    monkeypatch.setattr("gateway_project.agent.writer.datetime", Fast)

    async def scenario(bench: Bench) -> None:
        async with bench.joined():
            (node,) = await until_database(bench, lambda: list(GatewayNode.objects.all()))
            assert abs(node.seen_at - timezone.now()) < timedelta(minutes=1)

    play(scenario)

"""From the end of a session to the workers of a host: at once, after restarts without the database, and on a restored
backup, which revives nothing."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from access.models import TokenRevocation
from access.revocations import database_now, forget_revocations, revocations_after, revoke, whole_second_after
from access.tokens.identity import Identity
from access.tokens.revocations import Revocations
from gateway_project.agent.database import DatabaseAway
from gateway_project.agent.revocations import RevocationFollower
from tests.agents import Bench, Play, on_both_databases, play_in
from tests.links import new_link, until

on_postgres = pytest.mark.parametrize(
    "database", [pytest.param("postgres", marks=pytest.mark.django_db(transaction=True))], indirect=True
)


@pytest.fixture
def play(database: str, tmp_path: Path, settings: Any) -> Play:
    return play_in(tmp_path, settings)


def end(session: str) -> None:
    with transaction.atomic():
        revoke("session", session, database_now(), "default")


def identity(
    session: str = "", *, user: str = "usr_1", roles: tuple[str, ...] = (), issued_at: float = 0.0
) -> Identity:
    return Identity(
        issuer="end-users",
        subject=user,
        tenant_id="default",
        application_id="app_1",
        user=f"end-users:{user}",
        roles=roles,
        scopes=frozenset(),
        permissions=frozenset(),
        token_id="tok_1",
        session_id=session,
        issued_at=issued_at,
        expires_at=2e9,
        upstream_lines=b"",
        claims={},
        is_own=True,
    )


@asynccontextmanager
async def worker(bench: Bench) -> AsyncIterator[Revocations]:
    """What a worker hears, from its start on."""
    link, revocations = new_link(bench.var_dir, 0), Revocations()
    link.on("revocations", revocations.take)
    try:
        await link.start()
        yield revocations
    finally:
        await link.close()


@on_both_databases
def test_workers_hear_of_what_ends_and_of_what_ended_before_they_came(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.do(end, "ses_1")
        async with bench.agent(), worker(bench) as revocations:
            await until(lambda: revocations.is_known and revocations.is_revoked(identity("ses_1")))
            assert not revocations.is_revoked(identity("ses_2"))
            await bench.do(end, "ses_2")
            await until(lambda: revocations.is_revoked(identity("ses_2")))

    play(scenario)


@on_postgres
def test_where_nothing_was_ever_revoked_that_is_known_too(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.agent(), worker(bench) as revocations:
            await until(lambda: revocations.is_known)
            assert len(revocations) == 0

    play(scenario)


@on_postgres
def test_a_restored_backup_revives_nothing(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.agent(), worker(bench) as revocations:
            await bench.do(end, "ses_1")
            await bench.do(end, "ses_2")
            await until(lambda: revocations.is_revoked(identity("ses_2")))
            await bench.do(TokenRevocation.objects.filter(value="ses_2").delete)
            await bench.do(end, "ses_3")
            await until(lambda: revocations.is_revoked(identity("ses_3")))
            assert all(revocations.is_revoked(identity(f"ses_{number}")) for number in (1, 2))

    play(scenario)


@on_postgres
def test_a_worker_alone_knows_what_the_agent_has_kept(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.agent(), worker(bench):
            await bench.do(end, "ses_1")
            path = bench.var_dir / "revocations.bin"
            await until(lambda: path.exists() and b"ses_1" in path.read_bytes())
            assert path.stat().st_mode & 0o777 == 0o600
        async with worker(bench) as revocations:  # there is no agent
            assert revocations.is_revoked(identity("ses_1"))

    play(scenario)


def test_an_agent_that_never_reaches_the_database_goes_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("session", "ses_1", 1.0, 4e9)]

    async def scenario() -> None:
        followers = [RevocationFollower(tmp_path / "revocations.bin", lambda: None) for _ in range(3)]
        assert followers[0].since(None) == (None, None)  # nothing is known, which is not the same as nothing
        followers[0].start()
        assert followers[0].since(None) == (None, None)
        monkeypatch.setattr("gateway_project.agent.revocations.latest_number", lambda: 1)
        monkeypatch.setattr("gateway_project.agent.revocations.revocations_after", lambda number: (1, rows))
        await run_for_a_look(followers[0])

        def away(*_: Any) -> Any:
            raise DatabaseAway("it is not there")

        monkeypatch.setattr("gateway_project.agent.revocations.latest_number", away)
        followers[1].start()
        await run_for_a_look(followers[1])
        told, message = followers[1].since(None)
        assert message is not None and message["whole"] and message["rows"] == rows
        assert followers[1].since(told) == (told, None)
        (tmp_path / "revocations.bin").write_bytes(b"torn")
        followers[2].start()
        assert followers[2].since(None) == (None, None)

    asyncio.run(scenario())


async def run_for_a_look(follower: RevocationFollower) -> None:
    running = asyncio.create_task(follower.run())
    await until(lambda: follower.since(None)[1] is not None)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# --- what a worker decides ---
def test_users_and_roles_end_with_what_was_issued_before_and_nothing_later() -> None:
    revocations = Revocations()
    rows = [["user", "usr_1", 100.0, 500.0], ["role", "staff", 200.0, 500.0], ["token", "tok_9", 0.0, 500.0]]
    revocations.take({"number": 3, "whole": True, "rows": rows})
    assert revocations.is_revoked(identity(issued_at=99))
    assert not revocations.is_revoked(identity(issued_at=100))
    assert not revocations.is_revoked(identity(user="usr_2", issued_at=99))
    assert revocations.is_revoked(identity(roles=("a", "staff"), issued_at=199))
    assert not revocations.is_revoked(identity(roles=("staff",), issued_at=200))
    assert not revocations.is_revoked(identity(roles=("passenger",), issued_at=150))


@pytest.mark.django_db
def test_what_concerns_expired_tokens_alone_is_forgotten() -> None:
    end("ses_1")
    end("ses_2")
    TokenRevocation.objects.filter(value="ses_1").update(until=database_now() - timedelta(hours=1))
    latest, told = revocations_after(0)
    assert [each[1] for each in told] == ["ses_2"]
    forget_revocations()
    assert [row.value for row in TokenRevocation.objects.all()] == ["ses_2"]
    assert revocations_after(latest) == (latest, [])


@pytest.mark.django_db(transaction=True)
def test_revocations_at_the_same_moment_become_visible_in_their_order() -> None:
    """A follower that has seen one has seen all before it."""
    seen: list[str] = []
    number = 0

    def work(session: int) -> None:
        try:
            end(f"ses_{session}")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, session) for session in range(40)]
        while not all(future.done() for future in futures):
            number, told = revocations_after(number)
            seen += [each[1] for each in told]
        seen += [each[1] for each in revocations_after(number)[1]]
        for future in futures:
            future.result()
    assert sorted(seen) == sorted(f"ses_{session}" for session in range(40))


def test_a_second_is_whole_and_after_the_moment() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    assert whole_second_after(moment) == datetime(2026, 1, 2, 3, 4, 6, 0, UTC)

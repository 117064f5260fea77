"""The feed while something is away: the database, the agent, or a worker that does not read."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from access.models import Application
from core.wire import FrameReader, Message, encode
from gateway_project.agent.store import _DELTA_REFS
from gateway_project.dataplane.agent_link import AgentLink
from gateway_project.processes import ROOT
from keys.models import ApiKey
from routing.models import ServiceConfig
from tests.agents import Bench, Play, database_settings, on_both_databases, play_in, sqlite_database
from tests.links import new_link, until
from tests.private_servers import free_port
from tests.random_config import new_key
from tests.test_agent_feed import add, at, change, latest, new_service

postgres_only = pytest.mark.django_db(transaction=True)


@pytest.fixture
def play(tmp_path: Path, settings: Any) -> Play:
    return play_in(tmp_path, settings)


# --- the database --------------------------------------------------------------------------------------------------
class Proxy:
    """Stands before PostgreSQL and can go away, by closing everything or by falling silent."""

    def __init__(self) -> None:
        self.port = free_port()
        database = connections.settings["default"]
        self._behind = database["HOST"], int(database["PORT"] or 5432)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_open = False

    async def start(self) -> None:
        self._is_open = True
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self._is_open = False
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def hang(self) -> None:
        self._flows.clear()

    def go_on(self) -> None:
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(*self._behind)
        if not self._is_open:  # gone meanwhile
            behind_writer.close()
            writer.close()
            return
        self._writers |= {writer, behind_writer}
        await asyncio.gather(self._pump(reader, behind_writer), self._pump(behind_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def through_proxy() -> AsyncIterator[Proxy]:
    """Database connections of agents made in here go through the proxy."""
    proxy = Proxy()
    await proxy.start()
    with database_settings(HOST="127.0.0.1", PORT=proxy.port):
        try:
            yield proxy
        finally:
            proxy.go_on()
            await proxy.stop()


@postgres_only
@pytest.mark.parametrize("manner", ["closed", "silent"])
def test_while_the_database_is_away_workers_serve_on_and_know_it_and_afterwards_they_catch_up(
    play: Play, manner: str
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.do(add, new_service())
        async with through_proxy() as proxy, bench.joined() as (_, link):
            await until(lambda: link.is_fresh(time.time()))
            proxy.hang() if manner == "silent" else await proxy.stop()
            await until(lambda: not link.is_fresh(time.time()))
            assert link.is_connected
            assert list(link.snapshot.services) == ["orders"]
            number = await bench.do(add, new_service("users"))
            assert link.snapshot.revision == number - 1
            if manner == "silent":
                proxy.go_on()
            else:
                await proxy.start()
            await at(link, number)
            await until(lambda: link.is_fresh(time.time()))

    play(scenario)


@postgres_only
def test_with_the_database_away_an_agent_starts_from_the_last_good_snapshot_and_catches_up_later(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.do(add, new_service())
        async with bench.joined():
            pass  # its end writes the file
        number = await bench.do(add, new_service("users"))
        async with through_proxy() as proxy:
            await proxy.stop()
            async with bench.joined() as (_, link):
                assert link.snapshot.revision == number - 1
                await until(lambda: not link.is_fresh(time.time()))
                assert 0 < link.config_age_s(time.time()) < 60
                await proxy.start()
                await at(link, number)
                await until(lambda: link.is_fresh(time.time()))

    play(scenario)


@postgres_only
def test_with_the_database_away_and_no_file_workers_get_their_configuration_once_it_is_back(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.do(add, new_service())
        async with through_proxy() as proxy:
            await proxy.stop()
            async with bench.agent():
                link = new_link(bench.var_dir)
                await link.start()
                await until(lambda: link.is_connected)
                assert not link.has_snapshot
                await proxy.start()
                await until(lambda: list(link.snapshot.services) == ["orders"])
                await link.close()

    play(scenario)


@postgres_only
def test_without_notifications_a_change_arrives_by_the_look_of_every_second(play: Play, settings: Any) -> None:
    settings.DATABASE_LISTEN_URL = f"postgres://127.0.0.1:{free_port()}/nowhere"

    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link):
            await at(link, await bench.do(add, new_service()))

    play(scenario)


# --- workers -------------------------------------------------------------------------------------------------------
NextMessage = Callable[[], Awaitable[Message]]


_OF_CONFIGURATION = ("reset", "records", "commit", "delta")


@asynccontextmanager
async def raw_worker(var_dir: Path, revision: int = 0, token: str = "") -> AsyncIterator[NextMessage]:
    """Joins, and gives what the agent says of the configuration, one message at a call."""
    reader, writer = await asyncio.open_unix_connection(var_dir / "agent.sock")
    writer.write(encode({"type": "join", "slot": 9, "pid": os.getpid(), "revision": revision, "token": token}))
    frames = FrameReader()
    waiting: list[Message] = []

    async def next_message() -> Message:
        async with asyncio.timeout(20):
            while not waiting:
                heard = frames.feed(await reader.read(65536))
                waiting.extend(each for each in heard if each["type"] in _OF_CONFIGURATION)
        return waiting.pop(0)

    try:
        yield next_message
    finally:
        writer.close()


@postgres_only
def test_a_worker_that_was_away_gets_only_what_has_changed_and_one_of_another_history_everything(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        first = new_service("first")
        await bench.do(add, first)
        async with bench.joined() as (_, link):
            known = await bench.do(latest)
            await bench.do(add, new_service("second"))
            await at(link, await bench.do(lambda: change(first, path_prefix="/x")))
            async with raw_worker(bench.var_dir, *known) as next_message:
                message = await next_message()
                assert message["type"] == "delta"
                assert sorted(each["name"] for each in message["put"]["service"]) == ["first", "second"]
            async with raw_worker(bench.var_dir, known[0], "another") as next_message:
                assert [(await next_message())["type"] for _ in range(3)] == ["reset", "records", "commit"]

    play(scenario)


@postgres_only
def test_a_revision_too_large_for_a_delta_arrives_as_a_full_load(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link), raw_worker(bench.var_dir) as next_message:
            while (await next_message())["type"] != "commit":
                pass
            number = await bench.do(lambda: add(*(new_service(f"s{n}") for n in range(_DELTA_REFS + 1))))
            assert (await next_message())["type"] == "reset"
            await at(link, number)
            assert len(link.snapshot.services) == _DELTA_REFS + 1

    play(scenario)


@postgres_only
def test_a_worker_that_does_not_read_holds_up_nobody(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        description = {"default_url": "http://10.0.0.1/" + "x" * 400}
        await bench.do(lambda: add(*(ServiceConfig(name=f"s{n}", **description) for n in range(2000))))
        async with bench.joined() as (agent, link):
            _, writer = await asyncio.open_unix_connection(bench.var_dir / "agent.sock", limit=1)
            writer.write(encode({"type": "join", "slot": 9, "pid": 1, "revision": 0, "token": ""}))
            stuck = await until(lambda: next((peer for peer in agent.server.peers if peer.slot == 9), None))
            for n in range(20):
                await at(link, await bench.do(add, new_service(f"more-{n}")))
            assert stuck.serial is None  # its full load has not been read
            assert stuck.writer.transport.get_write_buffer_size() < 1_000_000
            writer.close()

    play(scenario)


@postgres_only
def test_a_worker_that_talks_nonsense_is_cut_off_and_the_others_are_not(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (_, link):
            for nonsense in (b"\xff\xff\xff\xff", encode({"type": "join"}), encode({}), b"\x00\x00\x00\x01["):
                reader, writer = await asyncio.open_unix_connection(bench.var_dir / "agent.sock")
                writer.write(nonsense)
                async with asyncio.timeout(10):
                    assert await reader.read() == b""
                writer.close()
            await at(link, await bench.do(add, new_service()))

    play(scenario)


# --- the agent's process -------------------------------------------------------------------------------------------
class AgentProcess:
    """``manage.py runagent`` on the test's VAR_DIR and database."""

    def __init__(self, var_dir: Path, **environment: str) -> None:
        self._var_dir = var_dir
        self._environment = os.environ | {"VAR_DIR": str(var_dir), "METRICS_PORT": str(free_port())} | environment
        self._environment.pop("PORTCULLIS_TESTING", None)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "AgentProcess":
        command = [sys.executable, "manage.py", "runagent"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stderr=subprocess.PIPE, text=True)
        return self

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Exit code and what it has written."""
        assert self.process is not None
        self.process.send_signal(number)
        _, text = self.process.communicate(timeout=20)
        return self.process.returncode, text


@pytest.fixture
def new_agent(tmp_path: Path, database: str) -> Iterator[Callable[[], AgentProcess]]:
    started: list[AgentProcess] = []

    def new() -> AgentProcess:
        started.append(AgentProcess(tmp_path, DATABASE_URL=database))
        return started[-1].start()

    yield new
    for agent in started:
        if agent.process is not None and agent.process.poll() is None:
            agent.end(signal.SIGKILL)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of the test's database."""
    if request.param == "postgres":
        wrapper = connections["default"].settings_dict
        password = f":{wrapper['PASSWORD']}" if wrapper["PASSWORD"] else ""
        yield f"postgres://{wrapper['USER']}{password}@{wrapper['HOST']}:{wrapper['PORT'] or 5432}/{wrapper['NAME']}"
    else:
        path = tmp_path / "portcullis.sqlite3"
        with request.getfixturevalue("django_db_blocker").unblock(), sqlite_database(path):
            yield f"sqlite:///{path}"


@on_both_databases
def test_an_agent_that_was_killed_comes_back_and_its_worker_catches_up(
    play: Play, new_agent: Callable[[], AgentProcess]
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.do(add, new_service())
        agent = new_agent()
        async with bench.link() as link:
            await until((bench.var_dir / "snapshot.bin").exists)
            number = await bench.do(add, new_service("users"))
            await at(link, number)
            await asyncio.to_thread(agent.end, signal.SIGKILL)
            await until(lambda: not link.is_connected)
            missed = await bench.do(add, new_service("mail"))
            assert sorted(link.snapshot.services) == ["orders", "users"]
            swaps = count_full_loads(link)
            new_agent()
            await at(link, missed)
            assert sorted(link.snapshot.services) == ["mail", "orders", "users"]
            assert swaps == []  # it was told only what it had missed

    play(scenario)


def count_full_loads(link: AgentLink) -> list[Any]:
    swaps: list[Any] = []
    swap = link._swap

    def counted(*args: Any) -> None:
        swaps.append(args)
        swap(*args)

    link._swap = counted  # type: ignore[method-assign, assignment]
    return swaps


@on_both_databases
def test_sigterm_ends_the_agent_with_the_snapshot_written_and_nothing_left_behind(
    play: Play, new_agent: Callable[[], AgentProcess]
) -> None:
    async def scenario(bench: Bench) -> None:
        agent = new_agent()
        async with bench.link() as link:
            await at(link, await bench.do(add, new_service()))
            code, text = await asyncio.to_thread(agent.end, signal.SIGTERM)
            assert code == 0, text
            assert "Traceback" not in text
        assert {path.name for path in bench.var_dir.iterdir()} & {"agent.sock", "snapshot.bin.tmp"} == set()
        started = new_link(bench.var_dir)
        await started.start()
        assert list(started.snapshot.services) == ["orders"]
        await started.close()

    play(scenario)


@on_both_databases
def test_a_second_agent_on_the_same_directory_refuses_to_start_in_one_sentence(
    play: Play, new_agent: Callable[[], AgentProcess]
) -> None:
    async def scenario(bench: Bench) -> None:
        first = new_agent()
        async with bench.link() as link:
            second = new_agent()
            assert second.process is not None
            _, text = await asyncio.to_thread(second.process.communicate, timeout=20)
            assert second.process.returncode != 0
            assert first.process is not None
            expected = f"CommandError: Another agent (pid {first.process.pid}) runs on VAR_DIR {bench.var_dir} already."
            assert text.strip() == expected
            await at(link, await bench.do(add, new_service()))

    play(scenario)


def test_a_metrics_port_that_is_taken_stops_the_start_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        agent = AgentProcess(tmp_path, METRICS_PORT=port).start()
        assert agent.process is not None
        _, text = agent.process.communicate(timeout=20)
        assert agent.process.returncode != 0
        assert text.startswith(f"CommandError: METRICS_PORT {port} on METRICS_BIND 127.0.0.1 cannot be used")
        assert len(text.splitlines()) == 1


def test_a_directory_too_deep_for_a_socket_stops_the_start_in_one_sentence(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    agent = AgentProcess(deep).start()
    assert agent.process is not None
    _, text = agent.process.communicate(timeout=20)
    assert text.strip() == f"CommandError: VAR_DIR {deep} is too long a path for a Unix socket in it."


# --- columns that hold anything ------------------------------------------------------------------------------------
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("database")
def test_a_row_that_cannot_even_be_read_is_skipped_and_the_thousands_around_it_are_not(play: Play) -> None:
    """SQLite takes any text in any column."""

    async def scenario(bench: Bench) -> None:
        application = Application(name="web")
        keys = [new_key(application) for _ in range(2500)]
        await bench.do(add, application)
        await bench.do(lambda: ApiKey.objects.bulk_create(keys))
        broken = keys[1234].pk

        def break_it() -> None:
            with connections["default"].cursor() as cursor:
                cursor.execute("UPDATE gateway_api_key SET expires_at = '2999-13-45 00:00:00' WHERE id = %s", [broken])

        await bench.do(break_it)
        async with bench.joined() as (agent, link):
            assert len(link.snapshot.keys) == 2499
            assert list(agent.store.problems) == [("api_key", broken)]

    play(scenario)

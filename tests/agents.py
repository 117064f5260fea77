"""A real agent in the test's own event loop, on PostgreSQL or on SQLite, with links joined to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.db import DEFAULT_DB_ALIAS, connections

from gateway_project.agent.database import DatabaseThread
from gateway_project.agent.main import Agent, only_agent
from gateway_project.dataplane.agent_link import AgentLink
from tests.gateway_process import copy_migrated_sqlite
from tests.links import new_link, until
from tests.private_servers import free_port

T = TypeVar("T")

on_both_databases = pytest.mark.parametrize(
    "database", [pytest.param("postgres", marks=pytest.mark.django_db(transaction=True)), "sqlite"], indirect=True
)


class Bench:
    """What a scenario works with: a VAR_DIR, agents and links on it, and a thread for its own use of the database."""

    def __init__(self, var_dir: Path) -> None:
        self.var_dir = var_dir
        self.database = DatabaseThread("test")

    async def do(self, function: Callable[..., T], *args: Any) -> T:
        """Run ORM code."""
        return await self.database.run(function, *args)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        stop = asyncio.Event()
        with only_agent(self.var_dir):
            agent = Agent()
            running = asyncio.create_task(agent.run(stop))
            try:
                await until(lambda: running.done() or (self.var_dir / "agent.sock").exists())
                yield agent
            finally:
                stop.set()
                await running

    @asynccontextmanager
    async def link(self, slot: int = 0) -> AsyncIterator[AgentLink]:
        """One that has its snapshot."""
        link = new_link(self.var_dir, slot)
        try:
            await link.start()
            await until(lambda: link.has_snapshot)
            yield link
        finally:
            await link.close()

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[tuple[Agent, AgentLink]]:
        async with self.agent() as agent, self.link() as link:
            yield agent, link


Play = Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]


def play_in(var_dir: Path, settings: Any) -> Play:
    """Runs a scenario in an event loop of its own."""
    settings.VAR_DIR = var_dir
    settings.METRICS_PORT = free_port()

    def play(scenario: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            bench = Bench(var_dir)
            try:
                await scenario(bench)
            finally:
                await bench.database.close()

        asyncio.run(run())

    return play


@contextmanager
def database_settings(**changes: Any) -> Iterator[None]:
    """For connections that are made from now on."""
    former = connections.settings[DEFAULT_DB_ALIAS]
    connections.settings[DEFAULT_DB_ALIAS] = {**former, **changes}
    try:
        yield
    finally:
        connections.settings[DEFAULT_DB_ALIAS] = former


@contextmanager
def sqlite_database(path: Path) -> Iterator[None]:
    """A migrated SQLite database as the default one, with the options that an embedded gateway has."""
    options = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 10,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
    }
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": options}
    with database_settings(**sqlite, CONN_HEALTH_CHECKS=False):
        former = connections[DEFAULT_DB_ALIAS]
        connections[DEFAULT_DB_ALIAS] = connections.create_connection(DEFAULT_DB_ALIAS)
        try:
            copy_migrated_sqlite(path)
            yield
        finally:
            connections[DEFAULT_DB_ALIAS].close()
            connections[DEFAULT_DB_ALIAS] = former

"""Databases for the benchmarks: made and filled on demand, dropped at the end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from bench.machine import ROOT, CannotMeasure, Stage, plain_environment
from bench.report import say

POSTGRES = "PostgreSQL"
SQLITE = "SQLite"


@dataclass(frozen=True, slots=True)
class Scale:
    services: int
    keys: int

    def __str__(self) -> str:
        return f"{self.services:,} services and {self.keys:,} keys"


SMALL = Scale(1_000, 1_000)
LARGE = Scale(10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Database:
    """A filled one. ``settings`` are the gateway's settings that lead to it."""

    kind: str
    scale: Scale
    settings: dict[str, str] = field(repr=False)
    client_key: str = field(repr=False)
    client_key_id: str
    admin_key: str = field(repr=False)


class Databases(contextlib.ExitStack):
    """``upstream`` is the URL that all services of all databases lead to."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self._upstream = upstream
        self._stage = self.enter_context(Stage())
        self._server = _postgres_server()
        self._filled: dict[tuple[str, Scale], Database] = {}

    @property
    def kinds(self) -> list[str]:
        """What there is, the better first."""
        return [POSTGRES, SQLITE] if self._server else [SQLITE]

    def get(self, scale: Scale, kind: str | None = None) -> Database:
        """The database of that kind (the first of `kinds`) and scale."""
        kind = kind or self.kinds[0]
        if (kind, scale) not in self._filled:
            say(f"  filling {kind} with {scale}")
            self._filled[kind, scale] = self._fill(kind, scale)
        return self._filled[kind, scale]

    def _fill(self, kind: str, scale: Scale) -> Database:
        settings = {"SECRET_KEY": secrets.token_urlsafe(40), "DATABASE_URL": self._new_url(kind)}
        if kind == SQLITE:
            settings["EMBEDDED"] = "true"
        size = ("--services", str(scale.services), "--keys", str(scale.keys))
        made = run_seed(settings, "fill", *size, "--upstream", self._upstream)
        return Database(kind, scale, settings, **made)

    def _new_url(self, kind: str) -> str:
        name = f"portcullis_bench_{secrets.token_hex(4)}"
        if kind == SQLITE:
            return f"sqlite:///{self._stage.directory}/{name}.sqlite3"
        self._execute(sql.SQL("CREATE DATABASE {}"), name)
        self.callback(self._execute, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), name)
        return urlsplit(self._server)._replace(path=f"/{name}").geturl()

    def _execute(self, statement: sql.SQL, name: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(name)))


def _postgres_server() -> str:
    """The URL of ``TEST_DATABASE_URL``, or of the standard local port; empty when nobody answers there."""
    url = os.environ.get("TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres")
    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.Error:
        return ""
    return url


def run_seed(settings: dict[str, str], *arguments: str) -> dict[str, str]:
    """What `bench.seed` prints, run with these settings of the gateway. Raises CannotMeasure."""
    with Stage() as stage:
        done = subprocess.run(
            [sys.executable, "-m", "bench.seed", *arguments],
            cwd=ROOT,
            env={**plain_environment(), "VAR_DIR": str(stage.directory), **settings},
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise CannotMeasure(f"the database cannot be filled: {done.stderr.strip()[-600:]}")
    made: dict[str, str] = json.loads(done.stdout)
    return made

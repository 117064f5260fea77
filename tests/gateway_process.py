"""A real gateway for tests: ``manage.py rungateway`` on free ports, with a VAR_DIR and a database of its own."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
from psycopg import sql

from gateway_project.processes import ROOT
from tests.private_servers import free_port

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
_KEPT = ("PATH", "LANG", "TZ", "TMPDIR", "HOME")


def eventually(condition: Callable[[], Any], timeout_s: float = 30.0, what: str = "the condition") -> Any:
    """The first true value of ``condition()``, asked every 20 ms. Raises AssertionError when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.02)
    return value


class GatewayProcess:
    """The supervisor and its children. ``url``, ``panel_url`` and ``metrics_url`` have no final slash."""

    def __init__(
        self,
        var_dir: Path,
        *,
        database: str = "sqlite",
        broker: str = "filesystem://",
        command: tuple[str, ...] = ("rungateway",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``database``: "sqlite" (embedded) or the URL of a migrated PostgreSQL database."""
        self.var_dir = var_dir
        self.log_path = var_dir / "output.log"
        self.setup_token = secrets.token_hex(8)
        ports = {name: str(free_port()) for name in ("PORT", "ADMIN_PORT", "METRICS_PORT")}
        is_embedded = database == "sqlite"
        self.environment = {
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            **ports,
            "VAR_DIR": str(var_dir),
            **({} if is_embedded else {"SECRET_KEY": "the secret key of gateways on databases of the tests"}),
            "SETUP_TOKEN": self.setup_token,
            "BIND": "127.0.0.1",
            "EGRESS_ALLOW": "127.0.0.0/8,::1/128",
            "CELERY_BROKER_URL": broker,
            "WORKERS": "1",
            "ARGON2_MEMORY_KIB": "64",
            "ARGON2_TIME_COST": "1",
            **({} if is_embedded else {"DATABASE_URL": database}),
            **(environment or {}),
        }
        self.command = (sys.executable, "manage.py", *command, *(["--embedded"] if is_embedded else []))
        self.url = f"http://127.0.0.1:{self.environment['PORT']}"
        self.panel_url = f"http://127.0.0.1:{self.environment['ADMIN_PORT']}"
        self.metrics_url = f"http://127.0.0.1:{self.environment['METRICS_PORT']}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def workers(self) -> int:
        return int(self.environment["WORKERS"])

    def start(self, *, wait: bool = True) -> GatewayProcess:
        """Returns when workers, agent and control are ready; with ``wait`` false, at once."""
        self.var_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            alive = self.process is not None and self.process.poll() is None
            if not alive or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the gateway does not become ready:\n{self.log()}")
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Whether workers, agent and control are."""
        processes = self._state()
        wanted = ["agent", "control", *(f"worker-{slot}" for slot in range(self.workers))]
        return all(processes.get(name, {}).get("ready") for name in wanted)

    def children(self) -> dict[str, int]:
        """Process ids by name: ``worker-0`` …, ``agent``, ``control``, ``events``."""
        return {name: process["pid"] for name, process in self._state().items()}

    def _state(self) -> dict[str, Any]:
        try:
            processes: dict[str, Any] = json.loads((self.var_dir / "processes.json").read_text())["processes"]
        except FileNotFoundError:
            return {}
        return processes

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """Everything that the supervisor and its children have written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def access_log(self) -> list[dict[str, Any]]:
        """The lines of the access log. They are written within 200 ms."""
        path = self.var_dir / "access.log"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    @cached_property
    def admin_key(self) -> str:
        """An admin key of the first admin, who is set up by the first look at it."""
        answer = httpx.post(
            f"{self.url}/setup",
            json={"name": "Test Admin", "email": "admin@example.com"},
            headers={"X-Setup-Token": self.setup_token},
            timeout=20,
        )
        assert answer.status_code < 300, answer.text
        return str(answer.json()["key"])

    def admin(self) -> httpx.Client:
        """A client of the admin API, on the gateway's port, with the admin key. Close it, or use it in a ``with``."""
        return httpx.Client(base_url=self.url, headers={"X-API-Key": self.admin_key}, timeout=20, trust_env=False)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the supervisor's exit code. Raises AssertionError when it does not end in time."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the gateway does not stop:\n{self.log()}") from None

    def end(self) -> None:
        """Two signals: everything ends at once. For tests that are not about stopping, which takes Celery seconds."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in self.log() or self.process is None or self.process.poll() is not None)
        self.stop()

    def kill(self) -> None:
        """SIGKILL for the supervisor; its children get SIGTERM from the kernel."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Databases:
    """Migrated PostgreSQL databases, each a copy of one template, dropped at the end."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._template = f"portcullis_template_{secrets.token_hex(4)}"
        self._names: list[str] = []

    def new(self) -> str:
        """The URL of a fresh one."""
        if not self._names:
            self._create(self._template)
            migrate(self._url(self._template))
        name = f"portcullis_gateway_{secrets.token_hex(4)}"
        self._create(name, self._template)
        return self._url(name)

    def drop_all(self) -> None:
        for name in reversed(self._names):
            self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._names.clear()

    def _create(self, name: str, template: str = "template1") -> None:
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        self._names.append(name)

    def _url(self, name: str) -> str:
        return urlsplit(self._server_url)._replace(path=f"/{name}").geturl()

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(statement)


def migrate(url: str) -> None:
    """Bring a database up to date with ``manage.py migrate``."""
    _migrate(DATABASE_URL=url, SECRET_KEY="a secret key that nothing in the database depends on")


def copy_migrated_sqlite(to: Path) -> None:
    """What an embedded gateway's first start makes there, which takes seconds and is the same each time."""
    shutil.copyfile(_migrated_sqlite(), to)
    to.chmod(0o600)


@cache
def _migrated_sqlite() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="portcullis-template-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    _migrate(EMBEDDED="true", VAR_DIR=str(directory))
    made = directory / "portcullis.sqlite3"
    assert not made.with_name(f"{made.name}-wal").exists()  # it is all in the one file
    return made


def _migrate(**environment: str) -> None:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    command = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class GatewayFactory:
    """Starts gateways for one test and ends them with it."""

    def __init__(self, databases: Callable[[], Databases]) -> None:
        self._databases = databases
        self._count = 0
        self._directory = Path(tempfile.mkdtemp(prefix="portcullis-gateway-"))
        self._ending = ExitStack()
        self._ending.callback(shutil.rmtree, self._directory, ignore_errors=True)

    def __call__(
        self,
        *,
        database: str = "sqlite",
        broker: str = "filesystem://",
        var_dir: Path | None = None,
        migrated: bool = True,
        wait: bool = True,
        **environment: str,
    ) -> GatewayProcess:
        """``database``: "sqlite", "postgres" (a fresh one) or a URL; ``broker``: a broker URL; further arguments are
        settings by name. ``var_dir`` continues where another gateway has left off. ``migrated`` false: SQLite starts
        from nothing, as a user's does, which takes seconds."""
        url = self._databases().new() if database == "postgres" else database
        self._count += 1
        where = var_dir or self._directory / str(self._count)
        gateway = GatewayProcess(where, database=url, broker=broker, environment=environment)
        if url == "sqlite" and migrated and not where.exists():
            where.mkdir(mode=0o700, parents=True)
            copy_migrated_sqlite(where / "portcullis.sqlite3")
        self._ending.callback(gateway.end)
        return gateway.start(wait=wait)

    def close(self) -> None:
        self._ending.close()

"""A gateway to measure: its real processes, started one by one, so that each can have its core."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from bench.databases import SQLITE, Database
from bench.load import Party
from bench.machine import (
    GATEWAY_CORE,
    LOAD_CORE,
    ROOT,
    CannotMeasure,
    Stage,
    eventually,
    free_port,
    plain_environment,
)
from bench.peers import PATH
from bench.plain_http import Client, answers, status

WORKER = "gateway_project.dataplane.worker"
READY_S = 90.0


class Gateway:
    """One host with one worker. ``settings`` come before those of the database."""

    def __init__(self, stage: Stage, database: Database, **settings: str) -> None:
        self._stage = stage
        self._database = database
        self.port, self.admin_port = free_port(), free_port()
        self.var_dir = stage.directory / "var"
        self.var_dir.mkdir(mode=0o700, exist_ok=True)
        self.environment = {
            **plain_environment(),
            **database.settings,
            "VAR_DIR": str(self.var_dir),
            "BIND": "127.0.0.1",
            "PORT": str(self.port),
            "ADMIN_PORT": str(self.admin_port),
            "METRICS_PORT": str(free_port()),
            "NODE_NAME": "bench",
            "WORKERS": "1",
            "LOG_LEVEL": "WARNING",
            "EGRESS_ALLOW": "127.0.0.0/8",
            "AUTH_FAILURES_PER_MINUTE": "1000000",  # `feed` suspends its own key
            **settings,
        }

    @property
    def client_key_id(self) -> str:
        return self._database.client_key_id

    @property
    def key_header(self) -> str:
        return f"X-API-Key: {self._database.client_key}"

    def output(self) -> str:
        """The last of what its processes have written."""
        return self._stage.output()

    @cache  # noqa: B019  # as long as the gateway lives, which is as long as the measurement
    def worker_settings(self) -> bytes:
        """As JSON. Raises CannotMeasure."""
        done = subprocess.run(
            [sys.executable, "manage.py", "workersettings"], cwd=ROOT, env=self.environment, capture_output=True
        )
        if done.returncode != 0:
            raise CannotMeasure(f"the gateway has no settings: {done.stderr.decode(errors='replace')[-600:]}")
        return done.stdout

    def start_worker(self, module: str = WORKER, *arguments: str) -> subprocess.Popen[bytes]:
        """On the gateway's core, with its settings on standard input, as the supervisor does it."""
        command = (sys.executable, "-m", module, *arguments)
        return self._stage.start(GATEWAY_CORE, *command, stdin=self.worker_settings())

    def start_agent(self) -> subprocess.Popen[bytes]:
        return self._stage.start(LOAD_CORE, sys.executable, "manage.py", "runagent", environment=self.environment)

    def start_control(self) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "gateway_project.control_server")
        return self._stage.start(LOAD_CORE, *command, environment=self.environment)

    def start_all(self) -> subprocess.Popen[bytes]:
        """The supervisor and all its processes, as an operator starts them, on all cores."""
        embedded = ("--embedded",) if self._database.kind == SQLITE else ()
        command = (sys.executable, "manage.py", "rungateway", *embedded)
        return self._stage.start(None, *command, environment=self.environment)

    def serves(self) -> bool:
        """Whether the request that is measured is answered."""
        return answers(self.port, PATH, (self.key_header,))

    def control_answers(self) -> bool:
        """Whether the admin API does."""
        return status(self.admin_port, "/health") > 0

    def wait_until_it_serves(self) -> None:
        """Raises CannotMeasure."""
        try:
            eventually(self.serves, "an answer of the gateway", READY_S)
        except CannotMeasure as error:
            raise CannotMeasure(f"{error}:\n{self.output()}") from None

    def party(self, name: str, worker: subprocess.Popen[bytes]) -> Party:
        return Party(name, worker.pid, self.port, PATH, (self.key_header,))

    def client(self) -> Client:
        return Client(self.port, {"X-API-Key": self._database.client_key})

    def admin(self) -> Client:
        """Of the admin API, on its own port."""
        return Client(self.admin_port, {"X-API-Key": self._database.admin_key})

"""Servers of the tests' own, on free ports: PostgreSQL, Redis and RabbitMQ that a test may stop, kill and start again.

Each keeps its data and its port from one start to the next, and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import amqp
import psycopg

_libc = ctypes.CDLL(None)
START_TIMEOUT_S = 60.0


def free_port() -> int:
    """One that nobody uses, from below those that the kernel gives to outgoing connections: else one of these may take
    it before the server that it is meant for (ip(7), ip_local_port_range)."""
    while True:
        port = secrets.randbelow(20_000) + 12_000
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def postgres_answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.Error:
        return False
    return True


def redis_answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), timeout=3) as connection:
            if parts.password:
                connection.sendall(f"AUTH {parts.username or 'default'} {parts.password}\r\n".encode())
                connection.recv(100)
            connection.sendall(b"PING\r\n")
            return connection.recv(100).startswith(b"+PONG")
    except OSError:
        return False


def rabbitmq_answers(url: str) -> bool:
    parts = urlsplit(url)
    connection = amqp.Connection(
        host=f"{parts.hostname}:{parts.port or 5672}",
        userid=parts.username or "guest",
        password=parts.password or "guest",
        virtual_host=parts.path[1:] or "/",
        connect_timeout=3,
    )
    try:
        connection.connect()
        connection.close()
    except (OSError, amqp.AMQPError):
        return False
    return True


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG; for PostgreSQL an immediate shutdown


def _signal_family(pid: int, number: int) -> None:
    """Signal a process and all that it has started, the children of PostgreSQL too, which lead sessions of their own.
    One that is not stopped meanwhile might start more."""
    if number != signal.SIGCONT:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    children = _children(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    for child in children:
        _signal_family(child, number)


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]  # proc(5)
    except FileNotFoundError:  # ended meanwhile
        return []


class PrivateServer:
    """``start`` returns when the server answers; ``stop`` is its orderly end, ``kill`` is SIGKILL, ``freeze`` and
    ``thaw`` make it hang and go on."""

    name: ClassVar[str]
    stop_signal: ClassVar[int] = signal.SIGTERM

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"portcullis-{self.name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def is_installed(cls) -> bool:
        raise NotImplementedError

    @property
    def url(self) -> str:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def user(self) -> str | None:
        """Whose process it becomes; None = ours."""
        return None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> PrivateServer:
        with (self.directory / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.environment(),
                user=self.user(),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._wait_until_it_answers(self._process)
        return self

    def stop(self) -> None:
        self._end(self.stop_signal)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def destroy(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / "output.log").read_text(errors="replace")
                self.kill()
                raise RuntimeError(f"a private {self.name} does not start:\n{log[-2000:]}")
            time.sleep(0.05)

    def _signal(self, number: int) -> None:
        if self._process is not None and self.is_running:
            _signal_family(self._process.pid, number)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if number == signal.SIGKILL:
            _signal_family(process.pid, number)  # its children too: they hold what the next start needs
        elif process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            _signal_family(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


class PrivatePostgres(PrivateServer):
    name = "postgres"
    stop_signal = signal.SIGINT  # a fast shutdown; SIGTERM would wait for the clients

    def __init__(self) -> None:
        super().__init__()
        data = self.directory / "data"
        user = self.user()
        if user is not None:
            shutil.chown(self.directory, user)
        initdb = [str(self._binary("initdb")), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        done = subprocess.run(
            [*initdb, "--locale=C", "--no-sync"], user=user, cwd=self.directory, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb fails: {done.stderr}")

    @classmethod
    def is_installed(cls) -> bool:
        return cls._binary("initdb") is not None and cls._binary("postgres") is not None

    @staticmethod
    def _binary(name: str) -> Path | None:
        # Debian keeps them off the PATH, one directory for each major version.
        versions = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: int(path.split("/")[4]))
        found = versions[-1] if versions else shutil.which(name)
        return Path(found) if found else None

    def user(self) -> str | None:
        if os.geteuid() != 0:
            return None
        with contextlib.suppress(KeyError):  # PostgreSQL refuses to run as root
            return pwd.getpwnam("postgres").pw_name
        return "nobody"

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def answers(self) -> bool:
        return postgres_answers(self.url)

    def command(self) -> list[str]:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"]
        binary, data = self._binary("postgres"), self.directory / "data"
        return [str(binary), "-D", str(data), "-p", str(self.port), "-k", "", *options]


class PrivateRedis(PrivateServer):
    """``persistence``: what it keeps from one start to the next."""

    name = "redis"
    persistence: Sequence[str] = ("--appendonly", "yes")

    @classmethod
    def is_installed(cls) -> bool:
        return shutil.which("redis-server") is not None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        return redis_answers(self.url)

    def command(self) -> list[str]:
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        return ["redis-server", *where, *self.persistence, "--save", "", "--daemonize", "no"]


class PrivateRabbitMQ(PrivateServer):
    name = "rabbitmq"
    server = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # not the wrapper in sbin, which changes the user

    def __init__(self) -> None:
        super().__init__()
        self._epmd_port = free_port()
        self._distribution_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        (self.directory / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{self.port}\n")
        (self.directory / "plugins").write_text("[].\n")

    @classmethod
    def is_installed(cls) -> bool:
        return cls.server.exists() and shutil.which("epmd") is not None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def answers(self) -> bool:
        return rabbitmq_answers(self.url)

    def command(self) -> list[str]:
        return [str(self.server)]

    def environment(self) -> dict[str, str]:
        home = str(self.directory)
        return {
            "PATH": os.environ["PATH"],
            "HOME": home,  # where Erlang keeps its cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_FLAGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_ALLOW_INPUT": "true",  # the script becomes the server instead of a shell that waits for it
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/plugins",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": home,
            "RABBITMQ_NODENAME": f"portcullis{self.port}@localhost",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noshell",
        }

    def start(self) -> PrivateServer:
        if self._epmd is None:
            # In the foreground and on a port of its own; Erlang would leave a daemon behind.
            self._epmd = subprocess.Popen(
                ["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)], preexec_fn=_die_with_parent
            )
        return super().start()

    def destroy(self) -> None:
        super().destroy()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

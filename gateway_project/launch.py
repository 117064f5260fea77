"""What is looked at before the gateway's processes start, and which processes there are on this host."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from access.models import SetupCompletion
from gateway_project.companions import CALM_CELERY
from gateway_project.dataplane.tls import CertificateError, ClientTrust, expired, sources
from gateway_project.probes import worker_is_ready
from gateway_project.processes import ProcessSpec
from gateway_project.supervisor import say
from gateway_project.worker_settings import worker_settings

SECRET_NAMES = ("SECRET_KEY", "KEY_PEPPER", "DATABASE_URL", "DATABASE_LISTEN_URL", "CELERY_BROKER_URL", "REDIS_URL",
                "SETUP_TOKEN", "METRICS_TOKEN", "JWT_SECRET", "VAULT_TOKEN", "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_PASSWORD",
                "GOOGLE_APPLICATION_CREDENTIALS")  # fmt: skip
DRAIN_TIMEOUT_S = 35.0  # a worker's second of grace, its 30 s for requests in flight, and some slack
_SOCKET_PATH_LIMIT = 107  # bytes (unix(7))


class CannotStart(Exception):
    """``str()`` is the one sentence that says why."""


def make_var_dir() -> None:
    """Raises CannotStart."""
    path = settings.VAR_DIR
    if len(os.fsencode(path / "control.sock")) > _SOCKET_PATH_LIMIT:
        raise CannotStart(f"VAR_DIR {path} is too long a path for a Unix socket in it.")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"VAR_DIR {path} cannot be made: {error.strerror}.") from None
    if path.stat().st_mode & 0o007:
        say(f"VAR_DIR {path} is open to every user of this host; its owner can close it: chmod o= {path}")


def check_access_log() -> None:
    """Raises CannotStart when the workers could not write it."""
    path = settings.ACCESS_LOG
    if path == "-":
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600))
    except OSError as error:
        if error.errno != errno.ENXIO:  # a pipe that nobody reads yet
            raise CannotStart(f"ACCESS_LOG {path} cannot be written: {error.strerror}.") from None


@contextlib.contextmanager
def exclusive(var_dir: Path) -> Iterator[None]:
    """One gateway for each VAR_DIR: its sockets and files are named there. Raises CannotStart."""
    try:
        descriptor = os.open(var_dir / "gateway.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CannotStart(f"VAR_DIR {var_dir} cannot be written: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CannotStart(f"Another gateway runs with VAR_DIR {var_dir}; stop it or set VAR_DIR.") from None
    finally:
        os.close(descriptor)


def check_ports(addresses: Sequence[tuple[str, str, int]]) -> None:
    """``(setting, host, port)`` each. Raises CannotStart, naming the setting, when one cannot be bound."""
    with contextlib.ExitStack() as bound:
        for setting, host, port in addresses:
            try:
                bound.enter_context(_bind(host, port))
            except OSError as error:
                raise CannotStart(_why_not(setting, host, port, error)) from None


def _bind(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Not SO_REUSEPORT: with it, a second gateway of the same user would silently share the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)  # without this, SO_REUSEADDR would let two of our own settings have the same port
    except OSError:
        listener.close()
        raise
    return listener


def _why_not(setting: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use; set {setting} to a free one."
    if error.errno == errno.EACCES:
        return f"Port {port} may not be used by this user; set {setting} to one above 1023."
    return f"{host}:{port} ({setting}) cannot be bound: {error.strerror}."


def prepare_database() -> None:
    """Embedded: migrate. Otherwise the database must be migrated, unless it cannot be reached: then the gateway starts
    from its last good snapshot. Raises CannotStart."""
    try:
        if settings.EMBEDDED:
            call_command("migrate", interactive=False, verbosity=0)
        elif _is_unmigrated():
            raise CannotStart("The database is not migrated; run: python manage.py migrate")
    except DatabaseError as error:
        say(f"the database cannot be used ({_first_line(error)}); starting from the last good snapshot")
    finally:
        connection.close()


def _is_unmigrated() -> bool:
    executor = MigrationExecutor(connection)
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def make_setup_token() -> str | None:
    """A token for ``POST /setup`` where it can still be used and none is set (rule 16), passed on by environment."""
    if settings.EMBEDDED or settings.SETUP_TOKEN:
        return None
    try:
        is_done = SetupCompletion.objects.exists() or get_user_model().objects.filter(is_superuser=True).exists()
    except DatabaseError:
        return None
    finally:
        connection.close()
    if is_done:
        return None
    os.environ["SETUP_TOKEN"] = token = secrets.token_urlsafe(24)
    return token


def raise_descriptor_limit() -> None:
    """Each connection takes a descriptor, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_certificates() -> None:
    """Raises CannotStart when the TLS port could not serve a certificate. Warns of those that have expired."""
    if not settings.TLS_PORT:
        return
    try:
        found = sources(settings.TLS_CERTIFICATE, settings.TLS_KEY, settings.TLS_CERTIFICATES_DIR)
        for sentence in expired(found, time.time()):
            say(sentence)
        ClientTrust(worker_settings())
    except CertificateError as error:
        raise CannotStart(str(error)) from None


def gateway_addresses() -> list[tuple[str, str, int]]:
    """``(setting, host, port)`` of everything that listens."""
    return [
        ("PORT", settings.BIND, settings.PORT),
        *([("TLS_PORT", settings.BIND, settings.TLS_PORT)] if settings.TLS_PORT else []),
        ("ADMIN_PORT", settings.PANEL_BIND, settings.ADMIN_PORT),
        ("METRICS_PORT", settings.METRICS_BIND, settings.METRICS_PORT),
    ]


def workers() -> list[ProcessSpec]:
    """The data plane. They get their settings on standard input, and no secret of others by environment."""
    environment = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in SECRET_NAMES}
    return [
        ProcessSpec(
            name=f"worker-{slot}",
            command=(sys.executable, "-m", "gateway_project.dataplane.worker"),
            stdin=worker_settings(slot).to_json(),
            has_stdout=True,
            environment=environment,
            is_ready=partial(worker_is_ready, settings.BIND, settings.PORT, preamble=probe_preamble()),
            stop_timeout_s=DRAIN_TIMEOUT_S,
        )
        for slot in range(settings.WORKERS)
    ]


def probe_preamble() -> bytes:
    """What a probe of this host says before HTTP: that it speaks for itself."""
    return b"PROXY UNKNOWN\r\n" if settings.PROXY_PROTOCOL else b""


def events_worker() -> ProcessSpec:
    """Takes completions from the queue of EVENTS_QUEUE. It waits for a broker that is away, so nobody waits for it."""
    return ProcessSpec(
        name="events",
        command=(
            *(sys.executable, "-m", "celery", "--quiet", "-A", "gateway_project.celery_app", "worker"),
            *("-Q", settings.EVENTS_QUEUE, "-n", f"gateway-events-{os.getpid()}@%h"),
            *("--without-gossip", "--without-mingle", "-l", "WARNING"),
        ),
        environment={**os.environ, **CALM_CELERY, "DJANGO_SETTINGS_MODULE": "gateway_project.settings"},
    )

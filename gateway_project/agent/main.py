"""The agent: the one process of a host that speaks to the database for its workers."""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Coroutine, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from django.conf import settings

from access.addresses import EgressPolicy
from core.secret_references import SecretReferences
from core.wire import Message
from gateway_project.agent.alerts import Alerts
from gateway_project.agent.calls import TaskCalls
from gateway_project.agent.discovery import Discovery
from gateway_project.agent.follower import Follower
from gateway_project.agent.issuers import Issuers
from gateway_project.agent.key_watch import KeyWatch
from gateway_project.agent.limits import LimitCounts
from gateway_project.agent.managed_secrets import SecretCalls
from gateway_project.agent.metrics import WorkerMetrics, serve_metrics
from gateway_project.agent.probes import HealthNews, Prober
from gateway_project.agent.purges import PurgeFollower
from gateway_project.agent.relay import Relay
from gateway_project.agent.retention import Retention
from gateway_project.agent.revocations import RevocationFollower
from gateway_project.agent.server import AgentServer, Peer
from gateway_project.agent.snapshot_file import SnapshotKeeper
from gateway_project.agent.status import StatusBoard, StatusWriter
from gateway_project.agent.store import ConfigStore
from gateway_project.agent.versions import Versions
from gateway_project.agent.writer import NodeState, Writer
from gateway_project.celery_app import app as celery_app
from gateway_project.dataplane.snapshot_file import REVOCATIONS_FILE
from gateway_project.dataplane.tokens import KEYS_FILE
from routing.health import Finding, Probe
from routing.probing import Asker
from routing.upstream.tls import ClientContexts

logger = logging.getLogger("portcullis.agent")

_SOCKET_PATH_LIMIT = 107  # bytes (unix(7))


class AgentCannotStart(Exception):
    """The message is one sentence for whoever started it."""


class Agent:
    """Wires the parts together. ``server.handlers`` is the registry of what workers may call."""

    def __init__(self) -> None:
        self.store = ConfigStore()
        self.server = AgentServer(self.store, settings.VAR_DIR / "agent.sock", self._on_message)
        self.follower = Follower(self.store, self.server.wake, self._on_other_history)
        self.writer = Writer(settings.NODE_NAME, self._node_states)
        self.keeper = SnapshotKeeper(self.store, settings.VAR_DIR / "snapshot.bin", settings.MAX_CONFIG_AGE)
        self.relay = Relay(celery_app)
        self.prober = Prober(self.store, self._ask, self._on_health)
        self.health_news = HealthNews(self.prober.watched)
        self.purges = PurgeFollower(self.server.wake)
        self.revocations = RevocationFollower(settings.VAR_DIR / REVOCATIONS_FILE, self.server.wake)
        self.server.news.append(self.revocations)
        self.server.news += (self.health_news, self.purges)
        self.egress = EgressPolicy(settings.EGRESS_ALLOW)
        self.managers = SecretCalls()
        self.secrets = SecretReferences(settings.SECRETS_DIR, settings.OWN_SECRET_FILES, managed=self.managers.managed)
        self.issuers = Issuers(
            self.store,
            self.egress.permits,
            self.secrets,
            settings.VAR_DIR / KEYS_FILE,
            self.server.wake,
        )
        self.server.news.append(self.issuers)
        self.server.handlers.update(self.issuers.handlers)
        self.discovery = Discovery(self.store, self.egress.permits, settings.REDIS_URL, self.server.wake)
        self.board = StatusBoard(
            self.prober.watched, lambda: {peer.pid for peer in self.server.peers}, self.discovery.sources
        )
        self.status = StatusWriter(settings.NODE_NAME, self.board)
        self.metrics = WorkerMetrics(self._gauges, lambda: (*self.board.metrics(), *self.keys.metrics()))
        self.calls = TaskCalls(self.relay.wake)
        self.server.handlers.update(self.calls.handlers | self.managers.handlers)
        self.versions = Versions(settings.NODE_NAME)
        self.limit_counts = LimitCounts(settings.NODE_NAME)
        self.server.handlers.update(self.limit_counts.handlers)
        self.keys = KeyWatch(settings.NODE_NAME, self.server.wake)
        self.server.news.append(self.keys)
        self.server.handlers.update(self.keys.handlers)

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set. Raises what a part failed with, and AgentCannotStart."""
        listener = _metrics_listener()
        server = asyncio.create_task(self.server.run(), name="server")
        await asyncio.to_thread(self.keeper.start_store)
        await asyncio.to_thread(self.revocations.start)
        parts = [
            _named("writer", self.writer.run()),  # ends first, so that its last heartbeat has the workers in it
            _named("snapshot file", self.keeper.run()),
            _named("queues", self._run_queues()),
            _named("secrets managers", self.managers.run()),
            _named("retention", Retention().run()),
            _named("health checks", self._run_health_checks()),
            _named("target status", self.status.run()),
            _named("discovery", self.discovery.run()),
            _named("versions", self.versions.run()),
            _named("limits", self.limit_counts.run()),
            _named("keys", self.keys.run()),
            _named("alerts", Alerts(celery_app).run()),
            _named("follower", self.follower.run()),
            _named("purges", self.purges.run()),
            _named("issuers", self.issuers.run()),
            _named("revocations", self.revocations.run()),
            _named("metrics", serve_metrics(listener, self.metrics, settings.METRICS_TOKEN)),
            server,
        ]
        logger.info("the agent is ready on %s", settings.VAR_DIR / "agent.sock")
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, *parts}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await _end(parts)
        logger.info("the agent has ended")

    async def _run_queues(self) -> None:
        """Until cancelled; then what has been accepted is stored, and what is being published confirmed."""
        self.relay.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.calls.close()
            await self.relay.stop()

    async def _run_health_checks(self) -> None:
        self._asker = Asker(self.egress.permits, ClientContexts(self.secrets.resolve).context)
        try:
            self.prober.remembered = await self.status.unhealthy_before()
            await self.prober.run()
        finally:
            await self._asker.aclose()

    async def _ask(self, probe: Probe) -> Finding:
        return await self._asker.ask(probe)

    def _on_health(self) -> None:
        self.health_news.changed()
        self.server.wake()

    def _on_message(self, peer: Peer, message: Message) -> None:
        kind = message["type"]
        if kind in ("ack", "join"):
            self.writer.acknowledged()
        elif kind == "metrics":
            self.metrics.take(peer.pid, message)
            self.board.take(peer.pid, message.get("targets", ()))
        elif kind == "dropped":
            self.server.pass_on(peer, message)
        elif kind == "used":
            self.writer.used(message["rows"])
        elif kind == "version_uses":
            self.versions.take_uses(message["rows"])
        elif kind == "limit_uses":
            self.limit_counts.take_uses(peer.pid, message["rows"])
        elif kind == "violations":
            self.limit_counts.take_violations(message["rows"])
        elif kind == "version_traffic":
            self.versions.take_traffic(message["rows"])

    def _on_other_history(self) -> None:
        """What workers have applied means nothing there, and whoever waits for them must not believe it."""
        self.server.forget_applied()
        self.writer.acknowledged()

    def _node_states(self) -> list[NodeState]:
        """One for each slot. While a worker is replaced two of them serve, and the slot is where the slower one is."""
        problems = list(self.store.problems.values())
        slots: dict[int, list[Peer]] = {}
        for peer in sorted(self.server.peers, key=lambda peer: peer.joined_at):
            slots.setdefault(peer.slot, []).append(peer)
        return [
            NodeState(
                slot=slot,
                pid=peers[-1].pid,
                applied_revision=min(peer.applied_revision for peer in peers),
                problems=[*problems, *peers[-1].problems],
                started_at=peers[-1].joined_at,
            )
            for slot, peers in slots.items()
        ]

    def _gauges(self) -> Iterable[tuple[str, str, float]]:
        age_s = time.time() - self.store.as_of if self.store.as_of else float("inf")
        slowest = min((peer.applied_revision for peer in self.server.peers), default=self.store.position.number)
        yield "api_gateway_config_revision", "The revision that the agent holds", self.store.position.number
        yield "api_gateway_config_applied_revision", "The lowest revision that a worker runs on", slowest
        yield "api_gateway_config_age_seconds", "Seconds since the database was last read", age_s
        yield "api_gateway_config_problems", "Rows that do not compile and are skipped", len(self.store.problems)
        stale = self.issuers.without_fresh_keys
        yield "api_gateway_issuers_without_fresh_keys", "Issuers of tokens whose keys could not be had", stale
        yield "api_gateway_workers", "Workers that are connected to the agent", len(self.server.peers)


async def run_agent(stop: asyncio.Event) -> None:
    """Run the agent of this host and VAR_DIR until ``stop`` is set. Raises AgentCannotStart."""
    with only_agent(settings.VAR_DIR):
        await Agent().run(stop)


@contextlib.contextmanager
def only_agent(directory: Path) -> Iterator[None]:
    """Two agents on one directory would take each other's socket away. The lock goes with the process, however it
    ends. Raises AgentCannotStart."""
    path = directory / "agent.lock"
    if len(os.fsencode(directory / "agent.sock")) > _SOCKET_PATH_LIMIT:
        raise AgentCannotStart(f"VAR_DIR {directory} is too long a path for a Unix socket in it.")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise AgentCannotStart(f"VAR_DIR {directory} cannot be written to: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise AgentCannotStart(f"Another agent (pid {holder}) runs on VAR_DIR {directory} already.") from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(descriptor)


def _metrics_listener() -> socket.socket:
    host, port = settings.METRICS_BIND, settings.METRICS_PORT
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AgentCannotStart(f"METRICS_PORT {port} on METRICS_BIND {host} cannot be used: {reason}.") from None


def _named(name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(coroutine, name=name)


async def _end(parts: list[asyncio.Task[None]]) -> None:
    """Stop the parts one after the other; then raise what one of them failed with."""
    failures = []
    for part in parts:
        part.cancel()
        try:
            await part
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            failures.append(error)
    if failures:
        raise failures[0]

"""The data plane of one worker: wires the steps together, answers for them, and keeps time.

`Gateway` is an ASGI application, so that any server can run it; with `protocol.ClientProtocol` as uvicorn's protocol
class requests skip ASGI and reach `handle` directly.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from access.addresses import EgressPolicy, TrustedProxies
from access.cors import CorsPolicy
from access.limits.local import LocalLimiter
from core import own_headers
from core.context import Exchange
from core.faults import ConnectFault, GatewayFault, InternalFault
from core.problem import Form, instance_of
from core.secret_references import SecretReferences
from core.secret_references.managed import ManagedSecrets
from gateway_project.dataplane.access_log import AccessLog
from gateway_project.dataplane.admission import Admission
from gateway_project.dataplane.agent_link import AgentLink
from gateway_project.dataplane.aggregating import Aggregating
from gateway_project.dataplane.asgi_exchange import AsgiExchange
from gateway_project.dataplane.failed_attempts import FailedAttempts
from gateway_project.dataplane.holding import Hold
from gateway_project.dataplane.identity import Identity, identify
from gateway_project.dataplane.key_uses import KeyUses
from gateway_project.dataplane.limiting import Limiting
from gateway_project.dataplane.metrics import Metrics
from gateway_project.dataplane.options import Options
from gateway_project.dataplane.own_endpoints import OwnEndpoints
from gateway_project.dataplane.pipeline import Pipeline
from gateway_project.dataplane.queueing import Queueing
from gateway_project.dataplane.recognition import Recognition
from gateway_project.dataplane.revocation import Revocation
from gateway_project.dataplane.secret_watch import SecretWatch
from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.dataplane.surviving import surviving_counters, surviving_gauges
from gateway_project.dataplane.target_health import TargetHealth, target_report
from gateway_project.dataplane.tokens import KEYS_FILE, Tokens
from gateway_project.dataplane.tracing import begin_trace
from gateway_project.dataplane.tunnels import Tunnels
from gateway_project.dataplane.version_counts import VersionCounts
from keys.credential import Digester
from routing.answers import AnswerHead, AnswerSink
from routing.cache.purges import PurgeBook
from routing.cache.step import Cache
from routing.forwarding import Forwarder
from routing.mirroring import Mirrors
from routing.target_registry import TargetRegistry
from routing.upstream.pool import Connector
from routing.upstream.tls import ClientContexts

if TYPE_CHECKING:
    from access.certificates import ClientCertificate
    from access.limits.shared.limits import SharedLimits
    from routing.cache.shared_tier import SharedTier

logger = logging.getLogger("portcullis")

VIA = b"via: 1.1 portcullis\r\n"
SWEEP_S = 0.2
FIRST_SNAPSHOT_LOOKS = 300  # every 10 ms
_REPORT_S = 1.0
_SECRETS_S = 30.0  # between two questions to the agent for the same secret
_SECRET_TIMEOUT_S = 20.0
_USED_S = 10.0
_SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))  # RFC 9110 section 9.2.1
_SWEEP_BUDGET = 2000  # buckets looked at in one sweep
_MAX_INSTANCE = 2048
_MAX_INSTANCES = 1024

Gauge = tuple[str, dict[str, str], float]  # name, labels, value
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Gateway:
    """One worker's data plane. `startup` before the first request, `shutdown` after the last."""

    loop: asyncio.AbstractEventLoop
    forwarder: Forwarder
    mirrors: Mirrors

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.now = time.monotonic
        self.key_header = settings.api_key_header.lower().encode("ascii")
        self.link = AgentLink(settings)
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.cors = CorsPolicy(settings.cors_origins)
        self.digester = Digester(bytes.fromhex(settings.pepper))
        self.managed_secrets = ManagedSecrets(self._ask_for_secret, renew_s=_SECRETS_S)
        self.secrets = SecretReferences(settings.secrets_dir, settings.own_secret_files, managed=self.managed_secrets)
        self._secret_watch = SecretWatch(self.secrets)
        self.limiter = LocalLimiter(epoch_ns=time.time_ns() - time.monotonic_ns())
        self.limiting = Limiting(self, self._shared_limits if settings.redis_url else None)
        self.failures = FailedAttempts(self, settings.auth_failures_per_minute)
        # The path that a problem document names. Whoever is refused asks for the same again and again.
        self._instance = lru_cache(maxsize=_MAX_INSTANCES)(_instance)
        self.metrics = Metrics()
        self.targets = TargetRegistry(
            lambda: self.link.snapshot.services,
            failures=settings.circuit_failures,
            open_s=settings.circuit_open_s,
            affinity_key=hmac.digest(bytes.fromhex(settings.pepper), b"affinity cookies", "sha256"),
            now=self.now,
        )
        self.target_health = TargetHealth(self.targets, lambda: self.link.is_connected)
        self.link.on("health", self.target_health.take)
        self.cache = Cache(self, settings.cache_bytes, VIA, self._shared_tier if settings.redis_url else None)
        if settings.workers > 1:
            self.cache.tell = self.link.send_dropped
            self.link.on("dropped", self.cache.take_dropped)
        self.link.on("purges", self.cache.take_purges)
        self.version_counts = VersionCounts()
        self.tokens = Tokens(self)
        self.admission = Admission(self)
        self.pipeline = Pipeline(self)
        self.own = OwnEndpoints(self)
        self.options = Options(self)
        self.queueing = Queueing(self)
        self.tunnels = Tunnels(self)
        self.revocation = Revocation(self)
        self.aggregating = Aggregating(self)
        # Of TLS connections: what certificate the client has shown.
        self.read_certificate: Callable[[asyncio.BaseTransport], ClientCertificate | None] | None = None
        self.access_log: AccessLog | None = None
        self.connections: set[Any] = set()  # of clients, where we keep their time ourselves
        self.gauge_sources: list[Callable[[], Iterable[Gauge]]] = []
        self.is_draining = False
        self.key_uses = KeyUses()
        self.recognition = Recognition(self)
        self.link.on("peppers", self.recognition.take)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Task[None] | None = None

    def _shared_tier(self, purges: PurgeBook) -> SharedTier:
        from routing.cache.shared_tier import SharedTier  # most workers need no Redis

        return SharedTier(self.settings.redis_url, purges, self.now, self.settings.redis_wait_s)

    async def _ask_for_secret(self, reference: str) -> bytes:
        """The agent speaks with secrets managers. Raises GatewayFault."""
        answer = await self.link.call("secret", {"reference": reference}, _SECRET_TIMEOUT_S)
        return b64decode(answer["value"])

    def _shared_limits(self) -> SharedLimits:
        from access.limits.shared.limits import SharedLimits  # most workers need no Redis

        settings = self.settings
        digest_key = hmac.digest(bytes.fromhex(settings.pepper), b"limits", "sha256")
        wait_s, mode = settings.rate_limit_wait_s, settings.rate_limit_mode
        return SharedLimits(settings.redis_url, wait_s=wait_s, digest_key=digest_key, mode=mode)

    @property
    def has_snapshot(self) -> bool:
        return self.link.has_snapshot

    @property
    def is_config_too_old(self) -> bool:
        return self.link.is_too_old

    # --- life ---
    async def startup(self) -> None:
        self.loop = asyncio.get_running_loop()
        connector = Connector(
            self.loop, EgressPolicy(self.settings.egress_allow).permits, ClientContexts(self.secrets.resolve)
        )
        self.forwarder = Forwarder(connector, self.key_header, VIA, self.refuse_forwarded, self.secrets)
        self.mirrors = Mirrors(self.loop, self.forwarder, self.targets, self.settings.request_timeout_s)
        self.access_log = AccessLog(self.settings.access_log)
        self._renew_date()
        if await self.link.start():
            await self._await_snapshot()
        else:
            self.tokens.load(Path(self.settings.snapshot_path).with_name(KEYS_FILE))
        self.limiting.prepare()
        self._timer = self.loop.create_task(self._keep_time())

    async def _await_snapshot(self) -> None:
        """A worker that takes its place among others must not answer before it knows what they know."""
        for _ in range(FIRST_SNAPSHOT_LOOKS):
            if self.has_snapshot:
                return
            await asyncio.sleep(0.01)

    async def shutdown(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._cut_off()
        self._report()
        self.version_counts.report(self.link.send, time.time() - self.now())
        self.key_uses.report(self.link.send, time.time() - self.now())
        self.managed_secrets.close()
        await self.limiting.close()
        await self.cache.close()
        await self.link.close()
        self.forwarder.connector.close()
        if self.access_log is not None:
            self.access_log.close()

    async def _cut_off(self) -> None:
        """What has not ended within the drain ends now, visibly (the process's own end could look like an answer's),
        and is accounted for."""
        for forwarding in list(self.forwarder.active):
            forwarding.client_gone()
            forwarding.exchange.abort()
        for tunnel in self.tunnels.open_ones:
            tunnel.transport.abort()
            tunnel.upstream.transport.abort()
        await asyncio.sleep(0)  # for the ends to be noticed
        await asyncio.sleep(0)

    def reopen_log(self) -> None:
        """The access log was rotated."""
        if self.access_log is not None:
            self.access_log.reopen()

    async def _keep_time(self) -> None:
        """All time limits of the worker are enforced by this one sweep: no request sets a timer."""
        next_report = next_use = 0.0
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.now()
            try:
                self._sweep(now)
                if now >= next_report:
                    next_report = now + _REPORT_S
                    self._report()
                    self.version_counts.report(self.link.send, time.time() - now)
                    self.limiting.prepare()
                    self.limiting.telling.tell()
                    self.limiting.uses.report(self.link.send)
                if now >= next_use and self.key_uses.report(self.link.send, time.time() - now):
                    next_use = now + _USED_S
            except Exception:
                logger.exception("the sweep failed")

    def _sweep(self, now: float) -> None:
        self.forwarder.sweep(now)
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.sweep(now)
        self.revocation.sweep(now)
        self.limiter.sweep(now, _SWEEP_BUDGET)
        self.failures.sweep(now, _SWEEP_BUDGET)
        self.targets.prune()
        self.target_health.sweep(now)
        self.link.look_at_age(time.time())
        self.tokens.revocations.forget(time.time())
        self.managed_secrets.sweep()
        if self.access_log is not None:
            self.access_log.flush()
        self._renew_date()

    def _renew_date(self) -> None:
        self.forwarder.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"

    def _report(self) -> None:
        log = self.access_log
        snapshot = self.link.snapshot
        unresolved = self._secret_watch.look(snapshot.services, snapshot.issuers)
        self.tokens.look()
        self.link.tell_problems([*unresolved, *self.limiting.problems])
        gauges: list[Gauge] = [
            ("portcullis_worker_revision", {"slot": str(self.settings.slot)}, float(self.link.snapshot.revision)),
            ("portcullis_client_connections", {}, float(len(list(self.connections)))),
            ("portcullis_websockets", {}, float(len(self.tunnels.open_ones))),
            ("portcullis_requests_in_flight", {}, float(len(self.forwarder.active))),
            ("portcullis_access_log_dropped", {}, float(log.dropped if log is not None else 0)),
            ("portcullis_unresolved_secrets", {}, float(len(unresolved))),
            *self.cache.gauges(),
            *surviving_gauges(self.targets),
            *self.limiting.gauges(),
        ]
        targets = target_report(self.targets, self.now())
        for source in self.gauge_sources:
            gauges += source()
        message = self.metrics.message(gauges)
        message["counters"] += self.cache.counters()
        message["counters"] += self.mirrors.counters()
        message["counters"] += self.tokens.counters()
        message["counters"] += self.limiting.counters()
        message["counters"] += surviving_counters(self.targets)
        self.link.send_metrics({**message, "bounds": self.metrics.bounds(), "targets": targets})

    # --- requests ---
    def identify(self, peer: str, scheme: str, host_field: bytes, noted: dict[bytes, bytes]) -> Identity:
        return identify(self.proxies, peer, scheme, host_field, noted)

    def certificate_of_field(self, value: bytes) -> ClientCertificate:
        """What Client-Cert of a trusted proxy says. Raises ClientFault."""
        from gateway_project.dataplane.client_certificates import of_field  # `cryptography`, which most do without

        return of_field(value)

    def handle(self, exchange: Exchange) -> None:
        """Run a request through the pipeline; whatever goes wrong becomes an answer."""
        begin_trace(exchange)
        try:
            self.pipeline.run(exchange)
        except Hold:
            pass
        except GatewayFault as fault:
            self.refuse(exchange, fault)
        except Exception as error:
            self.refuse(exchange, self.unexpected(error))

    def take_further(self, exchange: Exchange, step: Callable[[], None]) -> None:
        """Go on with a request that was held."""
        try:
            step()
        except Hold:
            pass
        except GatewayFault as fault:
            self.refuse(exchange, fault)
        except Exception as error:
            self.refuse(exchange, self.unexpected(error))

    def refuse(self, exchange: Exchange, fault: GatewayFault) -> None:
        """Answer with a fault as problem+json."""
        if not exchange.request_id:
            begin_trace(exchange)
        exchange.fault_code = fault.kind.code
        form = fault.form or Form(fault)
        body = form.document(self._instance(exchange.raw_path[:_MAX_INSTANCE]), exchange.request_id)
        self._answer(exchange, fault.kind.status, form.lines, body)

    def refuse_through(self, exchange: Exchange, sink: AnswerSink, fault: GatewayFault) -> None:
        """Answer with a fault in the place of an upstream's answer, to the filters that wait for that."""
        exchange.fault_code = fault.code
        form = fault.form or Form(fault)
        body = form.document(self._instance(exchange.raw_path[:_MAX_INSTANCE]), exchange.request_id)
        lines = [b"%b: %b\r\n" % field for field in form.fields]
        lines += (b"content-length: %d\r\ncache-control: no-store\r\n" % len(body), own_headers.LINES)
        lines.append(self.forwarder.date)
        sink.whole(AnswerHead(fault.status, lines, is_sized=True), body)

    def refuse_forwarded(self, exchange: Exchange, fault: GatewayFault) -> None:
        """Answer with the fault of a forwarding. One that leads to no service leads to a process of our own: when that
        one cannot be reached, the gateway has failed and not an upstream, and it will be back in a moment. That is said
        of a broken connection too where asking again does no harm."""
        is_harmless = fault.code == "upstream_reset" and exchange.method in _SAFE
        if exchange.match is None and (isinstance(fault, ConnectFault) or is_harmless):
            detail = "The gateway's process for this endpoint does not answer."
            fault = InternalFault("dependency_unavailable", detail, retry_after_s=1)
        self.refuse(exchange, fault)

    def unexpected(self, error: BaseException) -> InternalFault:
        """Our own mistake: the log gets the trace, the client a sentence."""
        logger.error("a request failed inside the gateway", exc_info=error)
        return InternalFault("internal_error", "The gateway failed; its log says how.")

    def answer(self, exchange: Exchange, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """An answer of the gateway's own. Nobody may store it (rule 7: what we say is never cached)."""
        self._answer(exchange, status, b"".join(b"%b: %b\r\n" % field for field in fields), body)

    def _answer(self, exchange: Exchange, status: int, lines: bytes, body: bytes) -> None:
        length = b"content-length: %d\r\ncache-control: no-store\r\n" % len(body)
        parts = (lines, length, own_headers.LINES, self.forwarder.date, exchange.answer_lines)
        exchange.answer(status, b"".join(parts), body)

    def answer_json(self, exchange: Exchange, status: int, document: dict[str, Any]) -> None:
        self.answer(exchange, status, [(b"content-type", b"application/json")], orjson.dumps(document))

    def spawn(self, exchange: Exchange, coroutine: Coroutine[Any, Any, None]) -> None:
        """Go on with an exchange in a task: for ways that are not the hot one. Faults become its answer."""
        task = self.loop.create_task(self._guarded(exchange, coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, exchange: Exchange, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except GatewayFault as fault:
            self.refuse(exchange, fault)
        except Exception as error:
            self.refuse(exchange, self.unexpected(error))

    def account(self, exchange: Exchange) -> None:
        """Step 13: the request is over, one way or another."""
        duration_s = self.now() - exchange.started
        key = exchange.key
        if key is not None:
            uses = exchange.session.uses
            if uses is None or uses.key_id != key.id or uses.address != exchange.identity.client:
                uses = self.key_uses.of(exchange)
            uses.requests += 1
            uses.last = exchange.started
        if exchange.under_way is not None:
            self.limiting.release(exchange)
        self.metrics.count(exchange, duration_s)
        if exchange.measured is not None:
            self.version_counts.count(exchange, duration_s)
        if self.access_log is not None:
            self.access_log.add(exchange, duration_s)

    def account_tunnel(self, exchange: Exchange) -> None:
        """The last line of a WebSocket. How long it was open says nothing of how fast it was answered."""
        answered_s = exchange.upstream_s or 0.0
        if exchange.key is not None:
            uses = self.key_uses.of(exchange)
            uses.requests += 1
            uses.last = self.now()
        if exchange.under_way is not None:
            self.limiting.release(exchange)
        self.metrics.count(exchange, answered_s)
        if exchange.measured is not None:
            self.version_counts.count(exchange, answered_s)
        if self.access_log is not None:
            self.access_log.add(exchange, self.now() - exchange.started)

    # --- ASGI ---
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await AsgiExchange(self, scope).run(receive, send)
        elif scope["type"] == "websocket":  # needs a socket of our own: the worker's protocol
            await receive()
            await send({"type": "websocket.close", "code": 1011})  # before it was accepted: 403
        else:
            raise ValueError(f"the gateway does not speak {scope['type']}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.startup()
        except Exception as error:
            logger.exception("the worker could not start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})


def _instance(raw_path: bytes) -> bytes:
    return instance_of(raw_path.decode("ascii", "backslashreplace"))

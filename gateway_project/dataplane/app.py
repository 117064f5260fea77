"""The data plane of one worker: wires the steps together, answers for them, and keeps time.

`Gateway` is an ASGI application, so that any server can run it; with `protocol.ClientProtocol` as uvicorn's protocol
class requests skip ASGI and reach `handle` directly.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from email.utils import formatdate
from typing import Any

import orjson

from access.addresses import EgressPolicy, TrustedProxies
from access.cors import CorsPolicy
from access.limits.local import FailureBuckets, LocalLimiter
from core.context import Exchange
from core.faults import ConnectFault, GatewayFault, InternalFault
from core.problem import render
from gateway_project.dataplane.access_log import AccessLog
from gateway_project.dataplane.agent_link import AgentLink
from gateway_project.dataplane.asgi_exchange import AsgiExchange
from gateway_project.dataplane.identity import Identity, identify
from gateway_project.dataplane.metrics import Metrics
from gateway_project.dataplane.own_endpoints import OwnEndpoints
from gateway_project.dataplane.pipeline import Pipeline
from gateway_project.dataplane.queueing import Queueing
from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.dataplane.tracing import begin_trace
from keys.credential import Digester
from routing.forwarding import Forwarder
from routing.upstream.pool import Connector

logger = logging.getLogger("portcullis")

SWEEP_S = 0.2
FIRST_SNAPSHOT_LOOKS = 300  # every 10 ms
_REPORT_S = 1.0
_USED_S = 10.0
_SWEEP_BUDGET = 2000  # buckets looked at in one sweep

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Gateway:
    """One worker's data plane. `startup` before the first request, `shutdown` after the last."""

    loop: asyncio.AbstractEventLoop
    forwarder: Forwarder

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.now = time.monotonic
        self.key_header = settings.api_key_header.lower().encode("ascii")
        self.link = AgentLink(settings)
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.cors = CorsPolicy(settings.cors_origins)
        self.digester = Digester(bytes.fromhex(settings.pepper))
        self.limiter = LocalLimiter()
        self.failures = FailureBuckets(settings.auth_failures_per_minute)
        self.metrics = Metrics()
        self.pipeline = Pipeline(self)
        self.own = OwnEndpoints(self)
        self.queueing = Queueing(self)
        self.access_log: AccessLog | None = None
        self.connections: Iterable[Any] = ()  # of clients, where we keep their time ourselves
        self.is_draining = False
        self._used: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Task[None] | None = None

    @property
    def has_snapshot(self) -> bool:
        return self.link.has_snapshot

    @property
    def is_config_too_old(self) -> bool:
        return self.link.is_too_old

    # --- life ---
    async def startup(self) -> None:
        self.loop = asyncio.get_running_loop()
        connector = Connector(self.loop, EgressPolicy(self.settings.egress_allow).permits)
        self.forwarder = Forwarder(connector, self.key_header, b"via: 1.1 portcullis\r\n", self.refuse_forwarded)
        self.access_log = AccessLog(self.settings.access_log)
        self._renew_date()
        if await self.link.start():
            await self._await_snapshot()
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
        self._report()
        await self.link.close()
        self.forwarder.connector.close()
        if self.access_log is not None:
            self.access_log.close()

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
                if now >= next_use and self._report_uses(now):
                    next_use = now + _USED_S
            except Exception:
                logger.exception("the sweep failed")

    def _sweep(self, now: float) -> None:
        self.forwarder.sweep(now)
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.sweep(now)
        self.limiter.sweep(now, _SWEEP_BUDGET)
        self.failures.sweep(now, _SWEEP_BUDGET)
        self.link.look_at_age(time.time())
        if self.access_log is not None:
            self.access_log.flush()
        self._renew_date()

    def _report_uses(self, now: float) -> bool:
        """Tell the agent when keys were last used, in epoch seconds; requests note it on the monotonic clock."""
        epoch = time.time() - now
        if not self._used or not self.link.send_used({key: epoch + at for key, at in self._used.items()}):
            return False
        self._used = {}
        return True

    def _renew_date(self) -> None:
        self.forwarder.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"

    def _report(self) -> None:
        log = self.access_log
        gauges = [
            ("portcullis_worker_revision", {"slot": str(self.settings.slot)}, float(self.link.snapshot.revision)),
            ("portcullis_client_connections", {}, float(len(list(self.connections)))),
            ("portcullis_requests_in_flight", {}, float(len(self.forwarder.active))),
            ("portcullis_access_log_dropped", {}, float(log.dropped if log is not None else 0)),
        ]
        self.link.send_metrics({**self.metrics.message(gauges), "bounds": self.metrics.bounds()})

    # --- requests ---
    def identify(self, peer: str, scheme: str, host_field: bytes, noted: dict[bytes, bytes]) -> Identity:
        return identify(self.proxies, peer, scheme, host_field, noted)

    def handle(self, exchange: Exchange) -> None:
        """Run a request through the pipeline; whatever goes wrong becomes an answer."""
        begin_trace(exchange)
        try:
            self.pipeline.run(exchange)
        except GatewayFault as fault:
            self.refuse(exchange, fault)
        except Exception as error:
            self.refuse(exchange, self.unexpected(error))

    def refuse(self, exchange: Exchange, fault: GatewayFault) -> None:
        """Answer with a fault as problem+json."""
        if not exchange.request_id:
            begin_trace(exchange)
        exchange.fault_code = fault.code
        instance = exchange.raw_path[:2048].decode("ascii", "backslashreplace")
        status, fields, body = render(fault, instance, exchange.request_id.decode("ascii"))
        self.answer(exchange, status, fields, body)

    def refuse_forwarded(self, exchange: Exchange, fault: GatewayFault) -> None:
        """Answer with the fault of a forwarding. One that leads to no service leads to a process of our own: when that
        one cannot be reached, the gateway has failed and not an upstream, and it will be back in a moment."""
        if exchange.match is None and isinstance(fault, ConnectFault):
            detail = "The gateway's process for this endpoint does not answer."
            fault = InternalFault("dependency_unavailable", detail, retry_after_s=1)
        self.refuse(exchange, fault)

    def unexpected(self, error: BaseException) -> InternalFault:
        """Our own mistake: the log gets the trace, the client a sentence."""
        logger.error("a request failed inside the gateway", exc_info=error)
        return InternalFault("internal_error", "The gateway failed; its log says how.")

    def answer(self, exchange: Exchange, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """An answer of the gateway's own. Nobody may store it (rule 7: what we say is never cached)."""
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        lines += b"content-length: %d\r\ncache-control: no-store\r\n" % len(body)
        exchange.answer(status, lines + self.forwarder.date + exchange.answer_lines, body)

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
            self._used[key.id] = exchange.started
        self.metrics.count(exchange, duration_s)
        if self.access_log is not None:
            self.access_log.add(exchange, duration_s)

    # --- ASGI ---
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await AsgiExchange(self, scope).run(receive, send)
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

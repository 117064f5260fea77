"""The gateway's own endpoints on the client port: a few answered here, the rest handed to control over its socket."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from core.context import Exchange
from core.faults import ClientFault, PolicyDenied
from gateway_project.dataplane.socket_exchange import too_large
from gateway_project.dataplane.tracing import REQUEST_ID_LINE
from keys.verify import invalid_credentials
from routing.records import TargetRecord
from routing.terms import Terms

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_ADMIN_BODY_LIMIT = 1024 * 1024
_CONTROL_TERMS = Terms(first_byte_s=30.0, pass_credentials=True)
_ADMIN = (b"/admin/", b"/keys/", b"/api/v1/management/")
_END_USERS = b"/auth/"
_JWKS = b"/.well-known/jwks.json"
_ADMIN_EXACT = frozenset((b"/keys", b"/validate", b"/setup"))
_DOCS = (b"/static/drf_spectacular_sidecar/",)
_DOCS_EXACT = frozenset((b"/docs", b"/docs/", b"/redoc", b"/redoc/", b"/openapi.json"))
_FROM_PROXIES = frozenset((b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"))
_TASKS = b"/api/v1/tasks/"
_UNDER_API = (_TASKS, b"/api/v1/management/")


def _release() -> str:
    try:
        return version("portcullis")
    except PackageNotFoundError:
        return "0.1.0"


class OwnEndpoints:
    """``answers`` is asked before any route; for a path under /api/ it costs two comparisons."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        settings = gateway.settings
        self._here: dict[bytes, Callable[[], tuple[int, dict[str, Any]]]] = {
            b"/health": self._health,
            b"/ready": self._ready,
            b"/info": self._info,
        }
        self._control = TargetRecord(("unix", settings.control_socket, 0), b"control")
        self._metrics = TargetRecord(("local", settings.metrics_host, settings.metrics_port), b"localhost")
        self._began = time.time()
        self._release = _release()

    def answers(self, exchange: Exchange) -> bool:
        """Whether the path is one of ours; then the answer is on its way. Raises GatewayFault."""
        path = exchange.path
        if path.startswith(b"/api/") and not path.startswith(_UNDER_API):
            return False
        if path.startswith(_TASKS):
            exchange.own_template = "/api/v1/tasks/{id}"
            self._allow(exchange, b"GET", b"HEAD")
            self._gateway.queueing.status(exchange, path[len(_TASKS) :])
            return True
        respond = self._here.get(path)
        if respond is not None:
            exchange.own_template = path.decode("ascii")
            self._allow(exchange, b"GET", b"HEAD")
            status, document = respond()
            self._gateway.answer_json(exchange, status, document)
            return True
        if path == b"/metrics":
            self._pass_metrics(exchange)
            return True
        if path.startswith(_END_USERS) and self._is_preflight(exchange):
            return True
        if self._is_controls(path):
            self._hand_to_control(exchange)
            return True
        return False

    def _allow(self, exchange: Exchange, *methods: bytes) -> None:
        if exchange.method not in methods:
            allowed = b", ".join(methods)
            detail = f"Only {allowed.decode()} is served here."
            raise ClientFault("method_not_allowed", detail, headers=((b"allow", allowed),))

    # --- answered by the worker (rule 21) ---
    def _health(self) -> tuple[int, dict[str, Any]]:
        return 200, {"status": "ok"}

    def _ready(self) -> tuple[int, dict[str, Any]]:
        gateway = self._gateway
        is_ready = gateway.has_snapshot and not gateway.is_draining
        status = "draining" if gateway.is_draining else "ready" if is_ready else "starting"
        link = gateway.link
        document = {
            "status": status,
            "revision": link.snapshot.revision,
            "dependencies": {
                "agent": "up" if link.is_connected else "down",
                "configuration": "fresh" if link.is_fresh(time.time()) else "stale",
            },
        }
        return (200 if is_ready else 503), document

    def _info(self) -> tuple[int, dict[str, Any]]:
        settings = self._gateway.settings
        return 200, {
            "service": settings.service_name,
            "product": "portcullis",
            "version": self._release,
            "started_at": int(self._began * 1000),
        }

    # --- answered by others ---
    def _is_controls(self, path: bytes) -> bool:
        settings = self._gateway.settings
        if path.startswith(_END_USERS) or path == _JWKS:  # for clients of the services, whoever may administer here
            return True
        if path in _ADMIN_EXACT or path.startswith(_ADMIN):
            return settings.admin_api_on_gateway_port
        return settings.docs_on_gateway_port and (path in _DOCS_EXACT or path.startswith(_DOCS))

    def _is_preflight(self, exchange: Exchange) -> bool:
        """Web applications log in from other origins (rule 18). Answers it."""
        noted, cors = exchange.noted, self._gateway.cors
        wanted = noted.get(b"access-control-request-method")
        if exchange.method != b"OPTIONS" or wanted is None or b"origin" not in noted or not cors.enabled:
            return False
        exchange.own_template = "control"
        fields = cors.preflight(noted[b"origin"], wanted, noted.get(b"access-control-request-headers"))
        if fields is None:
            raise PolicyDenied("blocked", "CORS_ORIGINS does not allow this origin.")
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        exchange.answer(204, exchange.answer_lines[:REQUEST_ID_LINE] + lines, b"")
        return True

    def _hand_to_control(self, exchange: Exchange) -> None:
        exchange.own_template = "control"
        exchange.max_body_bytes = _ADMIN_BODY_LIMIT
        if _is_direct(exchange):
            exchange.passed += (b"x-gateway-direct", b": ", b"yes", b"\r\n")
        self._forward(exchange, self._control)

    def _pass_metrics(self, exchange: Exchange) -> None:
        """Opt-in: only with METRICS_TOKEN set and sent (rule 15)."""
        token = self._gateway.settings.metrics_token
        if not token:
            raise ClientFault("no_route", "Metrics are not served on this port.")
        self._allow(exchange, b"GET")
        exchange.own_template = "/metrics"
        sent = exchange.noted.get(b"authorization", b"")
        if not hmac.compare_digest(sent, b"Bearer " + token.encode()):
            raise invalid_credentials()
        self._forward(exchange, self._metrics)

    def _forward(self, exchange: Exchange, target: TargetRecord) -> None:
        request_target = exchange.raw_path
        if exchange.query is not None:
            request_target += b"?" + exchange.query
        if exchange.content_length is not None and exchange.content_length > _ADMIN_BODY_LIMIT:
            raise too_large(_ADMIN_BODY_LIMIT)
        self._gateway.forwarder.forward_to(exchange, target, request_target, _CONTROL_TERMS)


def _is_direct(exchange: Exchange) -> bool:
    """Whether nobody stands between: a proxy on this host would make everybody look local (rule 16)."""
    return not exchange.noted.keys() & _FROM_PROXIES

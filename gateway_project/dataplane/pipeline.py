"""The way of a request, step by step. Each step is a function of its own module that decides and does no I/O; what it
decides stands on the exchange. A refusal is a `GatewayFault`, whichever step makes it."""

from __future__ import annotations

import time
from hmac import compare_digest
from typing import TYPE_CHECKING

from access.addresses import failure_bucket
from access.limits import headers as limit_headers
from access.records import Grant
from core.context import Exchange
from core.faults import ClientFault, InternalFault, PolicyDenied
from gateway_project.dataplane.matching import Match, MatchMemory, find_match
from gateway_project.dataplane.snapshot import Snapshot
from gateway_project.dataplane.socket_exchange import too_large
from gateway_project.dataplane.tracing import REQUEST_ID_LINE
from keys.records import KeyRecord
from keys.verify import authenticate, invalid_credentials
from routing.forwarding import Terms
from routing.paths import canonical
from routing.records import ServiceRecord, TargetRecord
from routing.selection import address_point, choose_version, requested_version

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_CHALLENGE = ((b"www-authenticate", b'Bearer realm="portcullis"'),)


class Pipeline:
    """The ordered steps. One per worker; a request's own state is all on its exchange."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._limiter = gateway.limiter
        self._key_header = gateway.key_header
        self._prefix = gateway.settings.api_key_prefix.encode("ascii")
        self._matches = MatchMemory()
        self._turns: dict[tuple[str, str], int] = {}  # of the targets of versions that have several

    def run(self, exchange: Exchange) -> None:
        """Take a request as far as its upstream, its queue or its answer. Raises GatewayFault."""
        gateway = self._gateway
        snapshot = exchange.snapshot = gateway.link.snapshot
        origin = exchange.noted.get(b"origin")
        if origin is not None and gateway.cors.enabled:
            exchange.answer_lines += gateway.cors.response_fields(origin)  # refusals carry them too (rule 18)
        is_preflight = origin is not None and _is_preflight(exchange)
        match = None if is_preflight else self._matches.recall(snapshot, exchange)
        is_new = match is None
        if match is None:
            exchange.path = canonical(exchange.raw_path)
            if gateway.own.answers(exchange):  # before any route (rule 2)
                return
            match = self._match(exchange, snapshot, is_preflight)
        exchange.match = match
        if is_preflight:
            self._answer_preflight(exchange)
            return
        if b"x-gateway-debug" in exchange.noted:
            self._debug(exchange, match)
        if exchange.has_body:
            self._filter(exchange, match)
        grant, subject, point = self._admit(exchange, snapshot, match)
        self._limit(exchange, grant, subject)
        if is_new and match.method is exchange.method:
            self._matches.remember(exchange, match)
        service = match.service
        if service is None:
            gateway.queueing.accept(exchange)
        else:
            target, request_target = self._select(exchange, match, service, grant, point)
            gateway.forwarder.forward(exchange, target, request_target, match.terms or self._terms_of(match, service))

    # --- 3 match ---
    def _match(self, exchange: Exchange, snapshot: Snapshot, is_preflight: bool) -> Match:
        # A preflight is judged by the method that it asks for (rule 18), and nothing else is: else OPTIONS would pass
        # where another method may.
        method = exchange.noted[b"access-control-request-method"].strip() if is_preflight else exchange.method
        try:
            return find_match(snapshot, exchange.identity.host, method, exchange.path)
        except ClientFault:
            if self._gateway.has_snapshot:
                raise
        raise InternalFault("dependency_unavailable", "The gateway has no configuration yet.", retry_after_s=1)

    # --- 4 CORS ---
    def _answer_preflight(self, exchange: Exchange) -> None:
        """Unauthenticated, uncharged, never forwarded (rule 18)."""
        noted = exchange.noted
        origin = noted[b"origin"]
        wanted = noted[b"access-control-request-method"]
        fields = self._gateway.cors.preflight(origin, wanted, noted.get(b"access-control-request-headers"))
        if fields is None:
            raise PolicyDenied("blocked", "CORS_ORIGINS does not allow this origin.")
        begun = exchange.answer_lines[:REQUEST_ID_LINE]
        exchange.answer(204, begun + b"".join(b"%b: %b\r\n" % field for field in fields), b"")

    def _debug(self, exchange: Exchange, match: Match) -> None:
        """Tell the holder of an admin key which route, revision and node served the request."""
        key = self.verify(exchange, exchange.noted[b"x-gateway-debug"])
        if key.application_id is not None:
            raise self._refused(exchange)
        settings = self._settings
        route = match.route.name if match.route is not None else match.template
        told = f"x-gateway-revision: {exchange.snapshot.revision}\r\nx-gateway-route: {route}\r\n"
        told += f"x-gateway-node: {settings.node_name}/{settings.slot}\r\n"
        exchange.answer_lines += told.encode("ascii", "replace")

    # --- 5 edge filters ---
    def _filter(self, exchange: Exchange, match: Match) -> None:
        limit = match.max_body_bytes if match.max_body_bytes is not None else self._settings.max_body_bytes
        exchange.max_body_bytes = limit
        if (exchange.content_length or exchange.bytes_in) > limit:
            raise too_large(limit)

    # --- 6 authenticate, 7 authorize ---
    def _admit(self, exchange: Exchange, snapshot: Snapshot, match: Match) -> tuple[Grant, str, int]:
        """Who it is and what they may: the grant, the subject of its limit, and the point in weighted splits."""
        credential = self.credential(exchange)
        if credential is None:
            return self._admit_anonymous(exchange, snapshot, match)
        session = exchange.session
        if (
            session.keys is snapshot.keys
            and session.applications is snapshot.applications
            and compare_digest(session.credential, credential)
            and not self._gateway.is_config_too_old
        ):
            key = session.key
            if key.expires_at is not None and key.expires_at <= time.time():
                raise self._refused(exchange)
        else:
            key = self._recognise(exchange, snapshot, credential)
        exchange.key = key
        application = exchange.application = session.application
        return match.grant(application), key.id, key.point

    def _admit_anonymous(self, exchange: Exchange, snapshot: Snapshot, match: Match) -> tuple[Grant, str, int]:
        found = snapshot.public.find(match.path, exchange.method, match.destination)
        if found is None:
            detail = f"Send an API key in the {self._settings.api_key_header} field, or as a Bearer token."
            raise PolicyDenied("missing_credentials", detail, headers=_CHALLENGE)
        exchange.application, entry = found
        client = exchange.identity.client
        return entry.grant, failure_bucket(client), address_point(client)

    def _recognise(self, exchange: Exchange, snapshot: Snapshot, credential: bytes) -> KeyRecord:
        """Verify a credential and remember on the session whose it is."""
        session = exchange.session
        session.keys = None  # nobody is known before this one is
        key = self.verify(exchange, credential)
        application = snapshot.applications.get(key.application_id or "")
        if application is None:  # an admin key, or an application that is not active
            raise self._refused(exchange)
        session.credential, session.key, session.application = credential, key, application
        session.keys, session.applications = snapshot.keys, snapshot.applications
        return key

    def credential(self, exchange: Exchange) -> bytes | None:
        key = exchange.noted.get(self._key_header)
        if key is None:
            authorization = exchange.noted.get(b"authorization")
            if authorization is not None and authorization[:7].lower() == b"bearer ":
                return authorization[7:].strip()
        return key

    def verify(self, exchange: Exchange, credential: bytes) -> KeyRecord:
        """The key that a credential is. Failures are charged to the address, which is looked at first (rule 10)."""
        gateway = self._gateway
        if wait_s := gateway.failures.is_blocked(exchange.identity.client, exchange.started):
            detail = "Too many failed authentications came from this address."
            violated = {"violated-policies": ["authentication-failures"]}
            raise PolicyDenied("rate_limited", detail, retry_after_s=wait_s, members=violated)
        if gateway.is_config_too_old:
            detail = "The gateway has been without news of its configuration for too long to trust a key."
            raise InternalFault("dependency_unavailable", detail, retry_after_s=5)
        now = time.time()
        is_fresh = gateway.link.is_fresh(now)
        try:
            return authenticate(exchange.snapshot.keys, gateway.digester, credential, self._prefix, now, is_fresh)
        except PolicyDenied:
            raise self._refused(exchange) from None

    def _refused(self, exchange: Exchange) -> PolicyDenied:
        self._gateway.failures.charge(exchange.identity.client, exchange.started)
        return invalid_credentials()

    # --- 8 limit ---
    def _limit(self, exchange: Exchange, grant: Grant, subject: str) -> None:
        policy = grant.limit
        allowed, remaining, seconds = self._limiter.charge(policy, subject, exchange.started)
        if not allowed:
            raise limit_headers.refusal(policy, seconds)
        exchange.answer_lines += limit_headers.fields(policy, remaining, seconds)

    # --- 10 select ---
    def _select(
        self, exchange: Exchange, match: Match, service: ServiceRecord, grant: Grant, point: int
    ) -> tuple[TargetRecord, bytes]:
        """The target and what to ask it for."""
        route, noted = match.route, exchange.noted
        if route is not None and route.version:
            requested: str | None = route.version
        else:
            requested = requested_version(match.api_version, noted.get(b"x-api-version"), noted.get(b"accept"))
        key = exchange.key
        if requested is None and key is not None:
            version, path = match.usual_version(key, grant, exchange.raw_path)
        else:
            version = choose_version(service, grant.versions, requested, point)
            path = match.request_path(version, exchange.raw_path)
        exchange.version = version
        targets = version.targets
        if len(targets) == 1:
            target = targets[0]
        else:
            turn = self._turns.get((service.id, version.name), -1) + 1
            self._turns[service.id, version.name] = turn
            target = targets[turn % len(targets)]
        return target, path if exchange.query is None else path + b"?" + exchange.query

    def _terms_of(self, match: Match, service: ServiceRecord) -> Terms:
        route = match.route
        timeout_s = service.request_timeout_s or self._settings.request_timeout_s
        if route is None:
            match.terms = Terms(timeout_s)
        else:
            match.terms = Terms(
                route.request_timeout_s or timeout_s,
                total_s=route.total_timeout_s,
                may_resend=route.retry_unsafe_methods,
                pass_credentials=route.pass_credentials,
            )
        return match.terms


def _is_preflight(exchange: Exchange) -> bool:
    """Of a request with Origin (https://fetch.spec.whatwg.org/#cors-preflight-request)."""
    return exchange.method == b"OPTIONS" and b"access-control-request-method" in exchange.noted

"""The way of a request, step by step. Each step is a function of its own module that decides and does no I/O; what it
decides stands on the exchange. A refusal is a `GatewayFault`, whichever step makes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from hmac import compare_digest
from typing import TYPE_CHECKING

from access.addresses import failure_bucket
from access.certificates import ClientCertificate
from access.cors import CorsPolicy
from access.limits import headers as limit_headers
from access.limits.charges import Charge, LimitPolicy
from access.records import ApplicationRecord, Grant
from core.bearer import bearer_token
from core.context import Exchange
from core.faults import ClientFault, GatewayFault, InternalFault, PolicyDenied
from gateway_project.dataplane.address_lists import check_application, check_gateway, check_lists
from gateway_project.dataplane.matching import AggregateMatch, Match, MatchMemory, Step
from gateway_project.dataplane.questions import Question
from gateway_project.dataplane.snapshot import Snapshot
from gateway_project.dataplane.socket_exchange import too_large
from gateway_project.dataplane.tracing import REQUEST_ID_LINE
from gateway_project.dataplane.transformations import transform
from keys.credential import is_well_formed_with_any_prefix
from keys.records import KeyRecord
from keys.verify import authenticate, invalid_credentials, look_closely
from routing.balancing import TargetGroup
from routing.cache.step import SAFE
from routing.compression import compression_step
from routing.paths import canonical
from routing.policies import Maintenance
from routing.records import ServiceRecord
from routing.request_fields import RequestFields, vary_line
from routing.selection import address_point, choose_version, requested_version
from routing.terms import Terms, forwarding_terms

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

_CHALLENGE = ((b"www-authenticate", b'Bearer realm="portcullis"'),)


class Pipeline:
    """The ordered steps. One per worker; a request's own state is all on its exchange."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._limiter = gateway.limiter
        self._limiting = gateway.limiting
        has_legacy = self._has_legacy = gateway.settings.rate_limit_legacy_headers
        self._limit_fields = limit_headers.fields_with_legacy if has_legacy else limit_headers.fields
        self._key_header = gateway.key_header
        self._prefix = gateway.settings.api_key_prefix.encode("ascii")
        self._matches = MatchMemory()
        self._registry = gateway.targets
        settings = gateway.settings
        limit = LimitPolicy.of("anonymous", "default", settings.rate_limit_requests, settings.rate_limit_window_s)
        self.anonymous = Grant(limit, None)  # on routes that require no key
        self._admission = gateway.admission
        self._stored: tuple[Mapping[str, ServiceRecord], bool] = {}, False  # whether any of them has a policy for that

    def run(self, exchange: Exchange) -> None:
        """Take a request as far as its upstream, its queue or its answer. Raises GatewayFault."""
        gateway = self._gateway
        snapshot = exchange.snapshot = gateway.link.snapshot
        origin = exchange.noted.get(b"origin")
        if gateway.cors.enabled:
            exchange.answer_lines += gateway.cors.response_fields(origin)  # refusals carry them too (rule 18)
        if snapshot.gateway is not None and snapshot.gateway.addresses is not None:
            check_gateway(snapshot.gateway.addresses, exchange)
        is_preflight = origin is not None and _is_preflight(exchange)
        known = exchange.known_path = None if is_preflight else self._matches.recall(snapshot, exchange)
        if known is not None:
            match, exchange.path = known.match, known.path
        else:
            if exchange.raw_path == b"*":
                gateway.options.answer(exchange)
                return
            exchange.path = canonical(exchange.raw_path)
            if gateway.own.answers(exchange):  # before any route (rule 2)
                return
            match = self._match(exchange, snapshot, is_preflight)
        exchange.match = match
        if match.origins is not None:
            self._change_origins(exchange, match.origins, origin)
        if is_preflight:
            self._answer_preflight(exchange, match)
            return
        if match.addresses:
            check_lists(match, exchange.identity.client)
        if snapshot.gateway is not None and snapshot.gateway.maintenance is not None:
            raise closed_for_maintenance(snapshot.gateway.maintenance)
        if known is None and match.service is not None and match.service.maintenance is not None:
            raise closed_for_maintenance(match.service.maintenance)
        if b"x-gateway-debug" in exchange.noted:
            self._debug(exchange, match)
        if exchange.upgrade is not None:
            gateway.tunnels.admit(exchange, match)
        if exchange.has_body:
            self._filter(exchange, match)
        self._enter(exchange, match)

    def _enter(self, exchange: Exchange, match: Match, *, was_held: bool = False) -> None:
        """Steps 6 to 8. Each may hold the request (`gateway_project.dataplane.holding`): after step 6 it enters again,
        after step 8 it proceeds."""
        try:
            grant, subject, point = self._admit(exchange, exchange.snapshot, match)
        except Question as question:
            again = partial(self._enter, exchange, match, was_held=True)
            raise self._admission.hold(exchange, question, again) from None
        if was_held:
            self._look_again(exchange)
        application = exchange.application
        if application is not None and application.addresses is not None:
            check_application(application, exchange.identity.client)
        plan, key = grant.plan, exchange.key
        if (
            self._limiting.counts_here
            and (plan is None or (plan.is_for_users and exchange.user is None))
            and (key is None or key.quota is None)
        ):
            self._limit(exchange, grant, subject)
        else:
            proceed = partial(self._proceed_held, exchange, match, grant, point)
            self._limiting.charge(exchange, grant, subject, proceed)
        self._proceed(exchange, match, grant, point)

    def _proceed_held(self, exchange: Exchange, match: Match, grant: Grant, point: int) -> None:
        self._look_again(exchange)
        self._proceed(exchange, match, grant, point)

    def _look_again(self, exchange: Exchange) -> None:
        """Revocations hold for what waits, too (rule 11)."""
        if not self._gateway.revocation.is_still_known(exchange):
            raise invalid_credentials()

    def _proceed(self, exchange: Exchange, match: Match, grant: Grant, point: int) -> None:
        """Steps 9 to 11."""
        gateway = self._gateway
        if exchange.known_path is None:
            self._matches.remember(exchange, match)
        for step in match.steps if match.steps is not None else self._steps_of(exchange, match):
            if step(exchange, match):
                return
        service = match.service
        if service is None:
            if isinstance(match, AggregateMatch):
                gateway.aggregating.begin(exchange, match, grant, point)
            else:
                gateway.queueing.accept(exchange)
        else:
            group, request_target = self._select(exchange, match, service, grant, point)
            if group.by_address:
                point = address_point(exchange.identity.client)
            terms = match.terms or self._terms_of(match, service)
            forward: Callable[..., None] = gateway.forwarder.forward
            if match.transformer is not None:
                forward = partial(transform, gateway, match.transformer)
            if match.caching is not None and exchange.upgrade is None:
                asking = partial(forward, group=group, request_target=request_target, terms=terms, point=point)
                if gateway.cache.answers(exchange, match, match.caching, asking):
                    return
            forward(exchange, group, request_target, terms, point)

    # --- 3 match ---
    def _match(self, exchange: Exchange, snapshot: Snapshot, is_preflight: bool) -> Match:
        # A preflight is judged by the method that it asks for (rule 18), and nothing else is: else OPTIONS would pass
        # where another method may.
        method = exchange.noted[b"access-control-request-method"].strip() if is_preflight else exchange.method
        fields = RequestFields(exchange, exchange.path, self._key_header, has_headers=not is_preflight)
        try:
            match = self._matches.find(snapshot, exchange.identity.host, method, exchange.path, fields)
            if fields.is_read:
                exchange.is_conditional = True
                exchange.answer_lines += vary_line(fields.names)
            return match
        except ClientFault:
            if self._gateway.has_snapshot:
                raise
        raise InternalFault("dependency_unavailable", "The gateway has no configuration yet.", retry_after_s=1)

    # --- 4 CORS ---
    def _change_origins(self, exchange: Exchange, origins: CorsPolicy, origin: bytes | None) -> None:
        """A route's or service's own rules take the place of CORS_ORIGINS."""
        lines = exchange.answer_lines
        if self._gateway.cors.enabled:
            begun = REQUEST_ID_LINE + len(self._gateway.cors.response_fields(origin))
            lines = lines[:REQUEST_ID_LINE] + lines[begun:]
        exchange.answer_lines = lines + origins.response_fields(origin)

    def _answer_preflight(self, exchange: Exchange, match: Match) -> None:
        """Unauthenticated, uncharged, never forwarded (rule 18)."""
        noted = exchange.noted
        origin = noted[b"origin"]
        wanted = noted[b"access-control-request-method"]
        origins = match.origins or self._gateway.cors
        fields = origins.preflight(origin, wanted, noted.get(b"access-control-request-headers"))
        if fields is None:
            named = "CORS_ORIGINS does" if match.origins is None else "The cors policy of the route or service does"
            raise PolicyDenied("blocked", f"{named} not allow this origin.")
        begun = exchange.answer_lines[:REQUEST_ID_LINE]
        exchange.answer(204, begun + b"".join(b"%b: %b\r\n" % field for field in fields), b"")

    def _debug(self, exchange: Exchange, match: Match) -> None:
        """Tell the holder of an admin key which route, revision and node served the request."""
        key = self.verify(exchange, exchange.noted[b"x-gateway-debug"])
        if key.application_id is not None:
            raise self.refused(exchange)
        if key.restrictions is not None:
            look_closely(key, exchange.identity.client, (), time.time())
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
        if snapshot.issuers or match.required is not None:
            return self._admission.admit(exchange, snapshot, match)
        credential = self.credential(exchange)
        if credential is None:
            return self.admit_certified(exchange, snapshot, match) or self.admit_anonymous(exchange, snapshot, match)
        return self.admit_key(exchange, snapshot, match, credential)

    def admit_certified(self, exchange: Exchange, snapshot: Snapshot, match: Match) -> tuple[Grant, str, int] | None:
        """Who brings a client certificate of an application and no key (A26)."""
        certificate = self._certificate(exchange) if snapshot.certificates else None
        if certificate is None:
            return None
        application = self._certified(exchange, snapshot, certificate)
        if application is None:
            return None
        return self._admit_certified(exchange, match, application, certificate)

    def admit_key(
        self, exchange: Exchange, snapshot: Snapshot, match: Match, credential: bytes
    ) -> tuple[Grant, str, int]:
        """Who brings a key, or what should be one."""
        session = exchange.session
        if (
            session.keys is snapshot.keys
            and session.applications is snapshot.applications
            and compare_digest(session.credential, credential)
            and not self._gateway.is_config_too_old
        ):
            key = session.key
        else:
            key = self._recognise(exchange, snapshot, credential)
        exchange.key = key
        application = exchange.application = session.application
        watched_from = key.watched_from
        try:
            if watched_from is not None and watched_from <= (now := time.time()):
                if key.expires_at is not None and key.expires_at <= now:
                    exchange.key = exchange.application = None
                    raise self.refused(exchange)
                exchange.answer_lines += look_closely(key, exchange.identity.client, match.destinations, now)
            return match.grant(application, exchange), key.bucket, key.point
        except PolicyDenied as refusal:
            if not match.is_open or refusal.kind.status != 403:
                raise
            grant = self.open_grant(exchange, match, application)
            return grant, key.bucket, key.point  # who is known has no less than who is not

    def application_by_certificate(self, exchange: Exchange) -> ApplicationRecord | None:
        """Whose a request without a credential is by its certificate."""
        snapshot = exchange.snapshot
        certificate = self._certificate(exchange) if snapshot.certificates else None
        return None if certificate is None else self._certified(exchange, snapshot, certificate)

    def _certificate(self, exchange: Exchange) -> ClientCertificate | None:
        """What the client has shown to us, or to the trusted proxy that says so."""
        if self._settings.trust_client_cert_field and exchange.identity.is_proxied:
            value = exchange.noted.get(b"client-cert")
            return None if value is None else self._gateway.certificate_of_field(value)
        certificate: ClientCertificate | None = exchange.session.certificate
        return certificate

    def _certified(
        self, exchange: Exchange, snapshot: Snapshot, certificate: ClientCertificate
    ) -> ApplicationRecord | None:
        """The application that accepts the certificate (A26), found once for each connection and configuration."""
        session = exchange.session
        if session.certified_by is not snapshot.certificates or session.certificate is not certificate:
            found = snapshot.certificates.find(certificate) or ""
            if session.certificate is certificate:
                session.certified, session.certified_by = found, snapshot.certificates
        else:
            found = session.certified
        if not found:
            return None
        if self._gateway.is_config_too_old:
            raise _too_old("a certificate")
        if not certificate.is_valid(time.time()):
            raise invalid_credentials()
        return snapshot.applications.get(found)

    def _admit_certified(
        self, exchange: Exchange, match: Match, application: ApplicationRecord, certificate: ClientCertificate
    ) -> tuple[Grant, str, int]:
        exchange.application, exchange.certificate = application, certificate
        try:
            grant = match.grant(application, exchange)
        except PolicyDenied:
            if not match.is_open:
                raise
            grant = self.open_grant(exchange, match, application)
        return grant, certificate.bucket, certificate.point

    def open_grant(self, exchange: Exchange, match: Match, application: ApplicationRecord | None) -> Grant:
        """What holds where nobody needs to be known; ``application`` is who it is all the same."""
        if application is None:
            return match.open_grant(self.anonymous, "", None, exchange)
        return match.open_grant(self.anonymous, f"open to {application.id}", application, exchange)

    def admit_anonymous(self, exchange: Exchange, snapshot: Snapshot, match: Match) -> tuple[Grant, str, int]:
        found = match.public_entry(snapshot.public, exchange.path, exchange.method)
        if found is None and match.is_open:
            client = exchange.identity.client
            return self.open_grant(exchange, match, None), failure_bucket(client), address_point(client)
        if found is None:
            detail = f"Send an API key in the {self._settings.api_key_header} field, or as a Bearer token."
            raise PolicyDenied("missing_credentials", detail, headers=_CHALLENGE)
        exchange.application, entry = found
        client = exchange.identity.client
        grant = match.open_grant(entry.grant, entry.id, found[0], exchange)
        return grant, failure_bucket(client), address_point(client)

    def _recognise(self, exchange: Exchange, snapshot: Snapshot, credential: bytes) -> KeyRecord:
        """Verify a credential and remember on the session whose it is."""
        exchange.session.keys = None  # nobody is known before this one is
        return self._know(
            exchange,
            snapshot,
            credential,
            self.verify(exchange, credential, partial(self.go_on_with, exchange, credential)),
        )

    def _know(self, exchange: Exchange, snapshot: Snapshot, credential: bytes, key: KeyRecord) -> KeyRecord:
        session = exchange.session
        application = snapshot.applications.get(key.application_id or "")
        if application is None:  # an admin key, or an application that is not active
            raise self.refused(exchange)
        session.credential, session.key, session.application = credential, key, application
        session.keys, session.applications = snapshot.keys, snapshot.applications
        return key

    def go_on_with(self, exchange: Exchange, credential: bytes, key: KeyRecord | None) -> None:
        """A request that was held until somebody knew its key (`gateway_project.dataplane.recognition`)."""
        if key is None:
            raise self.refused(exchange)
        self._know(exchange, exchange.snapshot, credential, key)
        self._enter(exchange, exchange.match, was_held=True)

    def credential(self, exchange: Exchange) -> bytes | None:
        key = exchange.noted.get(self._key_header)
        if key is None:
            authorization = exchange.noted.get(b"authorization")
            if authorization is not None:
                return bearer_token(authorization)
        return key

    def verify(
        self, exchange: Exchange, credential: bytes, go_on: Callable[[KeyRecord | None], None] | None = None
    ) -> KeyRecord:
        """The key that a credential is. A right one passes from any address; after too many wrong ones (rule 10), no
        wrong one is told from another. With ``go_on`` the request may be held until its key is recognised: raises
        `Hold`."""
        gateway = self._gateway
        if gateway.is_config_too_old:
            raise _too_old("a key")
        now = time.time()
        is_fresh = gateway.link.is_fresh(now)
        try:
            return authenticate(exchange.snapshot.keys, gateway.digester, credential, self._prefix, now, is_fresh)
        except GatewayFault as fault:
            gateway.failures.check(exchange)
            if fault.status != 401:
                raise
        if go_on is not None and gateway.recognition.is_needed and is_well_formed_with_any_prefix(credential):
            raise gateway.recognition.hold(exchange, credential, go_on)
        raise self.refused(exchange)

    def refused(self, exchange: Exchange) -> PolicyDenied:
        """To be raised for a credential that is not right. Raises by itself when its address is blocked."""
        self._gateway.failures.check(exchange)
        self._gateway.failures.charge(exchange)
        return invalid_credentials()

    # --- 8 limit ---
    def _limit(self, exchange: Exchange, grant: Grant, subject: str) -> None:
        policy = grant.limit
        allowed, remaining, seconds = self._limiter.charge(policy, subject, exchange.started)
        if not allowed:
            self._limiting.uses.note(exchange, Charge(policy, subject, 1), 0, is_refused=True)
            raise limit_headers.refusal(policy, seconds, has_legacy=self._has_legacy)
        exchange.answer_lines += self._limit_fields(policy, remaining, seconds)

    # --- 9 what only some services and routes ask for ---
    def _steps_of(self, exchange: Exchange, match: Match) -> tuple[Step, ...]:
        """In order: compression, … A step that returns True has seen to the answer."""
        route, service = match.route, match.service
        steps: list[Step | None] = [
            self._gateway.tokens.step,
            compression_step(route.compression if route else None, service.compression if service else None),
            self._gateway.mirrors.step(service),
            self._gateway.options.step if match.method == b"OPTIONS" else None,
            self._void if self._may_void(exchange.snapshot, match) else None,
        ]
        match.steps = tuple(step for step in steps if step is not None)
        return match.steps

    def _may_void(self, snapshot: Snapshot, match: Match) -> bool:
        return match.method not in SAFE and match.service is not None and self._is_anything_stored(snapshot)

    def _void(self, exchange: Exchange, match: Match) -> bool:
        """Where what a GET of the same URL leads to is stored, and the request's own policy does not see to it: another
        route, or another service. It may depend on path, fields and query, so each request is looked at by itself."""
        fields = RequestFields(exchange, exchange.path, self._key_header)
        try:
            read = self._matches.find(exchange.snapshot, exchange.identity.host, b"GET", exchange.path, fields)
        except ClientFault:
            return False
        stored, own = read.caching, match.caching
        if stored is None or (own is not None and read.service is match.service and own.shared >= stored.shared):
            return False
        return self._gateway.cache.voiding_step(read)(exchange, match)

    def _is_anything_stored(self, snapshot: Snapshot) -> bool:
        """Whether any route or service has a policy for that. Services are looked through once for each change."""
        services, is_any = self._stored
        if services is not snapshot.services:
            is_any = any(each.caching is not None and each.caching.enabled for each in snapshot.services.values())
            self._stored = snapshot.services, is_any
        return is_any or snapshot.routes.caching > 0

    # --- 10 select ---
    def _select(
        self, exchange: Exchange, match: Match, service: ServiceRecord, grant: Grant, point: int
    ) -> tuple[TargetGroup, bytes]:
        """Targets that serve the request, and what to ask one of them for."""
        route, noted = match.route, exchange.noted
        if route is not None and route.version:
            requested: str | None = route.version
        else:
            requested = requested_version(match.api_version, noted.get(b"x-api-version"), noted.get(b"accept"))
        caller = exchange.key or exchange.user
        if requested is None and caller is not None:
            version, group, path = match.usual_version(caller, grant, exchange, self._registry)
        else:
            version = choose_version(service, grant.versions, requested, point)
            path = match.request_path(version, exchange)
            group = self._registry.group(service, version)
        exchange.version = version
        if not version.is_plain:
            self._gateway.version_counts.chosen(exchange, service, version)
        return group, path if exchange.query is None else path + b"?" + exchange.query

    def _terms_of(self, match: Match, service: ServiceRecord) -> Terms:
        match.terms = terms = forwarding_terms(service, match.route, self._settings.request_timeout_s)
        return terms


def _too_old(what: str) -> InternalFault:
    detail = f"The gateway has been without news of its configuration for too long to trust {what}."
    return InternalFault("dependency_unavailable", detail, retry_after_s=5)


def closed_for_maintenance(maintenance: Maintenance) -> InternalFault:
    """R28: the admin's own words."""
    return InternalFault("maintenance", maintenance.message, retry_after_s=maintenance.retry_after_s)


def _is_preflight(exchange: Exchange) -> bool:
    """Of a request with Origin (https://fetch.spec.whatwg.org/#cors-preflight-request)."""
    return exchange.method == b"OPTIONS" and b"access-control-request-method" in exchange.noted

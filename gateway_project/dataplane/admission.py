"""Steps 6 and 7 where issuers of tokens are known, or a route or service says what callers must bring (A4, A7, K5).

Everywhere else the pipeline knows keys alone and passes this by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from hmac import compare_digest
from typing import TYPE_CHECKING

from access.records import ApplicationRecord, Grant
from access.tokens.requirements import Requirement
from core.bearer import bearer_token
from core.context import Exchange
from core.faults import PolicyDenied
from gateway_project.dataplane.holding import Hold
from gateway_project.dataplane.matching import Match
from gateway_project.dataplane.questions import Question
from gateway_project.dataplane.snapshot import Snapshot
from gateway_project.dataplane.tokens import Recognised, invalid_token
from keys.credential import is_well_formed_with_any_prefix
from keys.records import KeyRecord
from keys.verify import MAX_KEY_BYTES, look_closely

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway

Admitted = tuple[Grant, str, int]  # the grant, the subject of its limit, and the point in weighted splits


class Admission:
    """One per worker."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tokens = gateway.tokens
        self._key_header = gateway.key_header
        self._prefix = gateway.settings.api_key_prefix.encode("ascii")

    def admit(self, exchange: Exchange, snapshot: Snapshot, match: Match) -> Admitted:
        """Raises GatewayFault, and `Question` where something must be asked for first."""
        required = match.required
        key, token = self._brought(exchange, snapshot, required)
        pipeline = self._gateway.pipeline
        if token is None:
            if key is not None:
                admitted = pipeline.admit_key(exchange, snapshot, match, key)
                if required is not None:
                    required.judge(exchange.key.scopes, None)
                return admitted
            certified = pipeline.admit_certified(exchange, snapshot, match)
            if certified is not None:
                if required is not None:
                    required.judge((), None)  # as a key without scopes
                return certified
            if required is None or required.is_public:
                return pipeline.admit_anonymous(exchange, snapshot, match)
            raise required.missing()
        if required is not None and required.credentials == "both":
            return self._admit_both(exchange, snapshot, match, required, key, token)
        recognised = self.recognise(exchange, snapshot, token)
        user, application = recognised.identity, recognised.application
        if application is None and user.is_own:
            detail = "END_USER_APPLICATION names no active application, so end users may call nothing here."
            raise PolicyDenied("service_not_allowed", detail)
        if application is None:
            raise self.refused(exchange, "The token is of no application.")
        exchange.user, exchange.application = user, application
        if required is not None:
            required.judge(None, user)
        return self._granted(exchange, match, application, user.user, user.point)

    def _brought(
        self, exchange: Exchange, snapshot: Snapshot, required: Requirement | None
    ) -> tuple[bytes | None, bytes | None]:
        """The key and the token that came with the request, as far as they are asked for. Where either will do, the
        key's own field goes before Authorization."""
        field, bearer = self._fields(exchange)
        wanted = required.credentials if required is not None else "any"
        if wanted == "both":
            return field, self._only_token(bearer, snapshot)
        if wanted == "token":
            return None, self._only_token(field if bearer is None else bearer, snapshot)
        brought = bearer if field is None else field
        if brought is None or wanted == "key" or not snapshot.issuers or not self._is_token(brought, snapshot):
            return brought, None
        return None, brought

    def _only_token(self, credential: bytes | None, snapshot: Snapshot) -> bytes | None:
        """Nothing else: a key is never shown to an issuer."""
        return credential if credential is not None and self._is_token(credential, snapshot) else None

    def _fields(self, exchange: Exchange) -> tuple[bytes | None, bytes | None]:
        """What stands in the key's own field, and as Bearer."""
        authorization = exchange.noted.get(b"authorization")
        bearer = None if authorization is None else bearer_token(authorization)
        return exchange.noted.get(self._key_header), bearer

    def _is_token(self, credential: bytes, snapshot: Snapshot) -> bool:
        """A JWT has dots where no key has any; what else there is may be a key of ours, or else opaque."""
        if not self._tokens.is_one(credential, snapshot.issuers):
            return False
        if credential.count(b".") in (2, 4):
            return True
        if credential.startswith(self._prefix) or is_well_formed_with_any_prefix(credential):
            return False  # a key, known or not: it is shown to nobody
        return len(credential) > MAX_KEY_BYTES or snapshot.keys.get(self._gateway.digester(credential)) is None

    def _admit_both(
        self,
        exchange: Exchange,
        snapshot: Snapshot,
        match: Match,
        required: Requirement,
        key: bytes | None,
        token: bytes,
    ) -> Admitted:
        """The key, or a client certificate, says which application it is, the token which user of it."""
        pipeline, lines = self._gateway.pipeline, exchange.answer_lines
        if key is not None:
            admitted = pipeline.admit_key(exchange, snapshot, match, key)
        elif (certified := pipeline.admit_certified(exchange, snapshot, match)) is not None:
            admitted = certified
        else:
            raise required.missing()
        try:
            recognised = self.recognise(exchange, snapshot, token)
        except Question:
            exchange.answer_lines = lines  # what is said of the key is said when it is looked at again
            raise
        user, application = recognised.identity, exchange.application
        names_another = recognised.names_application and recognised.application is not application
        if names_another or user.tenant_id != application.tenant_id:
            raise self.refused(exchange, "The token is of another application than the key.")
        exchange.user = user
        required.judge((), user)
        return admitted

    def _granted(
        self, exchange: Exchange, match: Match, application: ApplicationRecord, subject: str, point: int
    ) -> Admitted:
        try:
            return match.grant(application, exchange), subject, point
        except PolicyDenied:
            if not match.is_open:
                raise
            # Who is known has no less than who is not.
            return self._gateway.pipeline.open_grant(exchange, match, application), subject, point

    # --- whose token it is ---
    def recognise(self, exchange: Exchange, snapshot: Snapshot, token: bytes) -> Recognised:
        """As `Tokens.recognise`, and remembered on the session: most requests of a connection bring the same token."""
        session, tokens = exchange.session, self._tokens
        recognised: Recognised | None = session.recognised
        if (
            recognised is not None
            and session.known_by is tokens.epoch
            and session.issuers is snapshot.issuers
            and session.token_applications is snapshot.applications
            and compare_digest(session.token, token)
            and recognised.until > time.time()
            and not (recognised.identity.is_own and tokens.revocations.is_revoked(recognised.identity))
            and not self._gateway.is_config_too_old
        ):
            return recognised
        session.recognised = None
        try:
            recognised = tokens.recognise(exchange, token)
        except PolicyDenied as denied:
            if denied.status == 401:
                self._gateway.failures.charge(exchange)
            raise
        session.recognised, session.token, session.known_by = recognised, token, tokens.epoch
        session.issuers, session.token_applications = snapshot.issuers, snapshot.applications
        return recognised

    def refused(self, exchange: Exchange, detail: str) -> PolicyDenied:
        self._gateway.failures.charge(exchange)
        return invalid_token(detail)

    def hold(self, exchange: Exchange, question: Question, step: Callable[[], None]) -> Hold:
        return self._tokens.hold(exchange, question, step)

    def sender(self, exchange: Exchange, again: Callable[[], None]) -> str:
        """Who asks for a task, where no route says what to bring: the id of the application, empty for nobody. The
        user, if a token came, is set on the exchange (rule 20). A request that is held for its key goes on with
        ``again``."""
        snapshot = exchange.snapshot
        key, token = self._brought(exchange, snapshot, None)
        if token is None and snapshot.issuers:
            field, bearer = self._fields(exchange)  # a task that was sent with both is asked for with both
            if field is not None and bearer is not None and self._is_token(bearer, snapshot):
                token = bearer
        application = ""
        if token is not None:
            exchange.user = self.recognise(exchange, snapshot, token).identity
            application = exchange.user.application_id
        if key is not None:
            go_on = partial(self._go_on_with, exchange, again)
            found = self._gateway.pipeline.verify(exchange, key, go_on)
            if found.application_id is not None and found.application_id not in snapshot.applications:
                raise self._gateway.pipeline.refused(exchange)  # it is suspended
            exchange.key = found
            if found.restrictions is not None:
                look_closely(found, exchange.identity.client, (), time.time())
            application = found.application_id or ""
        elif token is None and (record := self._gateway.pipeline.application_by_certificate(exchange)) is not None:
            application = record.id
        return application

    def _go_on_with(self, exchange: Exchange, again: Callable[[], None], key: KeyRecord | None) -> None:
        if key is None:
            raise self._gateway.pipeline.refused(exchange)
        exchange.snapshot = self._gateway.link.snapshot  # which has it
        again()

"""Clients' tokens (A4, A7): whose they are, remembered, so that a token that comes again costs no signature check.

What a token is decided from values alone (`access.tokens`). Where something must be asked for, the keys of an issuer or
its opinion of an opaque token, `Question` is raised, and the request waits for the agent's answer (`Tokens.hold`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from operator import is_
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from access.addresses import failure_bucket
from access.records import ApplicationRecord
from access.tokens.identity import Identity, Opaque, Proof
from access.tokens.judging import (
    application_named,
    check_claims,
    check_form,
    identity_of,
    introspected_lifetime,
    lifetime,
)
from access.tokens.parsing import MAX_TOKEN, EncryptedToken, Refused, SignedToken, parse
from access.tokens.records import MUST_CHANGE_PASSWORD, OWN_DECRYPTION_KEY, OWN_SECRET, IssuerRecord
from access.tokens.revocations import Revocations
from core.context import Exchange
from core.faults import GatewayFault, InternalFault, PolicyDenied
from gateway_project.dataplane.asking_again import AskingAgain
from gateway_project.dataplane.holding import Hold
from gateway_project.dataplane.matching import Match
from gateway_project.dataplane.questions import Answers, Opinion, Question

if TYPE_CHECKING:
    from access.tokens.keys import KeySet
    from gateway_project.dataplane.app import Gateway

logger = logging.getLogger("portcullis.tokens")

KEYS_FILE = "issuer-keys.json"  # in VAR_DIR: the agent's (`gateway_project.agent.issuers`)
REFETCH_S = 30.0  # how often an unknown kid makes us ask for an issuer's keys
_RETRY_S = 2.0  # after keys could not be had
_ASK_TIMEOUT_S = 10.0
_NEGATIVE_S = 5.0  # at most, for what an issuer does not know
_MOST_REMEMBERED, _MOST_BYTES = 8192, 8 * 1024 * 1024  # tokens, and their lengths together
_MOST_OPINIONS = 8192
_MOST_WAITING = 1000  # requests, of one question
# Opaque tokens that issuers are asked about at once: fewer than the agent takes calls, which others need too.
_MOST_QUESTIONS, _MOST_OF_ADDRESS = 1000, 100
_CHALLENGE = b'Bearer realm="portcullis", error="invalid_token"'  # RFC 6750 section 3.1


class Recognised(NamedTuple):
    """``until``: epoch seconds up to which nothing needs to be looked at again. ``names_application``: a claim says
    whose request it is."""

    identity: Identity
    application: ApplicationRecord | None
    until: float
    names_application: bool


class _Remembered(NamedTuple):
    recognised: Recognised
    issuer: IssuerRecord
    keys: Any  # the `KeySet` that verified it; None: the issuer's opinion did
    applications: Mapping[str, ApplicationRecord]
    size: int


class _Judged(NamedTuple):
    """A token that is right. ``keys`` are None where its issuer's opinion was asked for; ``until``: when it is to be
    looked at again."""

    issuer: IssuerRecord
    claims: Mapping[str, Any]
    keys: KeySet | None
    proof: Proof | Opaque
    issued_at: float
    expires_at: float
    until: float


class Tokens:
    """One per worker. ``revocations`` concern the tokens that we issue ourselves."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.revocations = Revocations()
        self.header_names: frozenset[bytes] = frozenset()  # of all issuers' claims: no client may send them
        self.validations: dict[str, int] = {}  # by status
        self.epoch = object()  # another one when keys have changed: what was recognised before is looked at again
        self._issuers: Mapping[str, IssuerRecord] = {}
        self._introspecting: list[IssuerRecord] = []
        self._documents: dict[str, Any] = {}  # JWK Sets as the agent fetched them, by issuer id
        self._keys: dict[str, tuple[IssuerRecord, Any, KeySet | None]] = {}  # made of which record and document
        self._asked: dict[str, tuple[float, bool]] = {}  # by issuer id: when for its keys, and whether they came
        self._remembered: dict[bytes, _Remembered] = {}
        self._bytes = 0
        self._opinions: dict[tuple[str, bytes], Opinion] = {}
        self._answers: Answers = {}  # just come, for the request that waited for them and goes on
        self._asking_again = AskingAgain(gateway, self._ask_for_opinion)
        self._waiting: dict[tuple[str, bytes], list[tuple[Hold, Callable[[], None]]]] = {}
        self._asking: dict[str, int] = {}  # how many opaque tokens of which address
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_secrets = {
            OWN_SECRET: bytes.fromhex(gateway.settings.token_secret),
            OWN_DECRYPTION_KEY: gateway.settings.token_decryption_key.encode("ascii"),
        }
        gateway.link.on("jwks", self.take_keys)
        gateway.link.on("revocations", self.revocations.take)

    # --- what a request asks ---
    def is_one(self, credential: bytes, issuers: Mapping[str, IssuerRecord]) -> bool:
        """Whether it may be a token: it looks like a JWT, or some issuer is asked for its opinion of any. A key never
        has a dot behind its prefix."""
        return credential.count(b".") in (2, 4) or any(
            each.rules.introspection is not None for each in issuers.values()
        )

    def recognise(self, exchange: Exchange, token: bytes) -> Recognised:
        """Raises PolicyDenied, `InternalFault` where it cannot be told, or `Question`."""
        snapshot = exchange.snapshot
        if snapshot.issuers is not self._issuers:
            self._take_issuers(snapshot.issuers)
        now = time.time()
        digest = sha256(token).digest()
        found = self._remembered.get(digest)
        if found is not None and self._still_counts(found, snapshot.applications, now):
            recognised = found.recognised
        else:
            self._check_trust(exchange)
            match = exchange.match  # what has none is of no tenant: a question about a task
            recognised = self._judge(token, digest, match and match.tenant_id, snapshot.applications, now)
        if recognised.identity.is_own:
            self._check_own(recognised.identity)
        return recognised

    def _check_own(self, user: Identity) -> None:
        if not self.revocations.is_known:  # rule 21
            raise _cannot_tell("The gateway has not heard yet which tokens are revoked.")
        if self.revocations.is_revoked(user):
            self._count("revoked")
            raise invalid_token("The token has been revoked.")
        if MUST_CHANGE_PASSWORD in user.claims:
            detail = "Choose a new password first: POST /auth/change-password."
            raise PolicyDenied("password_change_required", detail)

    def _check_trust(self, exchange: Exchange) -> None:
        """Before anything costly is done (rule 10)."""
        gateway = self._gateway
        gateway.failures.check(exchange)
        if gateway.is_config_too_old:
            raise _cannot_tell("The gateway has been without news of its configuration for too long to trust a token.")

    def _still_counts(self, found: _Remembered, applications: Mapping[str, ApplicationRecord], now: float) -> bool:
        issuer = found.issuer
        return (
            found.recognised.until > now
            and not self._gateway.is_config_too_old
            and self._issuers.get(issuer.issuer) is issuer
            and found.applications is applications
            and (found.keys is None or self._key_set(issuer) is found.keys)
        )

    def holds(self, user: Identity, now: float) -> bool:
        """Whether a token has neither expired by ``now`` (epoch seconds) nor been revoked."""
        return user.expires_at > now and not (user.is_own and self.revocations.is_revoked(user))

    def as_of_now(self, exchange: Exchange, now: float) -> Identity | None:
        """Who the bearer of the token is that has opened an exchange, by the issuers, keys and applications of now
        (epoch seconds). None: it would open nothing any more, or it would be a request of another application."""
        user: Identity = exchange.user
        if not self.holds(user, now):
            return None
        snapshot = self._gateway.link.snapshot
        if snapshot.issuers is not self._issuers:
            self._take_issuers(snapshot.issuers)
        issuer = next((each for each in self._issuers.values() if each.id == user.issuer_id), None)
        if issuer is None:
            return None
        claims = self._claims_of_now(issuer, user, now)
        if claims is None:
            return None
        keys, application = self._keys_of_now(issuer), snapshot.applications.get(exchange.application.id)
        stood_on, stands_on = exchange.token_stands_on, (issuer, keys, application, claims)
        if stood_on is not None and all(map(is_, stood_on, stands_on)):
            return user
        try:
            is_alone = exchange.key is None and exchange.certificate is None
            _check_application(issuer, application_named(issuer, claims), application, is_alone=is_alone)
            identity = _judged_again(issuer, keys, user, claims, now)
        except Refused:
            return None
        exchange.token_stands_on = stands_on
        return identity

    def _claims_of_now(self, issuer: IssuerRecord, user: Identity, now: float) -> Mapping[str, Any] | None:
        """As the issuer said last, whom somebody asks again when its word has run out. None: it is not active."""
        proof = user.proof
        if not isinstance(proof, Opaque) or issuer.rules.introspection is None:
            return user.claims
        opinion = self._opinions.get((issuer.id, proof.digest))
        if opinion is not None and opinion.issuer is issuer and opinion.until > now:
            return opinion.claims
        return self._asking_again.claims(Question(issuer, proof.token), user.claims, now, is_due=opinion is not None)

    def _keys_of_now(self, issuer: IssuerRecord) -> KeySet | None:
        """None: they cannot be had at the moment, or there are none to have."""
        known = self._keys.get(issuer.id)
        if issuer.rules.secret is not None and known is not None and known[0] is issuer:
            return known[2]  # `look` keeps it fresh
        if not has_keys(issuer):
            return None
        try:
            return self._key_set(issuer)
        except InternalFault:
            return None

    # --- judging ---
    def _judge(
        self,
        token: bytes,
        digest: bytes,
        tenant_id: str | None,
        applications: Mapping[str, ApplicationRecord],
        now: float,
    ) -> Recognised:
        try:
            judged = self._verified(token, digest, tenant_id, now)
            recognised = self._recognised(judged, applications)
        except Refused as refused:
            self._count(refused.status)
            logger.debug("a token was refused: %s", refused)
            expired = refused.status == "expired"
            raise invalid_token("The token has expired." if expired else "The token is not valid.") from None
        except InternalFault:
            self._count("unavailable")
            raise
        self._count("valid")
        self._remember(digest, _Remembered(recognised, judged.issuer, judged.keys, applications, len(token)))
        return recognised

    def _verified(self, token: bytes, digest: bytes, tenant_id: str | None, now: float) -> _Judged:
        """Raises `Refused`, `Question` or InternalFault."""
        if not 0 < len(token) <= MAX_TOKEN:
            raise Refused("it is empty or too long")  # a `Question` without a token asks for keys
        if token.count(b".") not in (2, 4):
            return self._opined(token, digest, tenant_id, now)
        parsed = parse(token)
        issuer, signed = self._opened(parsed) if isinstance(parsed, EncryptedToken) else (None, parsed)
        claimed = signed.claims.get("iss")
        known = self._issuers.get(claimed) if isinstance(claimed, str) else None
        if known is None:
            if self._gateway.link.is_fresh(now):
                raise Refused("nobody knows its issuer")
            raise _cannot_tell("The gateway cannot tell at the moment whose tokens count.")  # rule 11
        if issuer is not None and known is not issuer:
            raise Refused("it was encrypted for another issuer's tokens")
        if not has_keys(known):
            return self._opinion_of(known, token, digest, now)
        check_form(known, signed)
        keys, proof = self._verify(known, signed)
        check_claims(known, signed.claims)
        issued_at, expires_at = lifetime(known, signed.claims, now)
        return _Judged(known, signed.claims, keys, proof, issued_at, expires_at, expires_at)

    def _opened(self, token: EncryptedToken) -> tuple[IssuerRecord, SignedToken]:
        """Whose key opens it, and what is inside."""
        from access.tokens.keys import decrypted, decryption_key

        fault: GatewayFault | None = None
        for issuer in self._issuers.values():
            if issuer.rules.decryption_key is None:
                continue
            try:
                key = decryption_key(self._secret(issuer, issuer.rules.decryption_key))
            except GatewayFault as missing:  # another's may be the one
                fault = missing
                continue
            except ValueError:
                fault = _cannot_tell(f"The decryption key of the issuer {issuer.name} is not of the right length.")
                continue
            try:
                inside = parse(decrypted(token, key))
            except Refused:
                continue
            if isinstance(inside, SignedToken):
                return issuer, inside
        if fault is not None:
            raise fault
        raise Refused("no key opens it")

    def _verify(self, issuer: IssuerRecord, token: SignedToken) -> tuple[KeySet, Proof]:
        from access.tokens.keys import UnknownKey

        keys = self._key_set(issuer)
        if keys is None:
            self._ask_for_keys(issuer, _RETRY_S)
            raise _cannot_tell(f"The keys of the issuer {issuer.name} have not been had yet.")
        try:
            return keys, keys.verify(token)
        except UnknownKey:
            if issuer.rules.jwks_url:
                self._ask_for_keys(issuer, REFETCH_S)
            raise Refused("its key is none of the issuer's") from None

    def _ask_for_keys(self, issuer: IssuerRecord, pause_s: float) -> None:
        """Raises `Question` unless that was done a moment ago; InternalFault when it failed then: what cannot be asked
        for is no reason to refuse (rule 11)."""
        if (issuer.id, b"") in self._waiting:  # just now: wait with the others
            raise Question(issuer)
        asked_at, succeeded = self._asked.get(issuer.id, (float("-inf"), True))
        if self._gateway.now() - asked_at >= (pause_s if succeeded else _RETRY_S):
            raise Question(issuer)
        if not succeeded:
            raise _cannot_tell(f"The keys of the issuer {issuer.name} cannot be had at the moment.")

    def _key_set(self, issuer: IssuerRecord) -> KeySet | None:
        """None: they have never been had."""
        rules = issuer.rules
        made_of: Any
        if rules.secret is not None:
            made_of = self._secret(issuer, rules.secret)
        else:
            made_of = rules.jwks if not rules.jwks_url else self._document_of(issuer)
        known = self._keys.get(issuer.id)
        if known is not None and known[0] is issuer and (known[1] is made_of or known[1] == made_of):
            return known[2]
        keys = _made(issuer, made_of)
        self._keys[issuer.id] = issuer, made_of, keys
        self.epoch = object()
        return keys

    def _document_of(self, issuer: IssuerRecord) -> Any:
        """What was fetched from where the issuer's keys are now; None: nothing yet."""
        document, url = self._documents.get(issuer.id), issuer.rules.jwks_url
        return document if isinstance(document, dict) and document.get("url", url) == url else None

    def _secret(self, issuer: IssuerRecord, reference: str) -> bytes:
        """Ours are in the settings, where no reference of another issuer reaches."""
        return self._own_secrets[reference] if issuer.is_own else self._gateway.secrets.resolve(reference)

    def look(self) -> None:
        """Once a second: a shared secret may have been rotated, and what it verified is to be looked at again."""
        self._asking_again.forget(time.time())
        for issuer in self._issuers.values():
            if issuer.rules.secret is not None and issuer.id in self._keys:
                with suppress(InternalFault):
                    self._key_set(issuer)

    def load(self, path: Path) -> None:
        """The keys that the agent kept, for a worker that starts while it is away."""
        try:
            kept = orjson.loads(path.read_bytes())
            keys = {issuer_id: {**each["keys"], "url": each["url"]} for issuer_id, each in kept.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return  # there are none: who needs them is told that they have not been had
        self.take_keys({"whole": False, "issuers": keys})

    # --- opinions of issuers (RFC 7662) ---
    def _opined(self, token: bytes, digest: bytes, tenant_id: str | None, now: float) -> _Judged:
        if not token.isascii() or token.split() != [token]:
            raise Refused("it has characters that no credential has")  # RFC 6750 section 2.1
        issuer = self._issuer_to_ask(token, tenant_id)
        if issuer is not None:
            return self._opinion_of(issuer, token, digest, now)
        if not self._gateway.link.is_fresh(now):
            raise _cannot_tell("The gateway cannot tell at the moment whose tokens count.")
        raise Refused("there is no issuer to ask, or more than one")

    def _issuer_to_ask(self, token: bytes, tenant_id: str | None) -> IssuerRecord | None:
        """Of the tenant's issuers the one whose prefix a token begins with, the longest first. A token is shown to
        nobody whom it may not be from: None where there is none, or more than one."""
        found = [
            each
            for each in self._introspecting
            if token.startswith(each.token_prefix) and (tenant_id is None or each.tenant_id == tenant_id)
        ]
        longest = max((len(each.token_prefix) for each in found), default=0)
        nearest = [each for each in found if len(each.token_prefix) == longest]
        return nearest[0] if len(nearest) == 1 else None

    def _opinion_of(self, issuer: IssuerRecord, token: bytes, digest: bytes, now: float) -> _Judged:
        key = issuer.id, digest
        answer = self._answers.get(key)
        if isinstance(answer, GatewayFault):
            raise answer
        opinion = answer or self._opinions.get(key)
        if opinion is None or opinion.issuer is not issuer or (answer is None and opinion.until <= now):
            raise Question(issuer, token)
        if opinion.claims is None:
            raise Refused("its issuer says that it is not active")
        check_claims(issuer, opinion.claims)
        issued_at, expires_at = introspected_lifetime(issuer, opinion.claims, now)
        until = min(expires_at, opinion.until)
        return _Judged(issuer, opinion.claims, None, Opaque(token, digest), issued_at, expires_at, until)

    # --- whose request it is ---
    def _recognised(self, judged: _Judged, applications: Mapping[str, ApplicationRecord]) -> Recognised:
        issuer, claims = judged.issuer, judged.claims
        named = application_named(issuer, claims)
        application = _application(applications, named, issuer.tenant_id) if named else None
        if named and application is None:
            raise Refused("its application is not active")
        application_id = application.id if application is not None else ""
        identity = identity_of(issuer, claims, application_id, judged.issued_at, judged.expires_at, judged.proof)
        return Recognised(identity, application, judged.until, named is not None and named != issuer.application_id)

    def _remember(self, digest: bytes, entry: _Remembered) -> None:
        former = self._remembered.pop(digest, None)
        if former is not None:
            self._bytes -= former.size
        if entry.recognised.until <= time.time():
            return
        self._remembered[digest] = entry
        self._bytes += entry.size
        while len(self._remembered) > _MOST_REMEMBERED or self._bytes > _MOST_BYTES:
            oldest = self._remembered.pop(next(iter(self._remembered)))
            self._bytes -= oldest.size

    def _count(self, status: str) -> None:
        self.validations[status] = self.validations.get(status, 0) + 1

    def counters(self) -> list[Any]:
        """For the worker's report."""
        return [
            ["api_gateway_jwt_validations_total", {"status": status}, number]
            for status, number in self.validations.items()
        ]

    # --- what upstreams are told ---
    @property
    def step(self) -> Callable[[Exchange, Match], bool] | None:
        """A step of the pipeline where claims are sent to upstreams: the same fields from clients are dropped first
        (rule 24). x-gateway-… never pass."""
        issuers = self._gateway.link.snapshot.issuers
        if issuers is not self._issuers:
            self._take_issuers(issuers)
        return self._drop_claimed if self.header_names else None

    def _drop_claimed(self, exchange: Exchange, match: Match) -> bool:
        names, passed = self.header_names, exchange.passed
        if not names.isdisjoint(passed[::4]):
            exchange.passed = [
                piece for i in range(0, len(passed), 4) if passed[i] not in names for piece in passed[i : i + 4]
            ]
        return False

    def _take_issuers(self, issuers: Mapping[str, IssuerRecord]) -> None:
        self._issuers = issuers
        self._introspecting = [each for each in issuers.values() if each.rules.introspection is not None]
        names = frozenset[bytes]().union(*(each.header_names for each in issuers.values()))
        self.header_names = frozenset(name for name in names if not name.startswith(b"x-gateway-"))
        ids = {each.id for each in issuers.values()}
        self._keys = {issuer_id: each for issuer_id, each in self._keys.items() if issuer_id in ids}
        self._asked = {issuer_id: each for issuer_id, each in self._asked.items() if issuer_id in ids}

    # --- the agent ---
    def take_keys(self, message: Mapping[str, Any]) -> None:
        """The frame ``jwks``."""
        fresh = message["issuers"]
        if message["whole"]:
            self._documents = {issuer_id: each for issuer_id, each in self._documents.items() if issuer_id in fresh}
        for issuer_id, document in fresh.items():
            if self._documents.get(issuer_id) != document:  # else what was verified stays verified
                self._documents[issuer_id] = document
                self.epoch = object()

    def hold(self, exchange: Exchange, question: Question, step: Callable[[], None]) -> Hold:
        """Ask, and go on with ``step`` when there is an answer. Requests with the same question wait together."""
        waiting = self._waiting.get(question.key)
        if waiting is None:
            asking = self._begin_asking(exchange) if question.token else ""
            waiting = self._waiting[question.key] = []
            task = self._gateway.loop.create_task(self._ask(question), name="token question")
            self._tasks.add(task)
            task.add_done_callback(partial(self._asked_of, asking))
        elif len(waiting) >= _MOST_WAITING:
            raise InternalFault("overloaded", "Too many requests wait for the issuer of their token.", retry_after_s=1)
        hold = Hold(self._gateway, exchange)
        waiting.append((hold, step))
        return hold

    def _begin_asking(self, exchange: Exchange) -> str:
        """Nobody's failures are charged before an issuer has answered, so this alone bounds what one address makes it
        do. Raises GatewayFault ``overloaded``: that is no reason to call a token wrong."""
        bucket = failure_bucket(exchange.identity.client)
        of_address = self._asking.get(bucket, 0)
        if of_address >= _MOST_OF_ADDRESS or len(self._tasks) >= _MOST_QUESTIONS:
            detail = "Too many tokens are being looked at that only their issuer can tell."
            raise InternalFault("overloaded", detail, retry_after_s=1)
        self._asking[bucket] = of_address + 1
        return bucket

    def _asked_of(self, bucket: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if bucket:
            left = self._asking.pop(bucket) - 1
            if left:
                self._asking[bucket] = left

    async def _ask(self, question: Question) -> None:
        answers: Answers = {}
        try:
            if question.token:
                answers[question.key] = await self._ask_for_opinion(question)
            else:
                await self._ask_keys_of(question.issuer)
        except GatewayFault as fault:
            answers[question.key] = fault
        except Exception as error:
            answers[question.key] = self._gateway.unexpected(error)
        try:
            self._answers = answers
            for hold, step in self._waiting.pop(question.key):
                hold.go_on(step)
        finally:
            self._answers = {}

    async def _ask_keys_of(self, issuer: IssuerRecord) -> None:
        had_some = issuer.id in self._documents
        self._asked[issuer.id] = self._gateway.now(), False
        result = await self._gateway.link.call("issuer_keys", {"issuer": issuer.id}, _ASK_TIMEOUT_S)
        self.take_keys({"whole": False, "issuers": {issuer.id: result["keys"]}})
        # The first ones were no answer to an unknown kid: one that comes next may ask again.
        self._asked[issuer.id] = self._gateway.now() if had_some else float("-inf"), True

    async def _ask_for_opinion(self, question: Question) -> Opinion:
        params = {"issuer": question.issuer.id, "token": question.token.decode("ascii", "replace")}
        result = await self._gateway.link.call("introspect", params, _ASK_TIMEOUT_S)
        claims = result["claims"]
        policy = question.issuer.rules.introspection
        assert policy is not None  # else nobody would have asked
        kept_s = policy.cache_s if claims is not None else min(policy.cache_s, _NEGATIVE_S)
        opinion = Opinion(claims, time.time() + kept_s, question.issuer)
        self._opinions.pop(question.key, None)
        if kept_s:
            self._opinions[question.key] = opinion
            if len(self._opinions) > _MOST_OPINIONS:
                del self._opinions[next(iter(self._opinions))]
        return opinion


def has_keys(issuer: IssuerRecord) -> bool:
    """Whether its JWTs are verified here; else its opinion of them is asked for."""
    rules = issuer.rules
    return bool(rules.jwks_url) or rules.jwks is not None or rules.secret is not None


def _judged_again(
    issuer: IssuerRecord, keys: KeySet | None, user: Identity, claims: Mapping[str, Any], now: float
) -> Identity:
    """Raises `Refused` where what a token has opened stands on it no longer. Keys that cannot be had are no reason."""
    proof = user.proof
    if not isinstance(proof, Proof):
        if issuer.rules.introspection is None:
            raise Refused("its issuer is not asked any more")
        issued_at, expires_at = introspected_lifetime(issuer, claims, now)
    else:
        if not has_keys(issuer):
            raise Refused("its issuer has no keys any more")
        check_form(issuer, proof)
        if keys is not None and not keys.would_verify(proof):
            raise Refused("its key is none of the issuer's any more")
        issued_at, expires_at = lifetime(issuer, claims, now)
    check_claims(issuer, claims)
    identity = identity_of(issuer, claims, user.application_id, issued_at, expires_at, proof)
    if identity.subject != user.subject:
        raise Refused("its issuer says that it is somebody else's now")
    return identity


def _check_application(
    issuer: IssuerRecord, named: str | None, application: ApplicationRecord | None, *, is_alone: bool
) -> None:
    """Beside a key or a certificate the token need not name the application, only no other one. Raises `Refused`."""
    if application is None or application.tenant_id != issuer.tenant_id:
        raise Refused("its application is not active, or the issuer has gone to another tenant")
    if (is_alone or named != issuer.application_id) and named not in (application.id, application.name):
        raise Refused("it is of another application now")


def _made(issuer: IssuerRecord, made_of: Any) -> KeySet | None:
    from access.tokens.keys import published_keys, shared_key

    if made_of is None:
        return None
    try:
        if issuer.rules.secret is not None:
            return shared_key(made_of, issuer.rules.algorithms)
        return published_keys(made_of, issuer.rules.algorithms)
    except ValueError as error:
        raise _cannot_tell(f"The keys of the issuer {issuer.name} cannot be used: {error}.") from None


def _application(applications: Mapping[str, ApplicationRecord], named: str, tenant_id: str) -> ApplicationRecord | None:
    """By id, or by name within the tenant (rule 26)."""
    found = applications.get(named)
    if found is None:
        found = next(
            (each for each in applications.values() if each.name == named and each.tenant_id == tenant_id), None
        )
    return found if found is not None and found.tenant_id == tenant_id else None


def _cannot_tell(detail: str) -> InternalFault:
    return InternalFault("dependency_unavailable", detail, retry_after_s=1)


def invalid_token(detail: str) -> PolicyDenied:
    description = b', error_description="' + detail.encode("ascii") + b'"'
    return PolicyDenied("invalid_credentials", detail, headers=((b"www-authenticate", _CHALLENGE + description),))

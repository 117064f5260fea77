"""A request on its way to the upstream whose answer may be kept, and the filter that keeps it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from core.context import BodySink, Exchange
from core.faults import GatewayFault
from routing.answers import BODILESS, AnswerHead, AnswerSink, Filter, through_filters
from routing.cache.asking import PLAIN, Asked, credentials_of, owner_of, validating, vary_of, without_conditions
from routing.cache.freshness import Audience, Credentials, Said, Verdict, gather, judge
from routing.cache.http_dates import parse_date
from routing.cache.pouring import deliver
from routing.cache.serving import is_same, merged_lines, serve
from routing.cache.store import EVERYBODY, Key, Resource, StoredAnswer, Vary
from routing.policies import Caching
from routing.records import ServiceRecord

if TYPE_CHECKING:
    from routing.cache.step import Cache

ERRORS = frozenset((500, 502, 503, 504))  # that stale-if-error speaks of (RFC 5861 section 4)
DOWN = frozenset((502, 503, 504))  # that say that nobody is there
MAX_TAGS = 100
_NO_TAGS: frozenset[bytes] = frozenset()
_TAG_SEPARATORS = re.compile(rb"[,\s]+")

Forward = Callable[[Exchange], None]


class CachedMatch(Protocol):
    """What the cache must know of what a request leads to."""

    @property
    def caching(self) -> Caching | None: ...
    @property
    def cache_scope(self) -> str: ...  # service and route: what is stored for one is for no other
    @property
    def service(self) -> ServiceRecord | None: ...
    @property
    def route(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer that is to be kept once its body is whole."""

    key: Key
    verdict: Verdict
    vary: Vary
    tags: frozenset[bytes]
    head: AnswerHead
    said: Said
    at: float


class Fetch:
    """``answer`` is what is stored for the request and cannot be used as it is; ``reason`` says why the request is
    forwarded (RFC 9211 section 2.2)."""

    __slots__ = (
        "answer",
        "asked",
        "cache",
        "exchange",
        "flight",
        "forward",
        "generation",
        "is_background",
        "is_gone",
        "is_validating",
        "match",
        "nearer",
        "passed",
        "policy",
        "reason",
        "resource",
        "sent_at",
        "since",
        "source",
    )

    def __init__(
        self,
        cache: Cache,
        exchange: Exchange,
        match: CachedMatch,
        policy: Caching,
        resource: Resource,
        asked: Asked,
        answer: StoredAnswer | None,
        reason: bytes,
        forward: Forward,
    ) -> None:
        self.cache = cache
        self.exchange = exchange
        self.match = match
        self.policy = policy
        self.resource = resource
        self.asked = asked
        self.answer = answer
        self.reason = reason
        self.forward = forward
        self.nearer = exchange.filters
        self.passed = exchange.passed
        self.since = cache.store.dropped.number
        self.generation: Any = None  # of the shared tier, from before the request was sent; None: it keeps nothing
        self.sent_at = exchange.started
        self.flight: Any = None
        self.source: BodySink | None = None  # of an answer that is being gathered: who goes on when its client is ready
        self.is_validating = self.is_background = self.is_gone = False

    # --- towards the upstream ---
    def send(self) -> None:
        """Raises GatewayFault, as forwarding does."""
        exchange, answer = self.exchange, self.answer
        self.sent_at = self.cache.now()
        self.is_validating = answer is not None and answer.has_validator
        if self.is_validating:
            assert answer is not None
            exchange.passed = validating(self.passed, answer)
        else:
            exchange.passed = without_conditions(self.passed)
        exchange.filters = (*self.nearer, self._filter)
        exchange.rescue = self.rescue
        self.forward(exchange)

    def _filter(self, onward: AnswerSink) -> AnswerSink:
        return Storing(onward, self)

    def _send_anew(self) -> None:
        """The upstream holds something else than what was asked about: ask for the whole of it."""
        answer, self.answer = self.answer, None
        if answer is not None:
            self.cache.store.drop(answer)
        self.cache.guarded(self.exchange, self.send)

    # --- those who wait for the same ---
    @property
    def is_awaited(self) -> bool:
        return self.flight is not None and bool(self.flight.followers)

    def is_awaited_now(self) -> None:
        """What its own client holds up goes on."""
        if self.source is not None:
            self.source.client_ready()

    # --- what came of it ---
    def takes_over(self, head: AnswerHead, onward: AnswerSink, *, is_whole: bool) -> bool:
        """Answer from memory in place of ``head``: it says that what is stored still holds, or it is an error that a
        stale answer is better than. ``is_whole``: nothing of it is still to come, and its forwarding is over."""
        answer, status = self.answer, head.status
        if answer is None:
            return False
        if status == 304 and self.is_validating and self.exchange.is_fallback:
            # The fallback was asked our question too, and has the same: the client, who did not ask, gets the whole.
            self.cache.land(self, None)
            self.count(b"stale")
            self.finish()
            lines = [b"age: %d\r\n" % answer.age_s(self.cache.now()), self.status_line(b"; fwd-status=304")]
            self._deliver(onward, *serve(answer, self.asked, self.exchange.method, lines), is_whole=is_whole)
            return True
        if status == 304 and self.is_validating:
            etag = head.value(b"etag")
            if etag is not None and _is_other(etag, answer.etag):
                self._send_anew()
                return True
            fresh = self._freshen(answer, head)
            self.count(b"revalidated")
            said = [b"age: " + age + b"\r\n" for age in head.values(b"age")]
            said.append(self.status_line(b"; fwd-status=304", is_stored=fresh is not answer))
            self.finish()
            self._deliver(onward, *serve(fresh, self.asked, self.exchange.method, said), is_whole=is_whole)
            return True
        if status in ERRORS and self.may_be_stale(status):
            self._serve_stale(answer, onward, b"; fwd-status=%d" % status, is_whole=is_whole)
            return True
        return False

    def rescue(self, fault: GatewayFault) -> bool:
        """Nothing came (R12)."""
        answer, exchange = self.answer, self.exchange
        if answer is None or self.is_background or not self.may_be_stale(fault.status):
            self.cache.land(self, None)
            return False
        exchange.filters = self.nearer
        exchange.fault_code = fault.code  # for the access log: why it is stale
        self._serve_stale(answer, through_filters(exchange, self.cache.via), b"", is_whole=True)
        return True

    def may_be_stale(self, status: int) -> bool:
        """RFC 9111 section 4.2.4, RFC 5861 section 4; ``status`` is the error's."""
        answer = self.answer
        if answer is None or answer.forbids_stale or status not in ERRORS:
            return False
        if self.cache.store.dropped.has_since(self.since, answer):  # while this request was on its way
            return False
        if answer.staleness_s(self.cache.now()) <= answer.if_error_s:
            return True
        return self.policy.serve_stale_when_down and status in DOWN

    def _deliver(self, onward: AnswerSink, head: AnswerHead, body: bytes, *, is_whole: bool) -> None:
        if is_whole:
            deliver(self.exchange, onward, head, body)
        else:  # the forwarding is still the exchange's sink
            onward.whole(head, body)

    def _serve_stale(self, answer: StoredAnswer, onward: AnswerSink, more: bytes, *, is_whole: bool) -> None:
        self.cache.land(self, None)
        self.finish()
        self.count(b"stale")
        now = self.cache.now()
        more += b"; ttl=%d; detail=stale-if-error" % -answer.staleness_s(now)
        said = [b"age: %d\r\n" % answer.age_s(now), self.status_line(more)]
        self._deliver(onward, *serve(answer, self.asked, self.exchange.method, said), is_whole=is_whole)

    def _freshen(self, answer: StoredAnswer, head: AnswerHead) -> StoredAnswer:
        """The stored answer as a 304, or a HEAD that agrees with it, has renewed it."""
        merged = AnswerHead(answer.status, merged_lines(answer, head), is_sized=answer.status not in BODILESS)
        draft = self._draft(merged)
        if draft is None:  # it says now that it is not to be kept
            self.cache.store.drop(answer)
            self.cache.land(self, None)
            return answer
        fresh = self._stored(draft, answer.body)
        if draft.key == answer.key:
            if draft.vary != answer.vary:  # the renewal itself may say what it varies by
                self.cache.store.drop(answer)
        elif answer.key[0] != EVERYBODY:
            self.cache.store.drop(answer)
        return fresh

    def draft(self, head: AnswerHead) -> Draft | None:
        """What is to be kept of an answer; None: nothing, and whoever waits for it goes on alone."""
        draft = None
        if self.exchange.method == b"GET" and not self.exchange.is_fallback:
            draft = self._draft(head)
        if draft is None:
            self._not_kept(head)
        return draft

    def _draft(self, head: AnswerHead) -> Draft | None:
        exchange, policy = self.exchange, self.policy
        if self.asked.no_store:
            return None
        credentials = self._credentials()
        tag_header = policy.tag_header.lower().encode("ascii")
        said = gather(head, tag_header)
        now = self.cache.now()
        verdict = judge(said, head.status, policy, credentials, received=time.time(), delay_s=now - self.sent_at)
        is_sized = head.is_sized and head.status not in BODILESS
        if verdict is None or not _is_worth_keeping(verdict, said, policy, is_sized=is_sized):
            return None
        varies = vary_of(exchange, b", ".join(said[b"vary"]) if b"vary" in said else None)
        if varies is None:
            return None
        vary, names_owner = varies
        owner = EVERYBODY
        if names_owner or verdict.audience is Audience.OWNER:
            whose = owner_of(exchange)
            if whose is None:
                return None
            owner = whose
        tags = frozenset(_TAG_SEPARATORS.split(b",".join(said[tag_header]))) - {b""} if tag_header in said else _NO_TAGS
        if len(tags) > MAX_TAGS:  # it could not be purged by those that are left out
            return None
        return Draft((owner, self.resource), verdict, vary, tags, head, said, now)

    def keep(self, draft: Draft, body: bytes) -> StoredAnswer:
        """The answer is whole."""
        former, self.answer = self.answer, None
        stored = self._stored(draft, body)
        if former is not None and (former.key, former.vary) != (stored.key, stored.vary):
            self.cache.store.drop(former)
        return stored

    def _stored(self, draft: Draft, body: bytes) -> StoredAnswer:
        head, verdict, service = draft.head, draft.verdict, self.match.service
        assert service is not None
        lines = [line for line in head.lines if line[:4].lower() != b"age:"]
        if not head.is_sized and head.status not in BODILESS:
            lines.append(b"content-length: %d\r\n" % len(body))
        modified, etag, date = map(draft.said.get, (b"last-modified", b"etag", b"date"))
        stored = StoredAnswer(
            key=draft.key,
            status=head.status,
            lines=lines,
            body=body,
            vary=draft.vary,
            service=service.name,
            host=self.exchange.identity.host,
            place=(self.exchange.path, self.exchange.query),
            tags=draft.tags,
            at=draft.at,
            date=(parse_date(date[0]) if date is not None else None) or time.time(),
            initial_age_s=verdict.initial_age_s,
            lifetime_s=verdict.lifetime_s,
            forbids_stale=verdict.forbids_stale,
            while_revalidate_s=verdict.while_revalidate_s,
            if_error_s=verdict.if_error_s,
            etag=etag[0] if etag is not None and len(etag) == 1 else None,
            last_modified=modified[0] if modified is not None and len(modified) == 1 else None,
        )
        self.cache.keep(self, stored)
        return stored

    def _not_kept(self, head: AnswerHead) -> None:
        answer = self.answer
        if self.exchange.method != b"HEAD":
            self._drop_former(head.status)
        elif answer is not None and head.status < 300 and not self.exchange.is_fallback:
            if is_same(answer, head):
                self._freshen(answer, head)
            else:
                self.cache.store.drop(answer)
        is_private = head.status < 500 and self._is_ordinary()
        self.cache.land(self, None, is_private=is_private, varies=is_private and bool(head.values(b"vary")))

    def _is_ordinary(self) -> bool:
        """Whether others that ask for the same would get the same verdict: it is not this request's own doing."""
        exchange = self.exchange
        if exchange.method != b"GET" or exchange.is_fallback or self.asked.no_store:
            return False
        return self._credentials() is not Credentials.UPSTREAM

    def _credentials(self) -> Credentials:
        route = self.match.route
        return credentials_of(self.exchange, are_passed=route is not None and route.pass_credentials)

    def _drop_former(self, status: int) -> None:
        """A full answer takes the place of what is stored, although it is not kept itself (RFC 9111 section 4.3.3)."""
        if self.answer is not None and status < 500 and not self.exchange.is_fallback:
            self.cache.store.drop(self.answer)

    def given_up(self, status: int) -> None:
        """The answer goes on, and is not kept: it is too large, or nobody can tell whether it is whole."""
        self._drop_former(status)
        self.cache.land(self, None, is_private=self._is_ordinary())

    def failed(self) -> None:
        """The answer was cut off, or nobody is there any more to whom it would go."""
        self.is_gone = True
        self.cache.land_for_another(self)

    def finish(self) -> None:
        """Nothing more comes of it. Exchange and fetch let go of each other: the collector has nothing to do."""
        exchange = self.exchange
        exchange.passed = self.passed
        exchange.filters = ()
        exchange.rescue = exchange.left = None
        self.source = None

    # --- what is said of it ---
    def count(self, result: bytes) -> None:
        if not self.is_background:
            self.cache.count(self.match, result)

    def status_line(self, more: bytes = b"", *, is_stored: bool = False) -> bytes:
        stored = b"; stored" if is_stored else b""
        return b"cache-status: portcullis; fwd=" + self.reason + more + stored + b"\r\n"


def _is_worth_keeping(verdict: Verdict, said: Said, policy: Caching, *, is_sized: bool) -> bool:
    if is_sized:
        length = said.get(b"content-length", [b""])[0]
        if not length.isdigit() or int(length) > policy.max_object_bytes:
            return False
    remaining_s = verdict.lifetime_s - verdict.initial_age_s
    if remaining_s + max(verdict.while_revalidate_s, verdict.if_error_s) > 0:
        return True
    if policy.serve_stale_when_down and not verdict.forbids_stale:
        return True
    return b"etag" in said or b"last-modified" in said


def _is_other(etag: bytes, stored: bytes | None) -> bool:
    """RFC 9111 section 4.3.4: a strong validator that the stored answer does not have."""
    if stored is None:
        return not etag.startswith(b"W/")
    if etag.startswith(b"W/") or stored.startswith(b"W/"):
        return etag.removeprefix(b"W/") != stored.removeprefix(b"W/")
    return etag != stored


class Storing(Filter):
    """Passes the answer on, and gathers it meanwhile.

    While others wait for the same answer it does not wait for a slow client: what that one has not taken stands in its
    buffer, at most ``max_object_bytes``.
    """

    def __init__(self, onward: AnswerSink, fetch: Fetch) -> None:
        super().__init__(onward)
        self._fetch = fetch
        self._draft: Draft | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_over = False  # answered in another way: what still comes is for nobody

    def whole(self, head: AnswerHead, body: bytes) -> None:
        fetch = self._fetch
        if fetch.takes_over(head, self.onward, is_whole=True):
            return
        fetch.finish()
        draft = None
        if len(body) > fetch.policy.max_object_bytes or head.ends_by_close:
            fetch.given_up(head.status)
        else:
            draft = fetch.draft(head)
        fetch.count(b"miss")
        if draft is None:
            self.onward.whole(_marked(head, fetch.status_line()), body)
            return
        stored = fetch.keep(draft, body)
        said = fetch.status_line(is_stored=True)
        if fetch.asked is PLAIN:
            self.onward.whole(_marked(head, said), body)
        else:
            self.onward.whole(*serve(stored, fetch.asked, fetch.exchange.method, [said]))

    def start(self, head: AnswerHead) -> None:
        fetch = self._fetch
        if fetch.takes_over(head, self.onward, is_whole=False):
            self._is_over = True
            return
        if head.ends_by_close:  # it may be cut off, and nobody would know
            fetch.given_up(head.status)
        else:
            self._draft = fetch.draft(head)
            fetch.source = fetch.exchange.sink
        draft = self._draft
        fetch.count(b"miss")
        self.onward.start(_marked(head, fetch.status_line(is_stored=draft is not None and head.is_sized)))

    def data(self, data: bytes) -> bool:
        if self._is_over:
            return True
        is_ready = self.onward.data(data)
        if self._draft is None:
            return is_ready
        self._size += len(data)
        if self._size > self._fetch.policy.max_object_bytes:
            status, self._draft = self._draft.head.status, None
            self._pieces = []
            self._fetch.given_up(status)
            return is_ready
        self._pieces.append(data)
        return is_ready or self._fetch.is_awaited

    def end(self) -> None:
        if self._is_over:
            return
        draft, self._draft = self._draft, None
        if draft is not None:
            self._fetch.keep(draft, b"".join(self._pieces))
        self._fetch.finish()
        self.onward.end()

    def abort(self) -> None:
        if self._is_over:
            return
        self._draft = None
        self._fetch.failed()
        self._fetch.finish()
        self.onward.abort()


def _marked(head: AnswerHead, line: bytes) -> AnswerHead:
    """A copy: what is kept must not change when those nearer to the client change what they pass on."""
    return AnswerHead(head.status, [*head.lines, line], is_sized=head.is_sized)


class Noting(Filter):
    """Says why the cache had no part in an answer."""

    def __init__(self, onward: AnswerSink, line: bytes) -> None:
        super().__init__(onward)
        self._line = line

    def whole(self, head: AnswerHead, body: bytes) -> None:
        self.onward.whole(_marked(head, self._line), body)

    def start(self, head: AnswerHead) -> None:
        self.onward.start(_marked(head, self._line))


class Invalidating(Filter):
    """An unsafe request that succeeds makes what is stored for its URL void (RFC 9111 section 4.4)."""

    def __init__(self, onward: AnswerSink, succeeded: Callable[[AnswerHead], None]) -> None:
        super().__init__(onward)
        self._succeeded = succeeded

    def whole(self, head: AnswerHead, body: bytes) -> None:
        self._look(head)
        super().whole(head, body)

    def start(self, head: AnswerHead) -> None:
        self._look(head)
        super().start(head)

    def _look(self, head: AnswerHead) -> None:
        if 200 <= head.status < 400:
            self._succeeded(head)

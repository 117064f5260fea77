"""The arithmetic of RFC 9111 for a shared cache: who may be given an answer, and for how long. All of it is pure.

Times are epoch seconds where they come from fields, ages and lifetimes are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from routing.answers import AnswerHead
from routing.cache.directives import MOST, NOTHING, Directives, cache_control, seconds, targeted
from routing.cache.http_dates import parse_date
from routing.policies import Caching

# Status codes that may be stored although nothing explicit is said (RFC 9110 section 15.1), but 206: no parts are kept.
HEURISTIC = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))
# Those that `Caching.default_ttl_s` is for: an error that says nothing is not kept.
_ASSUMED = frozenset((200, 203, 204, 300, 301, 308))
# Those whose rules for caches are followed here (RFC 9111 section 5.2.2.3).
_UNDERSTOOD = HEURISTIC | frozenset((201, 202, 302, 303, 307, 400, 401, 402, 403, 406, 409, 411, 413, 415, 416, 421))
_UNDERSTOOD |= frozenset((422, 429, 451, 500, 502, 503, 504))
_HEURISTIC_SHARE = 0.1  # of the time since Last-Modified (RFC 9111 section 4.2.2)
_HEURISTIC_MOST_S = 86_400.0


class Audience(IntEnum):
    """Who may be given a stored answer."""

    NOBODY = 0
    OWNER = 1  # the application whose request it answered
    ALL = 2


class Credentials(IntEnum):
    """What a request carried."""

    NONE = 0
    GATEWAY = 1  # a key that ends at the gateway: the upstream knows the application by name
    UPSTREAM = 2  # something that the upstream itself judges (RFC 9111 section 3.5)


@dataclass(frozen=True, slots=True)
class Fields:
    """What an answer says about its freshness."""

    directives: Directives
    is_targeted: bool  # they are CDN-Cache-Control's: Cache-Control and Expires do not count (RFC 9213 section 2.2)
    date: float
    age_s: int
    expires: float | None  # 0 for one that is no date: it is in the past (RFC 9111 section 5.3)
    last_modified: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How long an answer may be used, from when it was received."""

    audience: Audience
    lifetime_s: float
    initial_age_s: float
    forbids_stale: bool
    while_revalidate_s: float
    if_error_s: float


Said = dict[bytes, list[bytes]]  # values by name, in lower case: what a cache must know of an answer
_READ = frozenset(
    b"age cache-control cdn-cache-control content-length date etag expires last-modified set-cookie vary".split()
)


def gather(head: AnswerHead, tag_header: bytes) -> Said:
    """One pass over an answer's fields."""
    said: Said = {}
    for line in head.lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _READ or name == tag_header:
            value = value.strip()
            if name in said:
                said[name].append(value)
            else:
                said[name] = [value]
    return said


def read_fields(said: Said, received: float) -> Fields:
    """``received`` stands in for a Date that is missing (RFC 9110 section 6.6.1)."""
    own = said.get(b"cdn-cache-control")
    directives = targeted(b", ".join(own)) if own is not None else None
    is_targeted = directives is not None
    if directives is None:
        control = said.get(b"cache-control")
        directives = cache_control(b", ".join(control)) if control is not None else NOTHING
    dates, expirations, modified, ages = map(said.get, (b"date", b"expires", b"last-modified", b"age"))
    date = parse_date(dates[0]) if dates is not None else None
    expires = None
    if expirations is not None:  # two of them: the answer is stale
        expires = (parse_date(expirations[0]) or 0.0) if len(set(expirations)) == 1 else 0.0
    age = ages[0].partition(b",")[0].rstrip() if ages is not None else b""  # of a list the first (section 5.1)
    return Fields(
        directives=directives,
        is_targeted=is_targeted,
        date=received if date is None else date,
        age_s=(MOST if len(age) > 10 else min(int(age), MOST)) if age.isdigit() else 0,
        expires=expires,
        last_modified=parse_date(modified[0]) if modified is not None else None,
    )


def explicit_lifetime_s(fields: Fields) -> float | None:
    """Section 4.2.1: s-maxage, else max-age, else Expires. None: nothing was said."""
    for name in ("s-maxage", "max-age"):
        lifetime_s = seconds(fields.directives, name)
        if lifetime_s is not None:
            return float(lifetime_s)
    if fields.expires is not None and not fields.is_targeted:
        return max(0.0, fields.expires - fields.date)
    return None


def assumed_lifetime_s(fields: Fields, status: int, policy: Caching) -> float | None:
    """Of an answer that says nothing: the policy's word, else section 4.2.2."""
    if policy.default_ttl_s is not None and status in _ASSUMED:
        return float(policy.default_ttl_s)
    may_guess = policy.heuristic and (status in HEURISTIC or "public" in fields.directives)
    if may_guess and fields.last_modified is not None:
        return min(_HEURISTIC_MOST_S, max(0.0, fields.date - fields.last_modified) * _HEURISTIC_SHARE)
    return None


def initial_age_s(fields: Fields, received: float, delay_s: float) -> float:
    """Section 4.2.3: the age when the answer was received, ``delay_s`` after its request was sent."""
    apparent_age_s = max(0.0, received - fields.date)
    corrected_age_s = fields.age_s + max(0.0, delay_s)
    return max(apparent_age_s, corrected_age_s)


def audience(fields: Fields, status: int, credentials: Credentials, *, sets_cookie: bool) -> Audience:
    """Sections 3 and 3.5: who may be given the answer. One with Set-Cookie is kept for nobody: the RFC leaves that to
    the cache (section 7.3), and a cookie that goes to two people is the worst that a cache can do."""
    directives = fields.directives
    if status in (206, 304) or status < 200 or sets_cookie or "private" in directives:
        return Audience.NOBODY
    if "must-understand" in directives:
        if status not in _UNDERSTOOD:
            return Audience.NOBODY
    elif "no-store" in directives:
        return Audience.NOBODY
    is_explicit = "public" in directives or explicit_lifetime_s(fields) is not None
    if status not in HEURISTIC and not is_explicit:
        return Audience.NOBODY
    if credentials is Credentials.NONE or not _FOR_OTHERS.isdisjoint(directives):
        return Audience.ALL
    return Audience.OWNER if credentials is Credentials.GATEWAY else Audience.NOBODY


_FOR_OTHERS = frozenset(("public", "s-maxage", "must-revalidate"))  # section 3.5
_STRICT = frozenset(("must-revalidate", "proxy-revalidate", "s-maxage", "no-cache"))  # section 4.2.4


def judge(
    said: Said, status: int, policy: Caching, credentials: Credentials, *, received: float, delay_s: float
) -> Verdict | None:
    """Whether and how the answer to a GET may be kept. None: it may not. ``received`` is in epoch seconds."""
    fields = read_fields(said, received)
    directives = fields.directives
    who = audience(fields, status, credentials, sets_cookie=b"set-cookie" in said)
    if who is Audience.NOBODY:
        return None
    lifetime_s = explicit_lifetime_s(fields)
    if lifetime_s is None:
        lifetime_s = assumed_lifetime_s(fields, status, policy) or 0.0
    if "no-cache" in directives:
        lifetime_s = 0.0
    forbids_stale = not _STRICT.isdisjoint(directives)
    return Verdict(
        audience=who,
        lifetime_s=lifetime_s,
        initial_age_s=initial_age_s(fields, received, delay_s),
        forbids_stale=forbids_stale,
        while_revalidate_s=0.0 if forbids_stale else _window_s(policy.stale_while_revalidate_s, directives, _SWR),
        if_error_s=0.0 if forbids_stale else _window_s(policy.stale_if_error_s, directives, _SIE),
    )


_SWR, _SIE = "stale-while-revalidate", "stale-if-error"  # RFC 5861


def _window_s(configured: int | None, directives: Directives, name: str) -> float:
    if configured is not None:
        return float(configured)
    return float(seconds(directives, name) or 0)

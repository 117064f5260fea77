"""The arithmetic of RFC 9111, clause by clause, and what always holds of it."""

import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.answers import AnswerHead
from routing.cache.asking import PLAIN, Asked
from routing.cache.directives import MOST, cache_control, seconds, targeted
from routing.cache.freshness import (
    Audience,
    Credentials,
    Verdict,
    explicit_lifetime_s,
    gather,
    initial_age_s,
    judge,
    read_fields,
)
from routing.cache.http_dates import format_date, parse_date
from routing.cache.store import StoredAnswer
from routing.policies import Caching

NOW = 1_800_000_000.0
NO_GUESS = Caching(heuristic=False)


def head(*fields: str, status: int = 200, date: float = NOW) -> AnswerHead:
    lines = [b"Date: " + format_date(date) + b"\r\n", *(field.encode("latin-1") + b"\r\n" for field in fields)]
    return AnswerHead(status, lines, is_sized=False)


def verdict_of(
    *fields: str,
    status: int = 200,
    policy: Caching = NO_GUESS,
    credentials: Credentials = Credentials.NONE,
    date: float = NOW,
    received: float = NOW,
    delay_s: float = 0.0,
) -> Verdict | None:
    said = gather(head(*fields, status=status, date=date), b"cache-tag")
    return judge(said, status, policy, credentials, received=received, delay_s=delay_s)


# --- directives (section 5.2, section 1.2.2) ---
@pytest.mark.parametrize(
    ("value", "directives"),
    [
        ("max-age=60, public", {"max-age": "60", "public": ""}),
        ("MAX-AGE=60,Public", {"max-age": "60", "public": ""}),
        ('max-age="60"', {"max-age": "60"}),
        ('private="a, b", max-age=1', {"private": "a, b", "max-age": "1"}),
        (" , ,max-age=60 ,, no-store", {"max-age": "60", "no-store": ""}),
        ("max-age=60; public", {"max-age": "invalid"}),
        ("max-age=60, max-age=60", {"max-age": "60"}),
        ("max-age=60, max-age=30", {"max-age": "invalid"}),
        ("max-age = 60", {"max-age": "invalid"}),
        ('ext="\\"quoted\\"", no-cache', {"ext": '"quoted"', "no-cache": ""}),
        ("", {}),
    ],
)
def test_cache_control_is_read_leniently_where_that_is_safe(value: str, directives: Mapping[str, str]) -> None:
    assert cache_control(value.encode()) == directives


@pytest.mark.parametrize(
    ("argument", "number"),
    [
        ("60", 60),
        ("0", 0),
        ("060", 60),
        ("-1", 0),
        ("1.5", 0),
        ("x", 0),
        ("", 0),
        ("1e3", 0),
        ("\uff19", 0),
        ("9" * 400, MOST),
    ],
)
def test_what_is_no_number_of_seconds_is_none(argument: str, number: int) -> None:
    assert seconds({"max-age": argument}, "max-age") == number
    assert seconds({}, "max-age") is None


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        ("max-age=60, public", {"max-age": "60", "public": ""}),
        ("max-age=60;x=1;y, no-store;a", {"max-age": "60", "no-store": ""}),
        ("max-age=60, max-age=30", {"max-age": "30"}),  # the last one counts (RFC 9651 section 3.2)
        ("public=?0, max-age=1", {"max-age": "1"}),
        (
            'a="b \\" c", d=tok/en, e=:AAA=:, f=(1 "2" x);p',
            {"a": 'b \\" c', "d": "tok/en", "e": "invalid", "f": "invalid"},
        ),
        ("max-age=1.5", {"max-age": "1.5"}),
        ("", None),
        ("max-age=60,", None),
        ("Max-Age=60", None),
        ("max-age=60 public", None),
        ('max-age="60', None),
        ("max-age=", None),
        ("a=(1", None),
    ],
)
def test_a_targeted_field_is_a_dictionary_or_nothing(value: str, directives: Mapping[str, str] | None) -> None:
    """RFC 9213 section 2.1."""
    assert targeted(value.encode()) == directives


@given(st.binary(max_size=60))
def test_no_field_breaks_the_readers(value: bytes) -> None:
    cache_control(value)
    targeted(value)
    parse_date(value)
    assert isinstance(Asked({b"cache-control": value, b"range": value, b"if-none-match": value}).max_stale_s, int)


@pytest.mark.parametrize(
    "value", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms_of_dates_are_read(value: str) -> None:
    """RFC 9110 section 5.6.7."""
    assert parse_date(value.encode()) == 784111777


@pytest.mark.parametrize(
    "value",
    ["", "0", "-1", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT"],
)
def test_what_is_no_date_is_none(value: str) -> None:
    assert parse_date(value.encode()) is None


def test_two_digits_far_ahead_mean_the_past_century() -> None:
    ahead = time.gmtime().tm_year + 51
    assert parse_date(f"Sunday, 06-Nov-{ahead % 100:02} 08:49:37 GMT".encode()) == parse_date(
        f"Sun, 06 Nov {ahead - 100} 08:49:37 GMT".encode()
    )


# --- who may be given it (sections 3 and 3.5) ---
LATER = f"Expires: {format_date(NOW + 100).decode()}"


@pytest.mark.parametrize(
    ("fields", "status", "who"),
    [
        (("Cache-Control: max-age=60",), 200, Audience.ALL),
        ((LATER,), 200, Audience.ALL),
        (("Cache-Control: public",), 299, Audience.ALL),
        (("X: y",), 200, Audience.ALL),  # heuristically cacheable (RFC 9110 section 15.1)
        (("X: y",), 404, Audience.ALL),
        (("X: y",), 302, Audience.NOBODY),
        (("X: y",), 500, Audience.NOBODY),
        (("Cache-Control: max-age=60",), 302, Audience.ALL),
        (("Cache-Control: max-age=60",), 503, Audience.ALL),
        (("Cache-Control: max-age=60",), 206, Audience.NOBODY),
        (("Cache-Control: max-age=60, no-store",), 200, Audience.NOBODY),
        (("Cache-Control: max-age=60, private",), 200, Audience.NOBODY),
        (('Cache-Control: max-age=60, private="x"',), 200, Audience.NOBODY),
        (("Cache-Control: max-age=60, no-store, must-understand",), 200, Audience.ALL),  # section 5.2.2.3
        (("Cache-Control: max-age=60, no-store, must-understand",), 299, Audience.NOBODY),
        (("Cache-Control: max-age=60, must-understand",), 299, Audience.NOBODY),
        (("Cache-Control: max-age=60", "Cache-Control: no-store"), 200, Audience.NOBODY),
        (("Cache-Control: public, max-age=60", "Set-Cookie: a=b"), 200, Audience.NOBODY),
        (("CDN-Cache-Control: max-age=60", "Cache-Control: private"), 200, Audience.ALL),  # RFC 9213
        (("CDN-Cache-Control: private", "Cache-Control: public, max-age=60"), 200, Audience.NOBODY),
        (("CDN-Cache-Control: ???", "Cache-Control: private"), 200, Audience.NOBODY),
    ],
)
def test_who_may_be_given_an_answer(fields: tuple[str, ...], status: int, who: Audience) -> None:
    verdict = verdict_of(*fields, status=status)
    assert (verdict.audience if verdict else Audience.NOBODY) == who


@pytest.mark.parametrize(
    ("control", "credentials", "who"),
    [
        ("max-age=60", Credentials.GATEWAY, Audience.OWNER),
        ("max-age=60", Credentials.UPSTREAM, Audience.NOBODY),
        *(
            (f"{word}, max-age=60", each, Audience.ALL)
            for word in ("public", "s-maxage=1", "must-revalidate")
            for each in Credentials
        ),
        ("proxy-revalidate, max-age=60", Credentials.UPSTREAM, Audience.NOBODY),
    ],
)
def test_what_answered_somebodys_credentials(control: str, credentials: Credentials, who: Audience) -> None:
    """Section 3.5."""
    verdict = verdict_of(f"Cache-Control: {control}", credentials=credentials)
    assert (verdict.audience if verdict else Audience.NOBODY) == who


# --- for how long (section 4.2.1, 4.2.2) ---
@pytest.mark.parametrize(
    ("fields", "lifetime_s"),
    [
        (("Cache-Control: s-maxage=1, max-age=2", LATER), 1),
        (("Cache-Control: max-age=2", LATER), 2),
        ((LATER,), 100),
        ((f"Expires: {format_date(NOW - 100).decode()}",), 0),
        (("Expires: 0",), 0),
        ((LATER, f"Expires: {format_date(NOW + 200).decode()}"), 0),
        (("Cache-Control: max-age=x", LATER), 0),
        (("Cache-Control: no-cache, max-age=60",), 0),
        (("CDN-Cache-Control: max-age=3", "Cache-Control: s-maxage=1", LATER), 3),
        (("CDN-Cache-Control: public", LATER), 0),  # Expires does not count (RFC 9213 section 2.2)
        (("X: y",), 0),
    ],
)
def test_how_long_an_answer_is_fresh(fields: tuple[str, ...], lifetime_s: float) -> None:
    verdict = verdict_of(*fields)
    assert verdict is not None
    assert verdict.lifetime_s == lifetime_s


@pytest.mark.parametrize(
    ("policy", "status", "lifetime_s"),
    [
        (Caching(), 200, 100),
        (Caching(), 404, 100),
        (Caching(heuristic=False), 200, 0),
        (Caching(default_ttl_s=7), 200, 7),
        (Caching(default_ttl_s=7), 301, 7),
        (Caching(default_ttl_s=7), 404, 100),
        (Caching(default_ttl_s=0), 200, 0),
    ],
)
def test_what_is_assumed_of_an_answer_that_says_nothing(policy: Caching, status: int, lifetime_s: float) -> None:
    verdict = verdict_of(f"Last-Modified: {format_date(NOW - 1000).decode()}", policy=policy, status=status)
    assert verdict is not None
    assert verdict.lifetime_s == lifetime_s


def test_a_guess_is_a_day_at_most() -> None:
    verdict = verdict_of("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", policy=Caching())
    assert verdict is not None
    assert verdict.lifetime_s == 86_400


@pytest.mark.parametrize(
    ("control", "forbids", "windows"),
    [
        ("max-age=1, stale-while-revalidate=2, stale-if-error=3", False, (2, 3)),
        ("max-age=1", False, (0, 0)),
        ("max-age=1, stale-while-revalidate=x", False, (0, 0)),
        *(
            (f"max-age=1, stale-if-error=3, {word}", True, (0, 0))
            for word in ("must-revalidate", "proxy-revalidate", "s-maxage=1", "no-cache")
        ),
    ],
)
def test_for_how_long_it_may_be_stale(control: str, forbids: bool, windows: tuple[float, float]) -> None:
    """RFC 5861, and section 4.2.4: the explicit word against it wins."""
    verdict = verdict_of(f"Cache-Control: {control}")
    assert verdict is not None
    assert (verdict.forbids_stale, (verdict.while_revalidate_s, verdict.if_error_s)) == (forbids, windows)


def test_the_policys_windows_replace_the_answers() -> None:
    policy = Caching(stale_while_revalidate_s=5, stale_if_error_s=0)
    verdict = verdict_of("Cache-Control: max-age=1, stale-while-revalidate=2, stale-if-error=3", policy=policy)
    assert verdict is not None
    assert (verdict.while_revalidate_s, verdict.if_error_s) == (5, 0)


# --- age (section 4.2.3) ---
@pytest.mark.parametrize(
    ("date", "age", "delay_s", "expected"),
    [
        (NOW, "0", 0.0, 0),
        (NOW - 10, "0", 0.0, 10),
        (NOW - 10, "20", 3.0, 23),
        (NOW + 99, "0", 0.0, 0),
        (NOW, "x", 0.5, 0.5),
        (NOW, "20, 30", 0.0, 20),
        (NOW, "9" * 30, 0.0, 2**31),
    ],
)
def test_how_old_an_answer_is_when_it_comes(date: float, age: str, delay_s: float, expected: float) -> None:
    fields = read_fields(gather(head(f"Age: {age}", date=date), b""), NOW)
    assert initial_age_s(fields, NOW, delay_s) == expected


SECONDS = st.integers(0, 10**6)
DIRECTIVES = st.dictionaries(
    st.sampled_from(
        ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error", "public", "no-cache", "must-revalidate"]
    ),
    SECONDS,
    min_size=1,
)


def _control(directives: Mapping[str, int]) -> str:
    bare = ("public", "no-cache", "must-revalidate")
    return ", ".join(name if name in bare else f"{name}={value}" for name, value in directives.items())


def stored(verdict: Verdict, at: float = 0.0) -> StoredAnswer:
    names: dict[str, Any] = {
        name: getattr(verdict, name)
        for name in ("initial_age_s", "lifetime_s", "forbids_stale", "while_revalidate_s", "if_error_s")
    }
    return StoredAnswer(
        key=("", ("s", "v", b"h", b"/a", None)),
        status=200,
        lines=[],
        body=b"",
        vary=(),
        service="s",
        host=b"h",
        place=(b"/a", None),
        tags=frozenset(),
        at=at,
        date=NOW,
        etag=None,
        last_modified=None,
        **names,
    )


@given(DIRECTIVES, SECONDS, st.integers(-1000, 1000), st.floats(0, 100), st.floats(0, 1e6), st.floats(0, 1e6))
def test_age_is_never_negative_and_only_grows(
    directives: dict[str, int], age: int, skew_s: int, delay_s: float, first: float, more: float
) -> None:
    verdict = verdict_of(f"Cache-Control: {_control(directives)}", f"Age: {age}", date=NOW + skew_s, delay_s=delay_s)
    assert verdict is not None
    answer = stored(verdict)
    assert 0 <= verdict.initial_age_s <= answer.age_s(first) <= answer.age_s(first + more)
    assert verdict.initial_age_s >= age + delay_s
    assert answer.staleness_s(first) <= answer.staleness_s(first + more)


@given(DIRECTIVES, st.booleans(), SECONDS)
def test_the_most_specific_lifetime_wins(directives: dict[str, int], expires: bool, ahead: int) -> None:
    fields = [f"Cache-Control: {_control(directives)}"]
    if expires:
        fields.append(f"Expires: {format_date(NOW + ahead).decode()}")
    lifetime_s = explicit_lifetime_s(read_fields(gather(head(*fields), b""), NOW))
    expected = directives.get("s-maxage", directives.get("max-age", ahead if expires else None))
    assert lifetime_s == expected


@given(
    DIRECTIVES, st.floats(0, 2e6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.booleans()
)
def test_wishes_of_clients_only_move_the_line(
    directives: dict[str, int], now: float, max_age: int, min_fresh: int, max_stale: int, wants_news: bool
) -> None:
    verdict = verdict_of(f"Cache-Control: {_control(directives)}")
    assert verdict is not None
    answer = stored(verdict)
    plainly = PLAIN.accepts(answer, now)
    assert plainly == (answer.age_s(now) < verdict.lifetime_s)
    stricter = Asked({b"cache-control": b"max-age=%d, min-fresh=%d" % (max_age, min_fresh)})
    if stricter.accepts(answer, now):
        assert plainly
        assert answer.age_s(now) <= max_age
        assert verdict.lifetime_s - answer.age_s(now) >= min_fresh
    laxer = Asked({b"cache-control": b"max-stale=%d" % max_stale})
    assert laxer.accepts(answer, now) >= plainly
    if verdict.forbids_stale:
        assert laxer.accepts(answer, now) == plainly
    assert not Asked({b"cache-control": b"no-cache, max-stale"}).accepts(answer, now)


@given(
    st.lists(st.sampled_from(["no-store", "private", 'private="a"']), min_size=1),
    DIRECTIVES,
    st.sampled_from(Credentials),
)
def test_what_is_not_for_caches_is_for_nobody(
    words: list[str], directives: dict[str, int], credentials: Credentials
) -> None:
    control = ", ".join([_control(directives), *words])
    assert verdict_of(f"Cache-Control: {control}", credentials=credentials) is None

"""Cross-origin requests (rule 18)."""

import pytest

from access.cors import CorsPolicy
from access.policies import Cors

APP = b"https://app.example.com"
NAMED = CorsPolicy(["https://App.example.com/", "http://localhost:3000"])
ANYBODY = CorsPolicy(["*"])


def test_by_default_no_origin_is_allowed_and_nothing_is_said() -> None:
    policy = CorsPolicy([])
    assert not policy.enabled
    assert policy.preflight(APP, b"GET", None) is None
    assert policy.response_fields(APP) == b""


def test_a_preflight_of_a_named_origin_is_answered() -> None:
    fields = dict(NAMED.preflight(APP, b"PUT", b"x-api-key, content-type") or [])
    assert fields[b"access-control-allow-origin"] == APP
    assert fields[b"access-control-allow-methods"] == b"PUT"
    assert fields[b"access-control-allow-headers"] == b"x-api-key, content-type"
    assert fields[b"access-control-allow-credentials"] == b"true"
    assert int(fields[b"access-control-max-age"]) > 0
    assert fields[b"vary"].startswith(b"Origin")


def test_a_preflight_that_asks_for_no_fields_is_granted_none() -> None:
    assert b"access-control-allow-headers" not in dict(NAMED.preflight(APP, b"GET", None) or [])


@pytest.mark.parametrize(
    ("origin", "method", "headers"),
    [
        pytest.param(b"https://evil.example.com", b"GET", None, id="another origin"),
        pytest.param(b"http://app.example.com", b"GET", None, id="another scheme"),
        pytest.param(b"https://app.example.com:8443", b"GET", None, id="another port"),
        pytest.param(b"https://app.example.com.evil.net", b"GET", None, id="a longer name"),
        pytest.param(b"null", b"GET", None, id="an opaque origin"),
        pytest.param(APP, b"", None, id="no method"),
        pytest.param(APP, b"GET\r\nSet-Cookie: a=b", None, id="a method that is no token"),
        pytest.param(APP, b"GET", b"x-a\r\nSet-Cookie: a=b", id="names that are no tokens"),
    ],
)
def test_other_preflights_are_not_granted(origin: bytes, method: bytes, headers: bytes | None) -> None:
    assert NAMED.preflight(origin, method, headers) is None


def test_answers_to_a_named_origin_may_be_read_with_the_gateways_own_fields() -> None:
    lines = NAMED.response_fields(APP).split(b"\r\n")
    assert b"Access-Control-Allow-Origin: https://app.example.com" in lines
    assert b"Access-Control-Allow-Credentials: true" in lines
    assert b"Access-Control-Expose-Headers: RateLimit, RateLimit-Policy, Retry-After, X-Request-ID" in lines
    assert b"Vary: Origin" in lines
    assert lines[-1] == b""


def test_answers_to_others_only_say_that_the_origin_matters() -> None:
    for origin in (b"https://evil.example.com", b""):
        assert NAMED.response_fields(origin) == b"Vary: Origin\r\n"


def test_anybody_may_read_but_never_with_credentials() -> None:
    for origin in (APP, b"null"):
        assert b"Access-Control-Allow-Origin: *\r\n" in ANYBODY.response_fields(origin)
        assert b"Credentials" not in ANYBODY.response_fields(origin)
        fields = dict(ANYBODY.preflight(origin, b"GET", b"authorization") or [])
        assert fields[b"access-control-allow-origin"] == b"*"
        assert b"access-control-allow-credentials" not in fields


def test_a_named_origin_beside_anybody_keeps_its_credentials() -> None:
    policy = CorsPolicy(["*", "https://app.example.com"])
    assert b"Credentials: true" in policy.response_fields(APP)
    assert policy.response_fields(b"https://other.net").endswith(b"Vary: Origin\r\n")
    assert b"Allow-Origin: *" in policy.response_fields(b"https://other.net")


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://", "https://a/b", "https://u@a", "null", "https://é.fr", ""]
)
def test_what_is_no_origin_is_refused_when_the_policy_is_made(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        CorsPolicy([origin])


# --- domains, and what a policy says ---------------------------------------------------------------------------------
BELOW = CorsPolicy(["https://*.example.com", "http://*.dev.test:3000"])


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (b"https://app.example.com", True),
        (b"https://a.b.example.com", True),
        (b"http://x.dev.test:3000", True),
        (b"https://example.com", False),
        (b"http://app.example.com", False),
        (b"https://app.example.com:444", False),
        (b"http://x.dev.test", False),
        (b"https://evilexample.com", False),
        (b"https://app.example.com.evil.net", False),
        (b"https://evil.net/.example.com", False),
        (b"https://evil.net#.example.com", False),
        (b"https://evil@.example.com", False),
        (b"https://.example.com", False),
        (b"https://a..example.com", False),
        (b"https://app.example.com\n", False),
        (b"https://*.example.com", False),
        (b"null", False),
        (b"https://" + b"a." * 200 + b"example.com", False),  # longer than any host: not looked at label by label
    ],
    ids=str,
)
def test_a_domain_allows_the_hosts_below_it_and_no_other(origin: bytes, is_allowed: bool) -> None:
    assert BELOW.allows(origin) is is_allowed
    assert (b"Access-Control-Allow-Origin: " + origin in BELOW.response_fields(origin).split(b"\r\n")) is is_allowed
    assert BELOW.response_fields(origin).endswith(b"Vary: Origin\r\n")


@pytest.mark.parametrize(
    "origin",
    ["https://*", "https://*.com", "https://a.*.com", "*.example.com", "https://*.ex*mple.com", "https://*a.b.c"],
)
def test_a_pattern_names_a_domain_of_two_labels_at_least(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        CorsPolicy([origin])


def test_credentials_go_to_whole_domains_only_where_a_policy_says_so() -> None:
    credentials = b"Access-Control-Allow-Credentials: true"
    assert credentials not in BELOW.response_fields(APP)
    policy = Cors(origins=("https://*.example.com",), credentials=True).compiled()
    assert credentials in policy.response_fields(APP)
    assert dict(policy.preflight(APP, b"GET", None) or [])[b"access-control-allow-credentials"] == b"true"
    assert credentials not in Cors(origins=(APP.decode(),)).compiled().response_fields(APP)


def test_a_preflight_grants_what_a_policy_lists_whatever_it_asks_for() -> None:
    policy = Cors(
        origins=("*",), methods=("GET", "PUT"), headers=("X-A",), expose=("X-Total", "retry-after"), max_age_s=5
    ).compiled()
    fields = dict(policy.preflight(APP, b"DELETE", b"x-b") or [])
    assert fields[b"access-control-allow-methods"] == b"GET, PUT"
    assert fields[b"access-control-allow-headers"] == b"X-A"
    assert fields[b"access-control-max-age"] == b"5"
    exposed = b"Access-Control-Expose-Headers: RateLimit, RateLimit-Policy, Retry-After, X-Request-ID, X-Total"
    assert exposed in policy.response_fields(APP).split(b"\r\n")


def test_answers_to_requests_without_an_origin_say_what_caches_must_know() -> None:
    assert NAMED.response_fields(None) == b"Vary: Origin\r\n"
    assert ANYBODY.response_fields(None).startswith(b"Access-Control-Allow-Origin: *\r\n")
    assert b"Vary" not in ANYBODY.response_fields(None)

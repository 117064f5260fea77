"""Cross-origin requests (rule 18)."""

import pytest

from access.cors import CorsPolicy

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

"""The cookie of sticky sessions: what it tells, and what it takes to be believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.affinity import cookie_name, cookie_value, read, set_cookie_line, sign, target_name
from routing.policies import Sticky

KEY = b"k" * 32
NOW = 1_800_000_000.0
ORIGIN = ("http", "10.1.2.3", 8000)
NAME = target_name(KEY, "svc_1", ORIGIN)


def test_a_signed_name_is_read_again() -> None:
    assert read(KEY, "svc_1", sign(KEY, "svc_1", NAME), NOW) == NAME


def test_names_tell_targets_and_services_apart_and_nothing_of_the_address() -> None:
    names = {
        target_name(key, service, (scheme, host, port))
        for key in (KEY, b"l" * 32)
        for service in ("svc_1", "svc_2")
        for scheme in ("http", "https")
        for host in ("10.1.2.3", "10.1.2.4")
        for port in (8000, 8001)
    }
    assert len(names) == 32
    assert b"10.1" not in sign(KEY, "svc_1", NAME)


@pytest.mark.parametrize(
    ("expires_in_s", "is_read"), [(1, True), (0, False), (-1, False)], ids=["before", "at", "after its end"]
)
def test_it_ends_when_it_says(expires_in_s: int, is_read: bool) -> None:
    value = sign(KEY, "svc_1", NAME, int(NOW) + expires_in_s)
    assert (read(KEY, "svc_1", value, NOW) == NAME) is is_read


def test_neither_another_key_nor_another_service_reads_it() -> None:
    value = sign(KEY, "svc_1", NAME)
    assert read(b"l" * 32, "svc_1", value, NOW) is None
    assert read(KEY, "svc_2", value, NOW) is None


@given(st.integers(0, 200), st.integers(1, 255))
def test_no_byte_of_it_can_be_changed(place: int, change: int) -> None:
    value = bytearray(sign(KEY, "svc_1", NAME, int(NOW) + 60))
    value[place % len(value)] ^= change
    assert read(KEY, "svc_1", bytes(value), NOW) is None


@given(st.binary(max_size=80))
def test_nonsense_is_ignored(value: bytes) -> None:
    assert read(KEY, "svc_1", value, NOW) is None


@pytest.mark.parametrize("value", [b"", b".", b"..", b"a.b", b"a.0.", NAME, NAME + b".0", b"x" * 100_000])
def test_pieces_of_it_are_ignored(value: bytes) -> None:
    assert read(KEY, "svc_1", value, NOW) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"gw=1", b"1"),
        (b"a=2; gw=1; b=3", b"1"),
        (b"xgw=2; gw=1", b"1"),
        (b"a=gw=2; gw=1", b"1"),
        (b"gw=1; gw=2", b"1"),
        (b"gw=", b""),
        (b"gw=a=b", b"a=b"),
        (b"gw", b""),
        (b"a=gw", None),
        (b"", None),
        (b"; ;=;", None),
    ],
)
def test_the_cookie_is_found_among_others(field: bytes, value: bytes | None) -> None:
    assert cookie_value(field, b"gw") == value


def test_it_is_called_by_the_service_unless_the_policy_names_it() -> None:
    assert cookie_name(Sticky(), "orders") == b"gateway_affinity_orders"
    assert cookie_name(Sticky(cookie="gw"), "orders") == b"gw"


def test_the_line_that_sets_it() -> None:
    line = set_cookie_line(Sticky(), b"gateway_affinity", KEY, "svc_1", NAME, NOW, is_secure=False)
    value = sign(KEY, "svc_1", NAME)
    assert line == b"set-cookie: gateway_affinity=" + value + b"; Path=/; HttpOnly; SameSite=Lax\r\n"


def test_the_line_that_sets_one_with_an_end() -> None:
    line = set_cookie_line(Sticky(ttl_s=60), b"gw", KEY, "svc_1", NAME, NOW, is_secure=True)
    value = sign(KEY, "svc_1", NAME, int(NOW) + 60)
    assert line == b"set-cookie: gw=" + value + b"; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure\r\n"
    assert read(KEY, "svc_1", value, NOW + 59) == NAME

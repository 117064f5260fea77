"""Paths of requests (rule 1)."""

import pytest

from core.faults import ClientFault
from routing.paths import canonical, has_empty_segment


def test_a_plain_path_is_its_own_canonical_form() -> None:
    path = b"/api/v1/orders/42"
    assert canonical(path) is path


def test_escaped_letters_cannot_slip_past_a_whitelist() -> None:
    assert canonical(b"/api/v1/x/%61dmin") == b"/api/v1/x/admin"


@pytest.mark.parametrize(
    "path",
    [b"/a/%2e%2e/b", b"/a/..;/b", b"/a\\b", b"/a%5Cb", b"/a%00", b"/a%zz", b"/a b", b"/caf\xc3\xa9", b"a", b"*", b""],
)
def test_an_ambiguous_path_is_a_client_fault(path: bytes) -> None:
    with pytest.raises(ClientFault) as refusal:
        canonical(path)
    assert (refusal.value.code, refusal.value.status) == ("bad_path", 400)
    assert refusal.value.detail.endswith(".")


@pytest.mark.parametrize(
    ("path", "has_empty"),
    [
        (b"/", False),
        (b"/a/", False),
        (b"/a/b", False),
        (b"//", True),
        (b"//a", True),
        (b"/a//b", True),
        (b"/a//", True),
    ],
)
def test_empty_segments_are_told_apart_from_a_trailing_slash(path: bytes, has_empty: bool) -> None:
    assert canonical(path) == path
    assert has_empty_segment(path) is has_empty

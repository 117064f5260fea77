"""The canonical form of paths."""

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.uri_path import canonical_path

PIECES = st.sampled_from(
    [
        *b"/ . .. ; ? { | ~ * a A 2e % %2e %2E %2f %5c %00 %25 %252e %3b %61 %7e %7B %2A %c3%a9 %C0%AE".split(),
        *(b"\\", b" ", b"\x00", b"\xc3\xa9"),
    ]
)
PATHS = st.lists(PIECES, max_size=12).map(lambda pieces: b"/" + b"".join(pieces)) | st.binary(max_size=30)


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        pytest.param(b"/api/v1/orders/42", b"/api/v1/orders/42", id="plain"),
        pytest.param(b"/", b"/", id="root"),
        pytest.param(b"/a/", b"/a/", id="trailing slash"),
        pytest.param(b"/%61dmin/%7Euser", b"/admin/~user", id="unreserved octets are decoded"),
        pytest.param(b"/caf%c3%a9%20%2b", b"/caf%C3%A9%20%2B", id="other escapes in upper case"),
        pytest.param(b"/a%2fb", b"/a%2Fb", id="an encoded slash is data"),
        pytest.param(b"/%252e%252e/x", b"/%252e%252e/x", id="double encoding is data"),
        pytest.param(b"/a|b{c}", b"/a%7Cb%7Bc%7D", id="octets that clients should have encoded"),
        pytest.param(b"/a;b=1/$&'()*+,:@!", b"/a;b=1/$&'()*+,:@!", id="reserved octets stay"),
        pytest.param(b"/.well-known/x", b"/.well-known/x", id="a leading dot is no dot segment"),
        pytest.param(b"/.../a..b/..a", b"/.../a..b/..a", id="dots among others"),
        pytest.param(b"/a//b", b"/a//b", id="empty segments are judged elsewhere"),
    ],
)
def test_a_path_has_one_spelling(path: bytes, canonical: bytes) -> None:
    assert canonical_path(path) == canonical


@pytest.mark.parametrize(
    "path",
    [
        *(b"/a/..", b"/a/../b", b"/a/./b", b"/a/.", b"/..", b"/."),
        *(b"/%2e%2e/b", b"/a/.%2e/b", b"/a/%2E./b", b"/a/%2e", b"/a/%2e/"),
        *(b"/a/..;/b", b"/a/..;x=1/b", b"/a/.;x", b"/a/%2e%2e;/b", b"/a/..%3b/b", b"/a/..%3Bx"),
        *(b"/a/..%2fb", b"/a%2F../b", b"/a%2f%2e%2e%2fb", b"/%2f.."),
        *(b"/a\\b", b"/a/..\\b", b"/a%5cb", b"/a%5Cb", b"/%00", b"/a%00.html"),
        *(b"/%", b"/%4", b"/%zz", b"/%4g", b"/a%", b"/%%41", b"/%u002e"),
        *(b"/a b", b"/a\tb", b"/a\r\nb", b"/\x00", b"/\x7f", b"/caf\xc3\xa9", b"/a?b", b"/a#b"),
        *(b"/%c0%ae%c0%ae/", b"/%c0%af", b"/%C1%9C", b"/%e0%80%ae", b"/%f0%80%80%ae"),
        *(b"", b"a", b"*", b"http://host/a", b"../a"),
    ],
)
def test_a_path_that_an_upstream_might_read_differently_is_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match=r"^The path .*\.$"):
        canonical_path(path)


@given(PATHS)
@example(b"/%252e%252e/%25")
@example(b"/%2%35")
def test_the_canonical_form_is_its_own(path: bytes) -> None:
    try:
        canonical = canonical_path(path)
    except ValueError:
        return
    assert canonical_path(canonical) == canonical
    assert unquote_to_bytes(canonical) == unquote_to_bytes(path), "no octet is lost or changed"


@given(PATHS)
def test_no_canonical_path_holds_a_dot_segment_in_any_reading(path: bytes) -> None:
    try:
        decoded = unquote_to_bytes(canonical_path(path))
    except ValueError:
        return
    for segment in re.split(rb"[/\\]", decoded):
        assert segment.partition(b";")[0] not in (b".", b"..")
    assert b"\0" not in decoded


@given(st.text(alphabet="abcXYZ019-._~/", max_size=20), st.data())
def test_escaping_unreserved_octets_changes_nothing(text: str, data: st.DataObject) -> None:
    plain = f"/{text}".encode()
    escaped = b"".join(
        f"%{octet:02x}".encode() if octet != 0x2F and data.draw(st.booleans()) else bytes([octet]) for octet in plain
    )
    assert _outcome(escaped) == _outcome(plain)


def _outcome(path: bytes) -> bytes | None:
    try:
        return canonical_path(path)
    except ValueError:
        return None

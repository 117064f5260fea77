"""What a queue request's body may be, and how an accepted one is answered."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.faults import ClientFault
from queues.envelope import MAX_BYTES, MAX_DEPTH, accepted, parse_body
from queues.records import QueueRouteRecord

JSON = b"application/json"
MEMBERS = QueueRouteRecord(id="que_1", tenant_id="default", name="mail", arguments="members")
WHOLE = QueueRouteRecord(id="que_2", tenant_id="default", name="track", arguments="body")


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("content_type", [None, b"", b"text/plain", JSON])
def test_an_empty_body_counts_as_an_empty_object_whatever_its_type(content_type: bytes | None) -> None:
    assert parse_body(MEMBERS, content_type, b"") == {}
    assert parse_body(WHOLE, content_type, b"") == {}


@pytest.mark.parametrize(
    "content_type",
    [
        JSON,
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b'application/json;charset="UTF-8"',
        b"application/vnd.mail+json",
    ],
)
def test_json_is_taken_under_any_of_its_media_types(content_type: bytes) -> None:
    assert parse_body(MEMBERS, content_type, b'{"to": "a@b"}') == {"to": "a@b"}


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"text/json",
        b"application/jsonp",
        b"json",
        b"application/json; charset=latin-1",
        b"\xff",
    ],
)
def test_other_media_types_are_refused(content_type: bytes | None) -> None:
    with pytest.raises(ClientFault) as refused:
        parse_body(MEMBERS, content_type, b"{}")
    assert (refused.value.status, refused.value.code) == (415, "unsupported_media_type")


MALFORMED = {
    "no JSON": b"to=a",
    "cut short": b'{"to": ',
    "single quotes": b"{'to': 1}",
    "a trailing comma": b'{"to": 1,}',
    "something behind the value": b'{"to": 1} {}',
    "only spaces": b"  ",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "not UTF-8": b'{"to": "\xff"}',
    "an encoded surrogate": b'{"to": "\xed\xa0\x80"}',
    "a raw control character": b'{"to": "\x00"}',
    "NaN": b'{"n": NaN}',
    "Infinity": b'{"n": -Infinity}',
    "a leading zero": b'{"n": 01}',
}
IMPOSSIBLE = {
    "an array": b"[1]",
    "a string": b'"text"',
    "null": b"null",
    "a name that is no identifier": b'{"reply-to": 1}',
    "an empty name": b'{"": 1}',
    "a name twice": b'{"to": 1, "to": 2}',
    "a name twice, deep inside": b'{"to": [{"a": 1, "\\u0061": 2}]}',
    "a surrogate's half as a name, twice": b'{"\\ud800": 1, "\\ud800": 2}',
    "an integer beyond 64 bits": b'{"n": 18446744073709551616}',
    "a negative integer beyond 64 bits": b'{"n": -9223372036854775809}',
    "an integer of 5000 digits": b'{"n": ' + b"9" * 5000 + b"}",
    "a number beyond doubles": b'{"n": 1e999}',
    "U+0000": b'{"to": "a\\u0000b"}',
    "U+0000 in a name": b'{"to": {"a\\u0000": 1}}',
    "half of a surrogate pair": b'{"to": "\\ud83d"}',
    "nesting beyond the limit": b'{"to": ' + nested(MAX_DEPTH) + b"}",
    "nesting beyond the parser": b'{"to": ' + nested(100_000) + b"}",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_json_is_400(body: bytes) -> None:
    with pytest.raises(ClientFault) as refused:
        parse_body(MEMBERS, JSON, body)
    assert (refused.value.status, refused.value.code) == (400, "bad_request")
    orjson.dumps(refused.value.detail)


@pytest.mark.parametrize("body", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_json_that_cannot_be_stored_or_become_arguments_is_422(body: bytes) -> None:
    with pytest.raises(ClientFault) as refused:
        parse_body(MEMBERS, JSON, body)
    assert (refused.value.status, refused.value.code) == (422, "invalid_field")
    assert refused.value.members["errors"] == {"body": [refused.value.detail]}
    orjson.dumps(refused.value.detail)


def test_a_body_over_the_limit_is_413() -> None:
    with pytest.raises(ClientFault) as refused:
        parse_body(WHOLE, JSON, b'"' + b"x" * MAX_BYTES + b'"')
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[1, 2]", [1, 2]),
        (b'"text"', "text"),
        (b"null", None),
        (b'{"reply-to": 1}', {"reply-to": 1}),
        (b'{"n": [18446744073709551615, -9223372036854775808]}', {"n": [2**64 - 1, -(2**63)]}),
        (b'{"n": 1.5e3, "smile": "\\ud83d\\ude00"}', {"n": 1500.0, "smile": "\N{GRINNING FACE}"}),
        (nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH))),
        (b"[" + b",".join([b"[]"] * 1000) + b"]", [[] for _ in range(1000)]),
    ],
    ids=["array", "string", "null", "any member name", "64-bit integers", "escapes", "as deep as allowed", "wide"],
)
def test_a_body_that_is_one_argument_may_be_any_value(body: bytes, value: object) -> None:
    assert parse_body(WHOLE, JSON, body) == value


def test_python_keywords_and_other_scripts_are_possible_member_names() -> None:
    assert parse_body(MEMBERS, JSON, '{"from": 1, "größe": 2, "_x9": 3}'.encode()) == {"from": 1, "größe": 2, "_x9": 3}


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_every_value_that_can_be_stored_passes_unchanged(value: object, ascii_only: bool) -> None:
    assert parse_body(WHOLE, JSON, json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60))
def test_no_bytes_do_anything_but_pass_or_be_refused(body: bytes) -> None:
    try:
        outcome = parse_body(MEMBERS, JSON, body)
    except ClientFault as fault:
        outcome = fault
    assert isinstance(outcome, dict) or outcome.status in (400, 422)


def test_an_accepted_task_is_answered_with_its_address() -> None:
    headers, body = accepted("task_01")
    assert orjson.loads(body) == {"task_id": "task_01", "status": "queued", "status_url": "/api/v1/tasks/task_01"}
    assert dict(headers) == {
        b"content-type": b"application/json",
        b"location": b"/api/v1/tasks/task_01",
        b"retry-after": b"1",
    }

"""What the parts of an aggregate are asked for, and the document that their answers make."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.context import Exchange
from core.faults import ClientFault
from core.policies import PolicyError, read
from routing.aggregation import (
    Aggregate,
    PartFailure,
    TargetTemplate,
    compile_aggregation,
    compile_target,
    fields_for_part,
    judge,
    merged,
    whole_failure,
)
from routing.policies import Aggregation
from routing.request_fields import RequestFields

FAILED = PartFailure(504, "upstream_timeout")


def aggregate(*parts: dict[str, Any], parameters: dict[str, int] | None = None) -> Aggregate:
    defaults = {"path": "/x"}
    policy = read(Aggregation, {"parts": [{**defaults, **part} for part in parts]})
    return compile_aggregation(policy, parameters or {})


def rendered(template: TargetTemplate, path: bytes = b"/api/c/7", query: bytes | None = None, **noted: bytes) -> bytes:
    exchange = Exchange()
    exchange.noted = {name.replace("_", "-").encode(): value for name, value in noted.items()}
    exchange.passed = []
    exchange.query = query
    return template.render(RequestFields(exchange, path, b"x-api-key"))


# --- paths ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "path", "query", "target"),
    [
        ("/customers/${path.id}", b"/api/c/7", None, b"/customers/7"),
        ("/customers/${path.id}?expand=1", b"/api/c/7", None, b"/customers/7?expand=1"),
        ("/search?q=${query.q}&n=10", b"/api/c/7", b"q=a+b%26c&q=no", b"/search?q=a%20b%26c&n=10"),
        ("/search?q=${query.q}", b"/api/c/7", None, b"/search?q="),
        ("/search?q=${query.q|all of it}", b"/api/c/7", None, b"/search?q=all%20of%20it"),
        ("/c/${path.id}/orders", b"/api/c/a%2Fb%3Fc%23", None, b"/c/a%2Fb%3Fc%23/orders"),
        ("/c/${urlencode(path.id)}", b"/api/c/a%2Fb", None, b"/c/a%2Fb"),
        ("/c/${lower(path.id)}", b"/api/c/ABC", None, b"/c/abc"),
        ("/c?at=%2B${path.id}?&x=/y", b"/api/c/7", None, b"/c?at=%2B7?&x=/y"),
        ("/plain", b"/api/c/7", b"x=1", b"/plain"),
    ],
)
def test_values_of_the_request_are_encoded_into_a_parts_path(
    text: str, path: bytes, query: bytes | None, target: bytes
) -> None:
    assert rendered(compile_target(text, {"id": 3}), path, query) == target


@pytest.mark.parametrize("value", [b"..", b".", b"%2E%2E", b"a%2F..", b"%00", b"%5C", b""])
def test_a_value_cannot_lead_elsewhere(value: bytes) -> None:
    template = compile_target("/c/${query.id}/orders", {})
    with pytest.raises(ClientFault) as caught:
        rendered(template, query=b"id=" + value)
    assert caught.value.code == "bad_request"


@given(st.binary(max_size=40))
def test_whatever_the_value_a_target_has_its_own_shape(value: bytes) -> None:
    template = compile_target("/c/${header.x-id|none}/orders?x=${header.x-id}", {})
    try:
        target = rendered(template, x_id=value)
    except ClientFault:
        return
    path, _, query = target.partition(b"?")
    assert path.count(b"/") == 3 and path.startswith(b"/c/") and path.endswith(b"/orders")
    assert query.startswith(b"x=") and b"&" not in query and b"#" not in query
    assert target.isascii() and b" " not in target and b"\r" not in target and b"\n" not in target


@pytest.mark.parametrize(
    "path",
    ["customers", "/a//b", "/a/../b", "/${path.other}", "/a b", "/a?b=c d", "/a?b#c", "/${nonsense}", "//x", "?x=1"],
)
def test_a_path_that_could_not_be_asked_for_does_not_compile(path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        aggregate({"key": "a", "service": "a"}, {"key": "b", "service": "a", "path": path}, parameters={"id": 3})
    assert caught.value.field == "parts[1].path"


@pytest.mark.parametrize(
    ("keys", "field"), [(["a", "a"], "parts[1].key"), (["", "orders"], "parts[1].key"), (["_partial"], "parts[0].key")]
)
def test_parts_have_names_of_their_own(keys: list[str], field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        aggregate(*({"key": key, "service": "orders"} for key in keys))
    assert caught.value.field == field


# --- answers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "status", "body", "error"),
    [
        ("a", 200, b'{"x": 1}', None),
        ("a", 201, b"[1]", None),
        ("a", 204, b"", None),
        ("a", 200, b"", "not_json"),
        ("a", 200, b"<html>", "not_json"),
        ("a", 200, b'"\xff"', "not_json"),
        ("a", 200, b"NaN", "not_json"),
        ("a", 404, b"{}", "upstream_status"),
        ("a", 302, b"{}", "upstream_status"),
        ("", 200, b"[1]", "not_an_object"),
        ("", 204, b"", "not_an_object"),
        ("", 200, b'{"a":' * 1020 + b"1" + b"}" * 1020, "not_json"),
        ("a", 200, b'{"a":' * 2000 + b"1" + b"}" * 2000, "not_json"),
    ],
)
def test_only_json_of_a_success_is_an_answer(key: str, status: int, body: bytes, error: str | None) -> None:
    result = judge(aggregate({"key": key, "service": "orders"}).parts[0], status, body)
    assert not isinstance(result, dict)
    if error is None:
        assert result == (body or b"null")
    else:
        assert result == PartFailure(status, error)


def test_answers_stand_under_their_keys_as_they_were_written() -> None:
    plan = aggregate({"key": "a", "service": "s"}, {"key": "b", "service": "t"})
    document = merged(plan, [b'{"n": 12345678901234567890123, "f": 1.10}', b"[null]"])
    assert document == b'{"a":{"n": 12345678901234567890123, "f": 1.10},"b":[null]}'


def test_members_without_a_key_are_laid_in_and_keys_go_before_them() -> None:
    plan = aggregate({"key": "", "service": "s"}, {"key": "", "service": "t"}, {"key": "a", "service": "u"})
    said = [b'{"a": 1, "b": 1, "c": 1.0, "_partial": {}}', b'{"b": 2}', b"3"]
    document = merged(plan, [judge(part, 200, body) for part, body in zip(plan.parts, said, strict=True)])
    assert json.loads(document) == {"a": 3, "b": 2, "c": 1.0}


def test_what_is_missing_is_named() -> None:
    plan = aggregate({"key": "a", "service": "s"}, {"key": "", "service": "t"})
    assert json.loads(merged(plan, [b"1", FAILED])) == {
        "a": 1,
        "_partial": {"t": {"status": 504, "error": "upstream_timeout"}},
    }


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (PartFailure(404, "upstream_status"), 404, "not_found"),
        (PartFailure(500, "upstream_status"), 502, "aggregate_failed"),
        (PartFailure(401, "upstream_status"), 502, "aggregate_failed"),
        (PartFailure(200, "not_json"), 502, "aggregate_failed"),
        (PartFailure(404, "no_route"), 502, "aggregate_failed"),
        (FAILED, 504, "upstream_timeout"),
        (PartFailure(503, "circuit_open"), 503, "circuit_open"),
        (PartFailure(503, "maintenance"), 503, "maintenance"),
    ],
)
def test_a_required_part_that_fails_fails_the_whole(failure: PartFailure, status: int, code: str) -> None:
    plan = aggregate({"key": "a", "service": "s"}, {"key": "b", "service": "t", "required": True})
    fault = whole_failure(plan, [b"1", failure])
    assert fault is not None
    assert (fault.status, fault.code) == (status, code)
    assert fault.members == {"parts": {"b": {"status": failure.status, "error": failure.error}}}
    assert (fault.retry_after_s is not None) == (status == 503)


def test_an_answer_of_nothing_is_none() -> None:
    plan = aggregate({"key": "a", "service": "s"}, {"key": "b", "service": "t"})
    assert whole_failure(plan, [FAILED, b"1"]) is None
    fault = whole_failure(plan, [FAILED, FAILED])
    assert fault is not None and fault.code == "aggregate_failed" and set(fault.members["parts"]) == {"a", "b"}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values | st.just(FAILED), min_size=1, max_size=6))
def test_the_document_holds_what_the_parts_said(said: list[Any]) -> None:
    plan = aggregate(*({"key": f"k{place}", "service": "s"} for place in range(len(said))))
    results = [each if each is FAILED else judge(plan.parts[0], 200, json.dumps(each).encode()) for each in said]
    document = json.loads(merged(plan, results))
    partial = document.pop("_partial", {})
    assert document == {f"k{place}": each for place, each in enumerate(said) if each is not FAILED}
    assert set(partial) == {f"k{place}" for place, each in enumerate(said) if each is FAILED}


def test_parts_get_the_clients_fields_but_those_about_one_representation() -> None:
    names = ["accept", "accept-encoding", "if-none-match", "range", "content-type", "x-trace", "accept-language"]
    passed = [piece for name in names for piece in (name.encode(), b": ", b"v", b"\r\n")]
    get = fields_for_part(passed, b"GET")
    assert get[0::4] == [b"accept", b"accept-encoding", b"x-trace", b"accept-language"]
    assert get[2::4] == [b"application/json", b"identity", b"v", b"v"]
    assert b"content-type" in fields_for_part(passed, b"POST")

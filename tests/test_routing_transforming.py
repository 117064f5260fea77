"""Transformations (R6) without a socket: what compiles, paths into JSON, and what no value can do."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.context import Exchange
from core.faults import ClientFault
from core.policies import PolicyError
from gateway_project.processes import ROOT
from routing.answers import AnswerHead
from routing.json_changes import NoJson, parse_path
from routing.records import RouteRecord
from routing.request_fields import RequestFields
from routing.serializers import RouteSerializer
from routing.transforming import Transformer, is_json
from tests.test_routing_conditions import fields_of
from tests.wires import route_wire


def transformer(request: Any = None, response: Any = None) -> Transformer:
    policies = {"transformation": {"request": request, "response": response}}
    compiled = RouteRecord.from_wire(route_wire("r", "/api/{id}", policies=policies)).transformer
    assert compiled is not None
    return compiled


def changed(document: Any, **changes: Any) -> Any:
    body = transformer({"body": changes}).request_body
    assert body is not None
    return json.loads(body.changed(json.dumps(document).encode(), fields_of("/api/7", ("x-a", "v"))))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a", ("a",)),
        ("a.b.c", ("a", "b", "c")),
        ("a[0].b", ("a", 0, "b")),
        ("[3]", (3,)),
        ("[*].id", (None, "id")),
        ("a[0][1]", ("a", 0, 1)),
        (r"a\.b.c", ("a.b", "c")),
        (r"a\[0\]", ("a[0]",)),
        (r"\\", ("\\",)),
        ("a b.é", ("a b", "é")),
    ],
)
def test_a_path_into_json(text: str, steps: tuple[Any, ...]) -> None:
    assert parse_path(text) == steps


@pytest.mark.parametrize(
    "text", [".a", "a.", "a..b", "a[", "a[x]", "a[-1]", "a]b", "[0]a", "a\\", "a.[0]", "[1234567]"]
)
def test_what_is_no_path_into_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no step of a path"):
        parse_path(text)


DOCUMENT = {"a": {"b": 1, "c": [{"d": 1, "e": 2}, {"d": 3}]}, "f": None}


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"remove": ["a.b"]}, {"a": {"c": [{"d": 1, "e": 2}, {"d": 3}]}, "f": None}),
        ({"remove": ["a.c[0]"]}, {"a": {"b": 1, "c": [{"d": 3}]}, "f": None}),
        ({"remove": ["a.c[*].d", "f"]}, {"a": {"b": 1, "c": [{"e": 2}, {}]}}),
        ({"remove": ["a.c[*]"]}, {"a": {"b": 1, "c": []}, "f": None}),
        ({"remove": ["a.c[9]", "x.y", "f.x", "a.b.c", "[0]"]}, DOCUMENT),
        ({"rename": [{"path": "a.c[*].d", "to": "n"}]}, {"a": {"b": 1, "c": [{"e": 2, "n": 1}, {"n": 3}]}, "f": None}),
        ({"rename": [{"path": "f", "to": "a"}]}, {"a": None}),
        ({"rename": [{"path": "x", "to": "y"}]}, DOCUMENT),
        ({"set": [{"path": "a", "value": [1, None, "$${x}"]}]}, {"a": [1, None, "$${x}"], "f": None}),
        ({"set": [{"path": "a", "value": "${header.x-a}!"}]}, {"a": "v!", "f": None}),
        ({"set": [{"path": "a", "value": "${header.x-none}"}]}, {"f": None}),
        ({"set": [{"path": "n.m", "value": "${header.x-none}"}]}, DOCUMENT),
        ({"set": [{"path": "a"}]}, {"a": None, "f": None}),
        ({"set": [{"path": "n.m.o", "value": 1}]}, {**DOCUMENT, "n": {"m": {"o": 1}}}),
        ({"set": [{"path": "f.x", "value": 1}, {"path": "a.b.x", "value": 1}, {"path": "x[0]", "value": 1}]}, DOCUMENT),
        ({"set": [{"path": "a.c[1]", "value": 0}]}, {"a": {"b": 1, "c": [{"d": 1, "e": 2}, 0]}, "f": None}),
        (
            {"set": [{"path": "a.c[*].n", "value": 0}, {"path": "a.c[9]", "value": 1}]},
            {"a": {"b": 1, "c": [{"d": 1, "e": 2, "n": 0}, {"d": 3, "n": 0}]}, "f": None},
        ),
        ({"set": [{"path": "a", "value": {}}, {"path": "a.b", "value": 1}]}, {"a": {}, "f": None}),
        (
            {"remove": ["a"], "rename": [{"path": "f", "to": "a"}], "set": [{"path": "f", "value": 2}]},
            {"a": None, "f": 2},
        ),
    ],
)
def test_members_are_removed_then_renamed_then_set(changes: dict[str, Any], result: Any) -> None:
    assert changed(deepcopy(DOCUMENT), **changes) == result


@pytest.mark.parametrize("document", [1, "a", None, True, [], [1, [2]], "é"])
def test_a_document_of_another_shape_stays(document: Any) -> None:
    changes = {"remove": ["a.b"], "rename": [{"path": "a", "to": "b"}], "set": [{"path": "a.b", "value": 1}]}
    assert changed(document, **changes) == document


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_what_no_path_leads_to_is_sent_on_as_it_was(document: Any) -> None:
    assert changed(document, remove=["nothing.here"]) == document


@given(JSON_VALUES, st.sampled_from(["a", "a.b", "[0]", "a[*].b", "b[1].c", "[*]"]))
def test_what_is_removed_is_not_there_any_more(document: Any, path: str) -> None:
    result = changed(document, remove=[path, path, path])

    def find(holder: Any, steps: tuple[Any, ...]) -> list[Any]:
        if not steps:
            return [holder]
        first, rest = steps[0], steps[1:]
        if isinstance(holder, dict) and isinstance(first, str):
            return find(holder[first], rest) if first in holder else []
        if isinstance(holder, list) and not isinstance(first, str):
            chosen = holder if first is None else holder[first : first + 1]
            return [each for item in chosen for each in find(item, rest)]
        return []

    steps = parse_path(path)
    if isinstance(steps[-1], int):  # the elements behind it move up
        assert len(find(document, steps[:-1])) == len(find(result, steps[:-1]))
    else:
        assert find(result, steps) == []


@given(st.binary(max_size=60))
def test_whatever_the_body_it_is_changed_or_refused(body: bytes) -> None:
    changer = transformer({"body": {"remove": ["a"]}}).request_body
    assert changer is not None
    try:
        result = changer.changed(body, fields_of())
    except NoJson:
        return
    json.loads(result)


# --- what does not compile -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"request": {"headers": {"set": [{"name": "x", "value": "${nope}"}]}}}, "request.headers.set[0].value"),
        ({"request": {"headers": {"add": [{"name": "x", "value": "a\r\nb: c"}]}}}, "request.headers.add[0].value"),
        ({"request": {"headers": {"set": [{"name": "Host", "value": "a"}]}}}, "request.headers.set[0].name"),
        ({"request": {"headers": {"set": [{"name": "x y", "value": "a"}]}}}, "request.headers.set[0].name"),
        ({"request": {"headers": {"remove": ["x", "Content-Length"]}}}, "request.headers.remove[1]"),
        ({"request": {"headers": {"remove": ["X-Forwarded-For"]}}}, "request.headers.remove[0]"),
        ({"request": {"headers": {"add": [{"name": "x_a", "value": "a"}]}}}, "request.headers.add[0].name"),
        ({"request": {"headers": {"set": [{"name": "Authorization", "value": "a"}]}}}, "request.headers.set[0].name"),
        ({"request": {"query": {"set": [{"name": "q", "value": "${path.no}"}]}}}, "request.query.set[0].value"),
        ({"request": {"body": {"remove": ["a..b"]}}}, "request.body.remove[0]"),
        ({"request": {"body": {"rename": [{"path": "a[0]", "to": "b"}]}}}, "request.body.rename[0].path"),
        ({"request": {"body": {"set": [{"path": "a", "value": "${header.cookie}"}]}}}, "request.body.set[0].value"),
        ({"request": {"body": {"set": [{"path": "", "value": 1}]}}}, "request.body.set[0].path"),
        (
            {"response": {"headers": {"set": [{"name": "X-Gateway-Node", "value": "a"}]}}},
            "response.headers.set[0].name",
        ),
        ({"response": {"headers": {"remove": ["Access-Control-Allow-Origin"]}}}, "response.headers.remove[0]"),
        ({"response": {"headers": {"add": [{"name": "Set-Cookie", "value": "a=b"}]}}}, "response.headers.add[0].name"),
        ({"response": {"body": {"set": [{"path": "a]", "value": 1}]}}}, "response.body.set[0].path"),
    ],
)
def test_a_change_that_could_not_work_is_refused_at_its_member(policy: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as raised:
        RouteRecord.from_wire(route_wire("r", "/api/{id}", policies={"transformation": policy}))
    assert raised.value.field == f"transformation.{field}"
    assert raised.value.sentence


def test_what_is_asked_of_the_upstream_is_what_can_be_changed() -> None:
    compiled = transformer(response={"body": {"remove": ["a"]}})
    passed = [b"range", b": ", b"bytes=0-1", b"\r\n", b"x-a", b": ", b"1", b"\r\n"]
    fields = fields_of()
    lines = b"".join(compiled.forwarded_fields(passed, b"keep-alive, x-b", fields))
    assert lines == b"x-a: 1\r\naccept-encoding: identity\r\n"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/problem+json", True),
        (b"application/jsonp", False),
        (b"text/json", False),
        (b"application/x-ndjson", False),
        (b"", False),
    ],
)
def test_what_counts_as_json(content_type: bytes, expected: bool) -> None:
    assert is_json(content_type) is expected


# --- no value gets out of its field ----------------------------------------------------------------------------------
HOSTILE = st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]), max_size=30)
TEMPLATES = st.sampled_from(
    ["${query.q}", "a${query.q}b", "${header.x-a}", "${path.id}", "${lower(query.q|x)}", "${urlencode(query.q)}"]
)


def hostile_fields(value: str) -> RequestFields:
    exchange = Exchange()
    exchange.noted, exchange.method = {}, b"GET"
    exchange.passed = [b"x-a", b": ", value.encode(), b"\r\n"]  # no parser lets such a value pass: all the better
    exchange.query = b"q=" + b"".join(b"%%%02X" % octet for octet in value.encode())
    path = b"/api/" + b"".join(b"%%%02X" % octet for octet in value.encode())
    return RequestFields(exchange, path, b"x-api-key")


@given(HOSTILE, TEMPLATES)
def test_no_value_puts_a_line_of_its_own_into_a_request(value: str, template: str) -> None:
    compiled = transformer({"headers": {"set": [{"name": "x-v", "value": template}]}})
    try:
        lines = compiled.forwarded_fields([], None, hostile_fields(value))
    except ClientFault:
        return  # 400
    head = b"".join(lines)
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == (1 if lines else 0)
    assert b"\0" not in head


@given(HOSTILE, TEMPLATES)
def test_no_value_puts_a_line_of_its_own_into_an_answer(value: str, template: str) -> None:
    compiled = transformer(response={"headers": {"set": [{"name": "x-v", "value": template}]}})
    head = AnswerHead(200, [b"x-v: old\r\n"], is_sized=False)
    compiled.change_answer_head(head, hostile_fields(value))
    assert all(line.count(b"\n") == 1 and line.endswith(b"\r\n") and b"\0" not in line for line in head.lines)
    assert len(head.lines) <= 2  # and Vary


@given(HOSTILE, TEMPLATES)
def test_no_value_adds_a_parameter_or_leaves_the_query(value: str, template: str) -> None:
    compiled = transformer({"query": {"set": [{"name": "v", "value": template}]}})
    query = compiled.forwarded_query(b"a=1", hostile_fields(value))
    assert query is not None
    assert query.count(b"&") <= 1
    assert not query.translate(None, b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%=&")


# --- what is shown ---------------------------------------------------------------------------------------------------
def examples() -> list[Any]:
    """The routes in the documents, and those that the admin API shows."""
    texts = [(ROOT / "docs" / name).read_text() for name in ("routing.md", "transformations.md")]
    shown = [
        json.loads(each)
        for text in texts
        for each in re.findall(r"admin/routing/routes[^']*-d '(.*?)'\n", text, re.DOTALL)
    ]
    assert len(shown) >= 4
    return shown + [example.value for example in vars(RouteSerializer)["_spectacular_annotation"]["examples"]]


@pytest.mark.parametrize("route", examples(), ids=lambda route: str(route["name"]))
def test_every_example_compiles(route: dict[str, Any]) -> None:
    policies = {name: route[name] for name in ("conditions", "rewrite", "transformation") if name in route}
    RouteRecord.from_wire(route_wire("r", route["path"], policies=policies))


def test_the_documents_example_does_what_they_say() -> None:
    (route,) = [each for each in examples() if each["name"] == "orders" and "transformation" in each]
    sent = b'{"isAdmin": true, "user": {"mail": "ann@example.org"}}'
    changer = transformer(**route["transformation"]).request_body
    assert changer is not None
    assert changer.changed(sent, fields_of()).decode() in (ROOT / "docs" / "transformations.md").read_text()

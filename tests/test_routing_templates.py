"""The language of values (R6): what it says, what it refuses, and that nothing gets out of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.context import Exchange
from core.faults import ClientFault
from routing.request_fields import RequestFields
from routing.templates import MAX_RENDERED, compile_template
from tests.test_routing_conditions import fields_of

PARAMETERS = {"id": 2}


def rendered(text: str, *headers: tuple[str, str], path: str = "/api/7", query: str | None = None) -> bytes | None:
    return compile_template(text, PARAMETERS).render(fields_of(path, *headers, query=query))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", b""),
        ("plain", b"plain"),
        ("a $ b $c {x} }", b"a $ b $c {x} }"),
        ("$$", b"$"),
        ("$${header.x-a}", b"${header.x-a}"),
        ("$$$${x}", b"$${x}"),
        ("é", "é".encode()),
        ("${header.x-a}", b"Va lue"),
        ("${header.X-A}", b"Va lue"),
        ("<${header.x-a}>", b"<Va lue>"),
        ("${header.x-none|none}", b"none"),
        ("${header.x-none|}", b""),
        ("${header.x-none|a\\}b\\)c\\\\d}", b"a}b)c\\d"),
        ("${header.x-none|${x}", b"${x"),
        ("${header.x-empty|none}", b"none"),
        ("<${header.x-none}>", b"<>"),
        ("${lower(header.x-a)}", b"va lue"),
        ("${upper(header.x-none|none)}", b"NONE"),
        ("${urlencode(upper(header.x-a))}", b"VA%20LUE"),
        ("${trim(query.q)}|", b"a&b|"),
        ("${urlencode(query.q)}", b"%20a%26b"),
        ("${path.id}", b"7"),
        ("${request.method}", b"GET"),
        ("${application.name|anonymous}", b"anonymous"),
        ("${version.name|}", b""),
        ("${header.x-a}${header.x-b}", b"Va lue1, 2"),
    ],
)
def test_a_template_says(text: str, value: bytes) -> None:
    headers = (("x-a", "Va lue"), ("x-b", "1"), ("x-b", "2"), ("x-empty", ""))
    assert rendered(text, *headers, query="q=+a%26b&q=2") == value


@pytest.mark.parametrize("text", ["${header.x}", "${header.x}${query.q}", "${lower(header.x)}", "${path.id}"])
def test_references_without_a_value_are_no_value(text: str) -> None:
    assert rendered(text, path="/api") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("${", "a source is missing"),
        ("${}", "a source is missing"),
        ("${header}", "a source is missing"),
        ("${header.}", "a source is missing"),
        ("${header.x", "a closing brace is missing"),
        ("${header.x|none", "a closing brace is missing"),
        ("${header.x|none\\", "a closing brace is missing"),
        ("${lower(header.x}", "a closing parenthesis is missing"),
        ("${lower(header.x)", "a closing brace is missing"),
        ("${header.x)}", "a closing brace is missing"),
        ("${eval(header.x)}", "there is no function 'eval'"),
        ("${lower(lower(lower(lower(lower(lower(lower(lower(lower(query.q)))))))))}", "more than 8 functions"),
        ("${request.body}", "there is no source 'request.body'"),
        ("${secret.x}", "there is no source"),
        ("${path.no}", "the route's path has no {no}"),
        ("${header.x_y}", "never passes"),
        ("${header.X-Gateway-Debug}", "never passes"),
        ("${header.Authorization}", "is a credential"),
        ("${header.cookie}", "is a credential"),
        ("${header.x y}", "a closing brace is missing"),
        ("${header.x@y}", "is no name of a header field"),
    ],
)
def test_a_template_that_means_nothing_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        compile_template(text, PARAMETERS)


def test_a_template_tells_what_it_reads() -> None:
    template = compile_template("${header.X-A} ${lower(client.address)} ${query.q}", PARAMETERS)
    assert template.fields == {b"x-a"}
    assert template.sources == {"header", "client.address", "query"}
    assert compile_template("plain", PARAMETERS).is_literal


def test_a_value_is_bounded() -> None:
    headers = (("x-a", "a" * 100),)
    assert rendered("${header.x-a}" * 80, *headers) == b"a" * 8000
    with pytest.raises(ClientFault):
        rendered("${header.x-a}" * 100, *headers)


def test_a_credential_field_of_another_name_is_invisible() -> None:
    assert rendered("${header.x-api-key}", ("x-api-key", "km_secret")) is None


TEXT = st.text(st.sampled_from("ab${}()|.\\$ éheader.xquery.qpath.id"), max_size=40)


@given(TEXT)
def test_whatever_an_admin_types_compiles_or_is_refused(text: str) -> None:
    try:
        template = compile_template(text, PARAMETERS)
    except ValueError:
        return
    value = template.render(fields_of("/api/7"))
    assert value is None or len(value) <= MAX_RENDERED


@given(st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"]), max_size=100))
def test_text_without_a_dollar_is_itself(text: str) -> None:
    assert compile_template(text, PARAMETERS).render(fields_of()) == text.encode()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_what_a_client_sends_is_never_read_as_a_template(value: str) -> None:
    exchange: Any = Exchange()
    exchange.noted, exchange.passed = {}, [b"x-a", b": ", value.encode(), b"\r\n"]
    fields = RequestFields(exchange, b"/api/7", b"x-api-key")
    expected = value.encode() if value else None
    assert compile_template("${header.x-a}", PARAMETERS).render(fields) == expected

"""Templates: the small language in which admins say what a field, a parameter or a member of a body becomes.

    template   = *( text | "$$" | "${" expression "}" )        "$$" is a dollar sign
    expression = function "(" expression ")" | source [ "|" default ]
    function   = "lower" | "upper" | "trim" | "urlencode"
    source     = "header." name | "query." name | "path." name | "request.id" | "request.method" | "request.path"
               | "request.host" | "client.address" | "application.id" | "application.name" | "service.name"
               | "version.name"
    default    = *( any character but "}", ")" and "\\" | "\\" any character )

A template is compiled once to a tuple of parts; rendering reads values and joins them, and there is nothing else that
it could do. What a source gives is never looked at as a template again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

from core.context import Exchange
from core.faults import ClientFault
from routing.request_fields import RequestFields

MAX_RENDERED = 8192  # bytes: as large as a field may be (rule 29)
_MAX_DEPTH = 8  # of functions within functions

Read = Callable[[RequestFields], "bytes | None"]
CompileTemplate = Callable[[str], "Template"]  # `compile_template`, for one route
Function = Callable[[bytes], bytes]

# Never read: what they hold is for one reader only, and would end up in places that are logged (rule 22).
SECRET_FIELDS = frozenset((b"authorization", b"cookie", b"proxy-authorization"))
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
# A parameter's name may be longer than the token of a field, and holds whatever does not end the expression.
_SOURCE = re.compile(r"(header|query|path)\.([^|(){}\\\s]{1,128})|([a-z]+\.[a-z]+)")
_CALL = re.compile(r"([a-z]+)\(")


@dataclass(frozen=True, slots=True)
class Reference:
    """A value of the request, with what stands for it where there is none, and what is done to it."""

    read: Read
    default: bytes | None
    functions: tuple[Function, ...]  # the innermost first

    def value(self, fields: RequestFields) -> bytes | None:
        value = self.read(fields)
        if not value:
            value = self.default
        if value is not None:
            for function in self.functions:
                value = function(value)
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """``fields`` are the names of header fields that it reads, ``sources`` all that it reads (``client.address``)."""

    parts: tuple[bytes | Reference, ...]
    fields: frozenset[bytes]
    sources: frozenset[str]

    @property
    def is_literal(self) -> bool:
        return not self.sources

    def render(self, fields: RequestFields) -> bytes | None:
        """The text in UTF-8; None when it consists of references alone and none of them has a value. Raises
        ClientFault when it would be longer than 8 KiB."""
        pieces = [part if isinstance(part, bytes) else part.value(fields) for part in self.parts]
        if not any(piece is not None for piece in pieces) and pieces:
            return None
        text = b"".join([piece for piece in pieces if piece is not None])
        if len(text) > MAX_RENDERED:
            raise ClientFault(
                "bad_request", f"A value that the route makes of the request is over {MAX_RENDERED} bytes."
            )
        return text


def compile_template(text: str, parameters: Mapping[str, int]) -> Template:
    """``parameters``: names in the route's path, and which segment each one is. Raises ValueError with a sentence."""
    parts: list[bytes | Reference] = []
    literal = ""
    fields: set[bytes] = set()
    sources: set[str] = set()
    at = 0
    while at < len(text):
        if text.startswith("$$", at):
            literal += "$"
            at += 2
        elif text.startswith("${", at):
            if literal:
                parts.append(literal.encode())
                literal = ""
            expression = _Expression(text, at + 2, parameters)
            parts.append(expression.reference)
            sources.add(expression.source)
            if expression.field:
                fields.add(expression.field)
            at = expression.end
        else:
            literal += text[at]
            at += 1
    if literal or not parts:
        parts.append(literal.encode())
    return Template(tuple(parts), frozenset(fields), frozenset(sources))


class _Expression:
    """Parses what follows ``${``, up to and with ``}``."""

    def __init__(self, text: str, start: int, parameters: Mapping[str, int]) -> None:
        self._text = text
        self._at = start
        self.field = b""
        functions: list[Function] = []
        while call := _CALL.match(text, self._at):
            function = _FUNCTIONS.get(call[1])
            if function is None:
                raise ValueError(f"there is no function {call[1]!r}: {', '.join(_FUNCTIONS)} are known")
            if len(functions) == _MAX_DEPTH:
                raise ValueError(f"more than {_MAX_DEPTH} functions stand within one another")
            functions.append(function)
            self._at = call.end()
        read = self._read_source(parameters)
        default = self._read_default() if self._take("|") else None
        for _ in functions:
            if not self._take(")"):
                raise ValueError(f"a closing parenthesis is missing in {self._here(start)}")
        if not self._take("}"):
            raise ValueError(f"a closing brace is missing in {self._here(start)}")
        self.reference = Reference(read, default, tuple(reversed(functions)))
        self.end = self._at

    def _here(self, start: int) -> str:
        return repr("${" + self._text[start : start + 40])

    def _take(self, character: str) -> bool:
        is_here = self._text.startswith(character, self._at)
        self._at += is_here
        return is_here

    def _read_source(self, parameters: Mapping[str, int]) -> Read:
        found = _SOURCE.match(self._text, self._at)
        if found is None:
            raise ValueError(f"a source is missing at {self._text[self._at : self._at + 40]!r}: write header.x-user")
        self._at = found.end()
        kind, name = found[1], found[2]
        self.source = found[3] or kind
        if kind == "header":
            self.field = field_name(name)
            if self.field in SECRET_FIELDS:
                raise ValueError(f"{name} is a credential, which no template reads")
            return _field_reader(self.field)
        if kind == "query":
            return _parameter_reader(name.encode())
        if kind == "path":
            if name not in parameters:
                raise ValueError(f"the route's path has no {{{name}}}")
            return _segment_reader(parameters[name])
        read = _SOURCES.get(self.source)
        if read is None:
            raise ValueError(
                f"there is no source {self.source!r}: header, query, path, {', '.join(_SOURCES)} are known"
            )
        return read

    def _read_default(self) -> bytes:
        text, start, value = self._text, self._at, ""
        while self._at < len(text) and text[self._at] not in ")}":
            if text[self._at] == "\\":
                self._at += 1
                if self._at == len(text):
                    break
            value += text[self._at]
            self._at += 1
        if self._at == len(text):
            raise ValueError(f"a closing brace is missing in {self._here(start)}")
        return value.encode()


def field_name(name: str) -> bytes:
    """Of a field that steps may read, in lower case. Raises ValueError."""
    lower = name.lower().encode()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a header field")
    if b"_" in lower or lower.startswith(b"x-gateway-"):
        raise ValueError(f"{name[:80]} never passes the gateway: names with _ and x-gateway-* are dropped")
    return lower


def _field_reader(name: bytes) -> Read:
    return lambda fields: fields.header(name)


def _parameter_reader(name: bytes) -> Read:
    def read(fields: RequestFields) -> bytes | None:
        values = fields.parameters(name)
        return values[0] if values else None

    return read


def _segment_reader(place: int) -> Read:
    return lambda fields: fields.segment(place)


def _from_exchange(read: Callable[[Exchange], bytes | None]) -> Read:
    return lambda fields: read(fields.exchange)


_SOURCES: dict[str, Read] = {
    "request.id": _from_exchange(lambda exchange: exchange.request_id),
    "request.method": _from_exchange(lambda exchange: exchange.method),
    "request.path": _from_exchange(lambda exchange: exchange.raw_path),
    "request.host": _from_exchange(lambda exchange: exchange.identity.host),
    "client.address": _from_exchange(lambda exchange: exchange.identity.client.encode()),
    "application.id": _from_exchange(lambda exchange: _text(exchange.application, "id")),
    "application.name": _from_exchange(lambda exchange: _text(exchange.application, "name")),
    "service.name": _from_exchange(lambda exchange: _text(exchange.match, "destination")),
    "version.name": _from_exchange(lambda exchange: _text(exchange.version, "name")),
}


def _text(of: object, attribute: str) -> bytes | None:
    return None if of is None else str(getattr(of, attribute)).encode()


def urlencoded(value: bytes) -> bytes:
    """Every octet that is not unreserved as an escape (RFC 3986 section 2.3)."""
    return quote_from_bytes(value, safe="").encode()


_FUNCTIONS: dict[str, Function] = {
    "lower": bytes.lower,  # of ASCII letters, as all of them
    "upper": bytes.upper,
    "trim": bytes.strip,
    "urlencode": urlencoded,
}

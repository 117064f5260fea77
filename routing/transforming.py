"""What a route changes of requests on their way to the service, and of its answers (R6).

A `Transformer` is compiled once from the route's policy. Values are templates over the request as the client sent it,
whatever else is changed of it. The exchange keeps what the client sent: the changed fields go beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote_from_bytes

from core.context import MAX_HEAD, MAX_TARGET, Exchange
from core.faults import ClientFault
from core.policies import PolicyError
from routing.answers import AnswerHead
from routing.json_changes import BodyChanger, NoJson, compile_body, faulty_body
from routing.policies import (
    AnswerChanges,
    FieldValue,
    HeaderChanges,
    ParameterValue,
    QueryChanges,
    RequestChanges,
    Transformation,
)
from routing.request_fields import RequestFields, decoded, vary_line
from routing.templates import Template, compile_template

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # what no field value may hold (RFC 9110 section 5.5)

_WEAK_TAG = re.compile(rb'W/("[^"]*")|("[^"]*")')

# Fields whose meaning is the gateway's: framing and what holds for one connection (RFC 9110 section 7.6.1), credentials
# (`upstreamCredentials` are for those), and what the gateway says of itself and of the client (rules 18, 24).
_FRAMING = frozenset(
    b"connection content-length content-encoding http2-settings keep-alive proxy-authenticate proxy-authorization "
    b"proxy-connection te trailer transfer-encoding upgrade".split()
)
_NOT_IN_REQUESTS = _FRAMING | frozenset(
    b"authorization cookie expect forwarded host traceparent tracestate via x-real-ip x-request-id".split()
)
_NOT_IN_ANSWERS = _FRAMING | frozenset(
    b"age cache-status content-range date proxy-status ratelimit ratelimit-policy via x-request-id".split()
)
_OURS_IN_REQUESTS = (b"sec-websocket-", b"x-forwarded-", b"x-gateway-")
_OURS_IN_ANSWERS = (b"access-control-", b"sec-websocket-", b"x-gateway-", b"x-ratelimit-")

OF_THE_BYTES = (b"accept-ranges", b"content-digest", b"content-md5", b"digest", b"repr-digest")  # true of the old ones
_FOR_PARTS_OR_CODINGS = frozenset((b"accept-encoding", b"if-range", b"range"))
_APPLICATION = b"x-gateway-application"  # the field that tells services which application asks
_APPLICATIONS = frozenset(("application.id", "application.name"))
_ABOUT_THE_CALLER = _APPLICATIONS | {"client.address", "request.id"}


@dataclass(frozen=True, slots=True)
class FieldChanger:
    """Of header fields, or of query parameters: removed first, then set, then added."""

    gone: frozenset[bytes]  # what is removed, and what is set
    put: tuple[tuple[bytes, Template], ...]

    @property
    def templates(self) -> Iterator[Template]:
        return (template for _, template in self.put)


@dataclass(frozen=True, slots=True)
class Transformer:
    request_headers: FieldChanger | None
    query: FieldChanger | None
    request_body: BodyChanger | None
    answer_headers: FieldChanger | None
    answer_body: BodyChanger | None
    vary: bytes  # a field line: request fields that answers depend on, because templates read them

    @property
    def changes_answers(self) -> bool:
        return self.answer_headers is not None or self.answer_body is not None or self.vary != b""

    # --- requests ---
    def forwarded_fields(self, passed: list[bytes], connection: bytes | None, fields: RequestFields) -> list[bytes]:
        """The fields for the upstream, in pieces as ``passed``. What the client's Connection names goes first: it was
        meant for us alone, and must not take ours out. Raises ClientFault."""
        gone = self._fields_gone(connection, has_body=fields.exchange.has_body)
        pieces: list[bytes] = []
        for at in range(0, len(passed), 4):
            if passed[at] not in gone:
                pieces += passed[at : at + 4]
                if passed[at] == b"if-match" and self.answer_body is not None:
                    # It compares strongly, and it was the gateway that made the tag weak (RFC 9110 section 13.1.1).
                    pieces[-2] = _WEAK_TAG.sub(rb"\1\2", pieces[-2])
        for name, template in self.request_headers.put if self.request_headers is not None else ():
            value = template.render(fields)
            if value is not None and (value := value.strip(b" \t")):
                if _CONTROL.search(value):
                    raise ClientFault("bad_request", f"The field {name.decode()} would hold a control character.")
                pieces += (name, b": ", value, b"\r\n")
        if self.answer_body is not None:
            pieces += (b"accept-encoding", b": ", b"identity", b"\r\n")
        if sum(map(len, pieces)) > MAX_HEAD:
            raise ClientFault("header_too_large", f"The route's fields make the header section over {MAX_HEAD} bytes.")
        return pieces

    def _fields_gone(self, connection: bytes | None, *, has_body: bool) -> set[bytes]:
        gone = set(self.request_headers.gone) if self.request_headers is not None else set()
        if connection is not None:
            gone.update(token.strip().lower() for token in connection.split(b","))
        if self.answer_body is not None:
            gone |= _FOR_PARTS_OR_CODINGS  # what is a part, or compressed, could not be changed
        if self.request_body is not None and has_body:
            gone.update(OF_THE_BYTES)
        return gone

    def forwarded_query(self, query: bytes | None, fields: RequestFields) -> bytes | None:
        """Raises ClientFault ``uri_too_long``."""
        changer = self.query
        if changer is None:
            return query
        pairs = [
            pair for pair in (query or b"").split(b"&") if pair and decoded(pair.partition(b"=")[0]) not in changer.gone
        ]
        for name, template in changer.put:
            value = template.render(fields)
            if value is not None:
                pairs.append(f"{quote_from_bytes(name, safe='')}={quote_from_bytes(value, safe='')}".encode())
        changed = b"&".join(pairs)
        if len(changed) > MAX_TARGET:
            raise ClientFault("uri_too_long", f"The route makes the query over {MAX_TARGET} bytes.")
        return changed or None

    def changes_body_of(self, exchange: Exchange) -> bool:
        """Whether the request's body must be had whole first. Raises ClientFault ``unsupported_media_type`` for one
        that cannot be changed: it must not pass as it is, or nobody could rely on what is removed."""
        if self.request_body is None or not exchange.has_body:
            return False
        if not is_json(exchange.noted.get(b"content-type", b"")):
            detail = "The body must be JSON, sent as application/json: the route changes it."
            raise ClientFault("unsupported_media_type", detail)
        passed = exchange.passed
        codings = {passed[at + 2].lower() for at in range(0, len(passed), 4) if passed[at] == b"content-encoding"}
        if codings - {b"identity"}:
            detail = "The body must be sent without Content-Encoding: the route changes it."
            raise ClientFault("unsupported_media_type", detail)
        return True

    def forwarded_body(self, body: bytes, fields: RequestFields) -> bytes:
        """Raises ClientFault ``bad_request``."""
        assert self.request_body is not None  # `changes_body_of`
        try:
            return self.request_body.changed(body, fields)
        except NoJson as error:
            raise ClientFault("bad_request", str(error)) from None

    # --- answers ---
    def change_answer_head(self, head: AnswerHead, fields: RequestFields) -> None:
        """A value that is too long or would hold a control character is left out: the answer is made already."""
        changer = self.answer_headers
        if changer is not None:
            if changer.gone:
                head.remove(*changer.gone)
            for name, template in changer.put:
                value = _rendered(template, fields)
                if value:
                    head.add(name, value)
        if self.vary:
            head.lines.append(self.vary)


def _rendered(template: Template, fields: RequestFields) -> bytes | None:
    try:
        value = template.render(fields)
    except ClientFault:
        return None
    return None if value is None or _CONTROL.search(value) else value.strip(b" \t")


def is_json(content_type: bytes) -> bool:
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )


# --- compiling -----------------------------------------------------------------------------------------------------
def compile_transformation(policy: Transformation, parameters: Mapping[str, int]) -> Transformer:
    """``parameters``: names in the route's path, and which segment each one is. Raises PolicyError for the first
    change that does not compile."""
    for error in faulty_transformation(policy, parameters):
        raise error
    template = partial(compile_template, parameters=parameters)
    request, response = policy.request or RequestChanges(), policy.response or AnswerChanges()
    request_headers = _headers(request.headers, template)
    query = _query(request.query, template)
    request_body = compile_body(request.body, template) if request.body is not None else None
    answer_headers = _headers(response.headers, template)
    answer_body = compile_body(response.body, template) if response.body is not None else None
    changers = (request_headers, query, request_body)
    asked = [each for changer in changers if changer is not None for each in changer.templates]
    answered = [each for changer in (answer_headers, answer_body) if changer is not None for each in changer.templates]
    return Transformer(request_headers, query, request_body, answer_headers, answer_body, _vary(asked, answered))


def _vary(asked: list[Template], answered: list[Template]) -> bytes:
    """An answer that holds what was read of the request is for requests that say the same (RFC 9110 section 12.5.5).
    A service cannot know what the gateway made its request of, so the gateway tells caches in its place."""
    read, told = _sources(asked), _sources(answered)
    if "client.address" in read or told & _ABOUT_THE_CALLER:
        return vary_line((b"*",))
    names = frozenset[bytes]().union(*(template.fields for template in (*asked, *answered)))
    return vary_line(tuple(sorted(names | {_APPLICATION} if read & _APPLICATIONS else names)))


def _sources(templates: list[Template]) -> frozenset[str]:
    return frozenset[str]().union(*(template.sources for template in templates))


def _headers(changes: HeaderChanges | None, template: Callable[[str], Template]) -> FieldChanger | None:
    if changes is None:
        return None
    gone = frozenset(name.lower().encode() for name in (*changes.remove, *(each.name for each in changes.set)))
    put = tuple((each.name.lower().encode(), template(each.value)) for each in (*changes.set, *changes.add))
    return FieldChanger(gone, put)


def _query(changes: QueryChanges | None, template: Callable[[str], Template]) -> FieldChanger | None:
    if changes is None:
        return None
    gone = frozenset(name.encode() for name in (*changes.remove, *(each.name for each in changes.set)))
    return FieldChanger(
        gone, tuple((each.name.encode(), template(each.value)) for each in (*changes.set, *changes.add))
    )


def faulty_transformation(policy: Transformation, parameters: Mapping[str, int]) -> Iterator[PolicyError]:
    """What is wrong with each change; ``field`` as in the document (``request.headers.set[0].value``)."""
    template = partial(compile_template, parameters=parameters)
    request, response = policy.request or RequestChanges(), policy.response or AnswerChanges()
    if request.headers is not None:
        yield from _within("request.headers", _faulty_names(request.headers, _refused_in_requests))
        yield from _within("request.headers", _faulty_values(request.headers, template))
    if request.query is not None:
        yield from _within("request.query", _faulty_values(request.query, template))
    if request.body is not None:
        yield from _within("request.body", faulty_body(request.body, template))
    if response.headers is not None:
        yield from _within("response.headers", _faulty_names(response.headers, _refused_in_answers))
        yield from _within("response.headers", _faulty_cookies(response.headers))
        yield from _within("response.headers", _faulty_values(response.headers, template))
    if response.body is not None:
        yield from _within("response.body", faulty_body(response.body, template))


def _within(where: str, errors: Iterable[PolicyError]) -> Iterator[PolicyError]:
    return (PolicyError(error.sentence, f"{where}.{error.field}") for error in errors)


def _faulty_names(changes: HeaderChanges, is_refused: Callable[[bytes], bool]) -> Iterator[PolicyError]:
    named = [(f"set[{place}].name", each.name) for place, each in enumerate(changes.set)]
    named += [(f"add[{place}].name", each.name) for place, each in enumerate(changes.add)]
    named += [(f"remove[{place}]", name) for place, name in enumerate(changes.remove)]
    for field, name in named:
        if is_refused(name.lower().encode()):
            yield PolicyError(f"{name} is the gateway's own business: no transformation touches it", field)


def _refused_in_requests(name: bytes) -> bool:
    # A name with an underscore looks like another one to CGI-like upstreams (rule 24).
    return name in _NOT_IN_REQUESTS or name.startswith(_OURS_IN_REQUESTS) or b"_" in name


def _refused_in_answers(name: bytes) -> bool:
    return name in _NOT_IN_ANSWERS or name.startswith(_OURS_IN_ANSWERS)


def _faulty_cookies(changes: HeaderChanges) -> Iterator[PolicyError]:
    for kind, values in (("set", changes.set), ("add", changes.add)):
        for place, each in enumerate(values):
            if each.name.lower() == "set-cookie":
                yield PolicyError("cookies are the service's to set; they can be removed", f"{kind}[{place}].name")


def _faulty_values(changes: HeaderChanges | QueryChanges, template: Callable[[str], Template]) -> Iterator[PolicyError]:
    kinds: list[tuple[str, Sequence[FieldValue | ParameterValue]]] = [("set", changes.set), ("add", changes.add)]
    for kind, values in kinds:
        for place, each in enumerate(values):
            try:
                compiled = template(each.value)
                if isinstance(changes, HeaderChanges) and any(map(_is_unfit, compiled.parts)):
                    raise ValueError("a field's value holds no control characters")
            except ValueError as error:
                yield PolicyError(str(error), f"{kind}[{place}].value")


def _is_unfit(part: object) -> bool:
    return isinstance(part, bytes) and _CONTROL.search(part) is not None

"""One answer made of several calls (R17): which calls, and what becomes of their answers.

A route with the policy leads to no service of its own. Its parts are called in parallel and their JSON is laid into one
document, each under its key. A part that fails is left out, and named under `PARTIAL`; one that is required fails the
whole. Nothing here does any I/O: `gateway_project.dataplane.aggregating` makes the calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import orjson

from core.faults import KINDS, ClientFault, GatewayFault, InternalFault
from core.policies import PolicyError
from core.uri_path import canonical_path
from routing.policies import AggregatePart, Aggregation
from routing.request_fields import RequestFields
from routing.templates import Reference, compile_template, urlencoded

PARTIAL = "_partial"  # the member that names the parts that are missing
PARTIAL_FIELD = b"x-gateway-partial"
MAX_TARGET = 8192
_RETRY_AFTER_S = 5
_QUERY = re.compile(r"[!$&'()*+,;=:@/?A-Za-z0-9._~%-]*")  # RFC 3986 section 3.4

# Fields of the client's request that speak of the one representation that it asks for, not of what it is made of.
NOT_FOR_PARTS = frozenset(
    b"accept accept-encoding if-match if-modified-since if-none-match if-range if-unmodified-since range".split()
)
OF_THE_BODY = frozenset(b"content-encoding content-language content-location content-type".split())


# --- what is called ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TargetTemplate:
    """Path and query of a call; what it reads of the request is percent-encoded, whatever it is."""

    path: tuple[bytes | Reference, ...]
    query: tuple[bytes | Reference, ...] | None

    def render(self, fields: RequestFields) -> bytes:
        """Raises ClientFault ``bad_request`` for values that would lead elsewhere, such as ``..``."""
        path = _rendered(self.path, fields)
        try:
            canonical = canonical_path(path)
        except ValueError as error:
            raise ClientFault("bad_request", f"The request asks for a part that cannot be: {error}") from None
        if b"//" in canonical:
            raise ClientFault("bad_request", "The request lacks a value that a part's path needs.")
        if self.query is not None:
            path += b"?" + _rendered(self.query, fields)
        if len(path) > MAX_TARGET:
            raise ClientFault("bad_request", "The request's values make a part's path too long.")
        return path


def _rendered(parts: Sequence[bytes | Reference], fields: RequestFields) -> bytes:
    return b"".join([part if isinstance(part, bytes) else _value(part, fields) for part in parts])


def _value(reference: Reference, fields: RequestFields) -> bytes:
    value = reference.value(fields) or b""
    if reference.functions and reference.functions[-1] is urlencoded:
        return value  # once is enough
    return urlencoded(value)


@dataclass(frozen=True, slots=True)
class Part:
    """One call. ``name`` is its key, or its service's name where its members are laid into the document."""

    name: str
    key: str
    service: str
    method: bytes
    target: TargetTemplate
    timeout_s: float
    is_required: bool


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A compiled `Aggregation`. ``services``: those of all parts, each once."""

    parts: tuple[Part, ...]
    services: tuple[str, ...]
    max_bytes: int

    @property
    def takes_body(self) -> bool:
        return any(part.method == b"POST" for part in self.parts)


def compile_aggregation(policy: Aggregation, parameters: Mapping[str, int]) -> Aggregate:
    """``parameters``: names in the route's path, and which segment each one is. Raises PolicyError."""
    parts: list[Part] = []
    names: set[str] = set()
    for place, each in enumerate(policy.parts):
        name = each.key or each.service
        if name in names:
            raise PolicyError("Another part before it has this name.", f"parts[{place}].key")
        if each.key == PARTIAL:
            raise PolicyError(f"{PARTIAL} names the parts that are missing.", f"parts[{place}].key")
        names.add(name)
        try:
            target = compile_target(each.path, parameters)
        except ValueError as error:
            raise PolicyError(str(error), f"parts[{place}].path") from None
        parts.append(_part(name, each, target))
    return Aggregate(tuple(parts), tuple(dict.fromkeys(part.service for part in parts)), policy.max_bytes)


def _part(name: str, policy: AggregatePart, target: TargetTemplate) -> Part:
    method = policy.method.encode("ascii")
    return Part(name, policy.key, policy.service, method, target, policy.timeout_ms / 1000, policy.required)


def compile_target(text: str, parameters: Mapping[str, int]) -> TargetTemplate:
    """Raises ValueError, with a sentence for an admin."""
    parts = compile_template(text, parameters).parts
    path: list[bytes | Reference] = []
    query: list[bytes | Reference] | None = None
    for part in parts:
        if isinstance(part, Reference) or query is not None:
            (path if query is None else query).append(part)
            continue
        before, mark, after = part.partition(b"?")
        path.append(before)
        if mark:
            query = [after]
    _check_literals(path, query)
    return TargetTemplate(tuple(path), None if query is None else tuple(query))


def _check_literals(path: Sequence[bytes | Reference], query: Sequence[bytes | Reference] | None) -> None:
    example = b"".join(part if isinstance(part, bytes) else b"x" for part in path)
    if not example.startswith(b"/"):
        raise ValueError("the path begins with a slash: it follows the base path of the service's version")
    if b"//" in canonical_path(example):
        raise ValueError("the path holds an empty segment (//)")
    for part in query or ():
        if isinstance(part, bytes) and not _QUERY.fullmatch(part.decode("utf-8", "surrogateescape")):
            raise ValueError("the query holds a character that must be percent-encoded")


# --- what becomes of the answers -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class PartFailure:
    """``status`` is the upstream's, or what the gateway would answer; ``error`` a code (docs/aggregation.md)."""

    status: int
    error: str


def failure_of(fault: GatewayFault) -> PartFailure:
    return PartFailure(fault.status, fault.code)


Members = dict[str, orjson.Fragment]
Result = bytes | Members | PartFailure  # JSON as it was written, whole or by member


def judge(part: Part, status: int, body: bytes) -> Result:
    """What a call that was answered whole by its upstream gives (members, where they are to be laid in), or why it
    counts as failed."""
    if not 200 <= status <= 299:
        return PartFailure(status, "upstream_status")
    if not body and status in (204, 205):
        body = b"null"
    try:
        value = orjson.loads(body)
        if part.key:
            return body
        if not isinstance(value, dict):
            return PartFailure(status, "not_an_object")
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):  # of both decoders; the second for what is nested too deeply
        return PartFailure(status, "not_json")
    return {name: orjson.Fragment(bytes(raw)) for name, raw in members.items()}


def failures(aggregate: Aggregate, results: Sequence[Result]) -> dict[str, dict[str, int | str]]:
    """By part's name, as `PARTIAL` tells them."""
    return {
        part.name: {"status": result.status, "error": result.error}
        for part, result in zip(aggregate.parts, results, strict=True)
        if isinstance(result, PartFailure)
    }


def merged(aggregate: Aggregate, results: Sequence[Result]) -> bytes:
    """The document. What parts said is laid in as it was written, so that no number loses a digit. Members of parts
    without a key come first, the later part's before the earlier's; keys go before them."""
    document: dict[str, object] = {}
    named: dict[str, object] = {}
    for part, result in zip(aggregate.parts, results, strict=True):
        if isinstance(result, PartFailure):
            continue
        if isinstance(result, bytes):
            named[part.key] = orjson.Fragment(result)
        else:
            document.update(result)
    document.update(named)
    missing = failures(aggregate, results)
    if missing:
        document[PARTIAL] = missing
    else:
        document.pop(PARTIAL, None)  # a part may not claim what is not so
    return orjson.dumps(document)


def whole_failure(aggregate: Aggregate, results: Sequence[Result]) -> GatewayFault | None:
    """Why there is nothing to answer with: a required part has failed, or all have. None: there is."""
    for part, result in zip(aggregate.parts, results, strict=True):
        if part.is_required and isinstance(result, PartFailure):
            return required_failure(part, result)
    if all(isinstance(result, PartFailure) for result in results):
        members = {"parts": failures(aggregate, results)}
        return InternalFault("aggregate_failed", "None of the parts of the answer could be had.", members=members)
    return None


def required_failure(part: Part, failure: PartFailure) -> GatewayFault:
    """What is not there is 404, what the gateway has a code of its own for keeps it, all else is 502."""
    code = "aggregate_failed"
    if failure.error == "upstream_status" and failure.status == 404:
        code = "not_found"
    elif failure.error in KINDS and KINDS[failure.error].status >= 500:
        code = failure.error
    detail = f"The answer cannot be without its part {part.name}, which failed."
    members = {"parts": {part.name: {"status": failure.status, "error": failure.error}}}
    retry_after_s = _RETRY_AFTER_S if KINDS[code].status == 503 else None
    return InternalFault(code, detail, members=members, retry_after_s=retry_after_s)


def fields_for_part(passed: Sequence[bytes], method: bytes) -> list[bytes]:
    """The client's fields that go with a call, in pieces as `RequestHead.passed` has them."""
    kept: list[bytes] = [
        b"accept",
        b": ",
        b"application/json",
        b"\r\n",
        b"accept-encoding",
        b": ",
        b"identity",
        b"\r\n",
    ]
    for at in range(0, len(passed), 4):
        name = passed[at]
        if name not in NOT_FOR_PARTS and (method == b"POST" or name not in OF_THE_BODY):
            kept += passed[at : at + 4]
    return kept

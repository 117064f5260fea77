"""Fields by which the gateway shows a service's targets who it is (rule 22): text around ``{secret://…}`` references.

What a field says is put together for each request, from values that `core.secret_references` keeps, so that a rotated
secret counts at once and no record holds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.policies import PolicyError
from core.secret_references import SecretReferences, check_reference
from routing.policies import UpstreamCredential

if TYPE_CHECKING:
    from routing.records import ServiceRecord

_REFERENCE = re.compile(r"\{(secret://[^{}]*)\}")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_VALUE = 8192  # as of a client's field (rule 29)

# What the connection, the framing or the gateway's own fields are made of: a second one would contradict them.
_RESERVED = frozenset(
    b"accept-encoding connection content-encoding content-length content-type date expect forwarded host "
    b"http2-settings keep-alive proxy-authenticate proxy-connection te trailer traceparent tracestate "
    b"transfer-encoding upgrade via x-real-ip x-request-id".split()
)
_RESERVED_STARTS = (b"x-forwarded-", b"x-gateway-", b"sec-websocket-", b":")


@dataclass(frozen=True, slots=True)
class CredentialField:
    """A compiled `UpstreamCredential`. ``pieces`` alternate: text, reference, text, …, text."""

    name: bytes  # lower case
    pieces: tuple[str, ...]

    @classmethod
    def of(cls, policy: UpstreamCredential) -> CredentialField:
        """Raises PolicyError with a sentence for an admin."""
        name = policy.header.lower().encode("ascii")
        if name in _RESERVED or name.startswith(_RESERVED_STARTS):
            raise PolicyError(f"the gateway sets {policy.header} itself, or the connection needs it", "header")
        if b"_" in name:
            raise PolicyError("upstreams may not tell _ from -, so a client could send the field too", "header")
        pieces = tuple(_REFERENCE.split(policy.value))
        if len(pieces) == 1:
            raise PolicyError(
                "this names no secret: write {secret://env/UPSTREAM_…} or {secret://file/…}, since what stands here is"
                " kept and shown",
                "value",
            )
        for text in pieces[::2]:
            if "{" in text or "}" in text:
                raise PolicyError("a brace belongs to a {secret://…} reference, and this one does not", "value")
            if not text.isascii() or not text.isprintable():
                raise PolicyError("beside references this is printable ASCII", "value")
        for reference in pieces[1::2]:
            try:
                check_reference(reference)
            except ValueError as error:
                raise PolicyError(str(error), "value") from None
        return cls(name, pieces)

    def line(self, secrets: SecretReferences) -> bytes:
        """The field as it is sent. Raises `SecretUnavailable`."""
        value = b"".join(
            secrets.resolve(piece) if place % 2 else piece.encode("ascii") for place, piece in enumerate(self.pieces)
        ).strip(b" \t")
        if _CONTROL.search(value):  # it could end the line, and begin another (RFC 9110 section 5.5)
            reason = "it holds a control character, which no header field can carry"
            raise secrets.complain(self.pieces[1], reason, value)
        if not value or len(value) > _MAX_VALUE:
            raise secrets.complain(self.pieces[1], f"the field would be empty or over {_MAX_VALUE} bytes", value)
        return self.name + b": " + value + b"\r\n"


def compile_credentials(policies: Iterable[UpstreamCredential]) -> tuple[CredentialField, ...]:
    """Raises PolicyError."""
    fields = {}
    for field in map(CredentialField.of, policies):
        if field.name in fields:
            raise PolicyError(f"two upstream credentials are called {field.name.decode('ascii')}")
        fields[field.name] = field
    return tuple(fields.values())


class CredentialLines:
    """What goes to one service's targets in place of the client's own fields of those names."""

    __slots__ = ("lines", "names")

    def __init__(self, fields: tuple[CredentialField, ...], secrets: SecretReferences) -> None:
        """Raises `SecretUnavailable`."""
        self.names = frozenset(field.name for field in fields)
        self.lines = b"".join([field.line(secrets) for field in fields])


def references_of(service: ServiceRecord) -> Iterator[str]:
    """Every secret reference that a service needs."""
    for field in service.credentials:
        yield from field.pieces[1::2]
    tls = service.upstream_tls
    if tls is not None and tls.client_certificate is not None and tls.client_key is not None:
        yield tls.client_certificate
        yield tls.client_key

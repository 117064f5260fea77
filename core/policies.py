"""The base of policies: what an admin may say about a subject, as a typed document.

Each policy is one JSON object in the admin API (camelCase), one column on a row, one form in the panel, and one member
of a compiled record: all four come from its class. ``read`` takes what JSON gives and raises `PolicyError`, whose
``field`` is the member that is wrong. Durations are milliseconds (``_ms``) or seconds (``_s``), sizes bytes, shares
percent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

P = TypeVar("P")


class PolicyError(ValueError):
    """A document that does not fit. ``field`` is the member's path (``active.intervalS``), empty for the whole."""

    def __init__(self, sentence: str, field: str = "") -> None:
        super().__init__(f"{field}: {sentence}" if field else sentence)
        self.sentence = sentence
        self.field = field


class Policy(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of the documents below."""


_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")


def read(kind: type[P], document: Any) -> P:
    """``document`` (what `json.loads` returns) as a policy. Raises `PolicyError`."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        sentence = text[: place.start()] if place else text
        raise PolicyError(sentence.rstrip(".") + ".", place[1] if place else "") from None


def plain(policy: Any) -> Any:
    """The policy as JSON types, as it is stored and shown."""
    return msgspec.to_builtins(policy)


def read_all(documents: Mapping[str, Any], kinds: Mapping[str, type[Policy]]) -> dict[str, Any]:
    """All policies of a row by name, None where it has none. Raises `PolicyError`."""
    return {
        name: read_named(name, kind, documents[name]) if name in documents else None for name, kind in kinds.items()
    }


def read_named(name: str, kind: type[P], document: Any) -> P:
    """`read`, whose error says in which policy its field stands."""
    try:
        return read(kind, document)
    except PolicyError as error:
        raise PolicyError(error.sentence, f"{name}.{error.field}" if error.field else name) from None


Share = Annotated[float, Meta(ge=0, le=100)]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=0, le=2**40)]
Token = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$")]  # RFC 9110 section 5.6.2
Text = Annotated[str, Meta(max_length=2000)]
SecretReference = Annotated[str, Meta(pattern=r"^secret://[a-z0-9-]+/[^\s\x00-\x1f\x7f]{1,500}$")]

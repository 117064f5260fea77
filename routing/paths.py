"""Paths of requests as the gateway compares them (rule 1)."""

from core.faults import ClientFault
from core.uri_path import canonical_path


def canonical(raw: bytes) -> bytes:
    """The canonical form of a request's path (without query). Raises `ClientFault` ``bad_path`` for what is refused.

    Empty segments pass: a route may allow them.
    """
    try:
        return canonical_path(raw)
    except ValueError as error:
        raise ClientFault("bad_path", str(error)) from None


def has_empty_segment(path: bytes) -> bool:
    """Whether a segment other than the last is empty (``//``)."""
    return path.find(b"//") >= 0

"""Which version of a service answers: the one that the request names, else by weight (rules 4 and 5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

from core.faults import ClientFault, InternalFault, PolicyDenied
from routing.records import ServiceRecord, VersionRecord

_ACCEPT_VERSION = re.compile(rb';\s*version\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)
_RETRY_AFTER_S = 5  # a service without anything to serve needs an admin, not a fast client


def requested_version(api_version: bytes, header: bytes | None, accept: bytes | None) -> str | None:
    """The version that a request names, None when it names none.

    ``api_version`` is the path's (``v1`` names none), ``header`` the value of X-API-Version, ``accept`` that of Accept.
    Raises `ClientFault` ``bad_request`` when they contradict each other.
    """
    if header is None and api_version == b"v1" and (accept is None or b"version" not in accept.lower()):
        return None
    names: set[str] = set()
    if api_version != b"v1":
        names.add(_full_name(api_version))
    if header:
        names.update(_full_name(name.strip()) for name in header.split(b","))  # the field may stand there twice
    if accept:
        names.update(_full_name(quoted or plain) for quoted, plain in _ACCEPT_VERSION.findall(accept))
    names.discard("")
    if len(names) > 1:
        raise ClientFault("bad_request", f"The request names several versions: {', '.join(sorted(names))[:200]}.")
    return names.pop() if names else None


def _full_name(name: bytes) -> str:
    """``v2`` for ``2``: the same name."""
    return ("v" if name.isdigit() else "") + name.decode("latin-1")


def choose_version(
    service: ServiceRecord, allowed: frozenset[str] | None, requested: str | None, point: int
) -> VersionRecord:
    """The version that answers. ``allowed`` None means all; ``point`` (32 bits) keeps a client where it is.

    Raises `ClientFault` ``unknown_version`` or ``version_retired``, `PolicyDenied` ``version_not_allowed``, and
    `InternalFault` ``no_healthy_target`` when the service has nothing to serve.
    """
    if requested is not None:
        version = _named(service, requested)
    else:
        weighted: Sequence[VersionRecord] = service.weighted
        if allowed is not None and weighted:
            weighted = [version for version in weighted if version.name in allowed]
        if len(weighted) > 1:
            return _by_weight(weighted, _mixed(point ^ service.salt))
        if weighted:
            return weighted[0]
        if service.default is None:
            raise _nothing_to_serve(service)
        version = service.default
    if allowed is not None and version.name not in allowed:
        raise PolicyDenied(
            "version_not_allowed", f"The application may not use version {version.name} of the service {service.name}."
        )
    if version.lifecycle == "retired":
        raise _retired(service, version, allowed)
    return version


def _named(service: ServiceRecord, name: str) -> VersionRecord:
    version = service.versions.get(name)
    number = name.removeprefix("v")
    if version is None and number.isdigit():  # 2 and v2 are the same name
        version = service.versions.get(number) or service.versions.get(f"v{number}")
    if version is None:
        raise ClientFault("unknown_version", f"The service {service.name} has no active version {name[:100]}.")
    return version


def _retired(service: ServiceRecord, version: VersionRecord, allowed: frozenset[str] | None) -> ClientFault:
    """410 (RFC 9110 section 15.5.11): it was here and will not be back. Says what the application may use instead."""
    supported = [
        each.name
        for each in service.versions.values()
        if each.lifecycle == "supported" and (allowed is None or each.name in allowed)
    ]
    instead = f" Use {' or '.join(supported[:10])}." if supported else ""
    members: dict[str, object] = {"supported": supported}
    if version.link:
        members["link"] = version.link
    lines = [line.split(b": ", 1) for line in version.notice.split(b"\r\n") if line]
    return ClientFault(
        "version_retired",
        f"Version {version.name} of the service {service.name} is retired.{instead}",
        headers=tuple((name, value) for name, value in lines),
        members=members,
    )


def _by_weight(weighted: Sequence[VersionRecord], number: int) -> VersionRecord:
    """The version into whose share of 2**32 ``number`` falls."""
    left = number * sum([version.weight for version in weighted]) >> 32
    for version in weighted:
        left -= version.weight
        if left < 0:
            return version
    raise AssertionError("a point lies beyond the sum of all weights")


def _mixed(number: int) -> int:
    """MurmurHash3's finaliser: without it, the halves of two services would hold the same clients, or opposite ones."""
    number = (number ^ number >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    number = (number ^ number >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return number ^ number >> 16


def _nothing_to_serve(service: ServiceRecord) -> Exception:
    if service.weighted:
        return PolicyDenied(
            "version_not_allowed",
            f"The application may use no version that the service {service.name} has traffic for.",
        )
    return InternalFault(
        "no_healthy_target",
        f"The service {service.name} has no current version, no default URL and no version with a weight.",
        retry_after_s=_RETRY_AFTER_S,
    )


def address_point(address: str) -> int:
    """The point of a client without credential, by address."""
    return crc32(address.encode())

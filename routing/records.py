"""Services and routes as workers hold them: frozen, and compiled as far as they can be before any request comes.

`from_wire` takes the JSON object that `routing.compile` makes of the rows and raises ValueError, with a sentence for
an admin, for what does not compile. Agent and worker call the same function, so what one accepts the other runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

from core.path_trie import compile_pattern


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """One address. Equal addresses share a pool of connections, by ``origin``: scheme, host, port.

    The scheme is "http", "https", or "unix" for the gateway's own control process (the host is the socket's path).
    """

    origin: tuple[str, str, int]
    host_header: bytes

    @classmethod
    def from_url(cls, url: str) -> tuple[TargetRecord, bytes]:
        """The target of an http(s) URL, and the URL's own path without a closing slash."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"the URL must begin with http:// or https://, not {parts.scheme or 'nothing'}://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the URL holds credentials; give them to the gateway as a secret reference instead")
        if parts.query or parts.fragment:
            raise ValueError("the URL may have neither a query nor a fragment")
        if not parts.hostname:
            raise ValueError("the URL names no host")
        if not url.isascii() or any(ord(character) <= 32 or ord(character) == 127 for character in url):
            raise ValueError("the URL holds a space or a character that must be percent-encoded")
        default = 443 if parts.scheme == "https" else 80
        port = parts.port if parts.port is not None else default
        if not 1 <= port <= 65535:
            raise ValueError("the port must be from 1 to 65535")
        host = parts.hostname
        literal = f"[{host}]" if ":" in host else host
        header = literal if port == default else f"{literal}:{port}"
        return cls((parts.scheme, host, port), header.encode("ascii")), parts.path.rstrip("/").encode("ascii")


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version. ``base_path`` is what stands before the rest of the path at the upstream (rule 3)."""

    name: str
    weight: int
    base_path: bytes
    targets: tuple[TargetRecord, ...]  # in the order in which they take turns; never empty


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service. ``default`` answers where no weight decides (currentVersion, else defaultUrl)."""

    id: str
    tenant_id: str
    name: str
    versions: Mapping[str, VersionRecord]  # the active ones, and the default URL under its name
    weighted: tuple[VersionRecord, ...]  # those with a weight above 0
    default: VersionRecord | None
    fallback: tuple[TargetRecord, bytes] | None
    implicit: bool  # reachable as /api/v1/{name}/…
    is_active: bool
    request_timeout_s: float | None
    salt: int  # so that the split of one service tells nothing of another's
    template: str  # the path label of metrics

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> ServiceRecord:
        prefix = wire["path_prefix"].rstrip("/").encode("ascii")
        versions = {version["name"]: _version(version, prefix) for version in wire["versions"]}
        default = versions.get(wire["current_version"])
        if default is None and wire["default_url"]:
            name = wire["current_version"] or "default"
            target, path = TargetRecord.from_url(wire["default_url"])
            default = VersionRecord(name, 0, path + prefix, (target,))
            versions.setdefault(name, default)
        fallback = TargetRecord.from_url(wire["fallback_url"]) if wire["fallback_url"] else None
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            name=wire["name"],
            versions=versions,
            weighted=tuple(version for version in versions.values() if version.weight > 0),
            default=default,
            fallback=(fallback[0], fallback[1] + prefix) if fallback else None,
            implicit=wire["implicit"],
            is_active=wire["is_active"],
            request_timeout_s=_seconds(wire["request_timeout_ms"]),
            salt=crc32(wire["id"].encode()),
            template=f"/api/v1/{wire['name']}/*",
        )


def _version(wire: Mapping[str, Any], prefix: bytes) -> VersionRecord:
    target, path = TargetRecord.from_url(wire["url"])
    others = {url: TargetRecord.from_url(url)[0] for url in wire["targets"]}
    targets = tuple(others[url] for url in wire["targets"]) or (target,)
    return VersionRecord(wire["name"], wire["weight"], path + prefix, targets)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """A route as matched and applied. ``service`` (a name) or ``queue_route`` (an id), never both.

    ``path`` is the pattern as `compile_pattern` returns it: ``{name}`` or ``*`` stand for one segment, a final ``/*``
    for the rest.
    """

    id: str
    tenant_id: str
    name: str
    template: str  # the path label of metrics
    hosts: tuple[bytes, ...]  # lower case, without port; b"*.example.com" covers any label or labels before it
    path: bytes
    methods: frozenset[bytes]  # empty: any
    priority: int
    is_active: bool
    service: str | None
    queue_route: str | None
    version: str
    strip_prefix: bytes
    replace_prefix: bytes
    request_timeout_s: float | None
    total_timeout_s: float | None
    max_body_bytes: int | None
    allow_empty_segments: bool
    retry_unsafe_methods: bool
    pass_credentials: bool

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> RouteRecord:
        return cls(
            id=wire["id"],
            tenant_id=wire["tenant"],
            name=wire["name"],
            template=wire["path"],
            hosts=tuple(host.lower().encode("ascii") for host in wire["hosts"]),
            path=compile_pattern(wire["path"]),
            methods=frozenset(method.encode("ascii") for method in wire["methods"]),
            priority=wire["priority"],
            is_active=wire["is_active"],
            service=wire["service"],
            queue_route=wire["queue_route"],
            version=wire["version"],
            strip_prefix=wire["strip_prefix"].rstrip("/").encode(),
            replace_prefix=wire["replace_prefix"].rstrip("/").encode("ascii"),
            request_timeout_s=_seconds(wire["request_timeout_ms"]),
            total_timeout_s=_seconds(wire["total_timeout_ms"]),
            max_body_bytes=wire["max_body_bytes"],
            allow_empty_segments=wire["allow_empty_segments"],
            retry_unsafe_methods=wire["retry_unsafe_methods"],
            pass_credentials=wire["pass_credentials"],
        )

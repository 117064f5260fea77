"""The opening handshake of a WebSocket (RFC 6455 section 4), taken from a client and passed on to an upstream.

Browsers cannot set header fields on it. They may send their key as one of the subprotocols that they offer,
``portcullis.key.<key>``, and a token as ``portcullis.token.<token>``: these are taken out, and no upstream sees them.
Since browsers insist on one of the offered subprotocols being chosen, they offer ``portcullis`` beside it where the
upstream chooses none.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from hashlib import sha1
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from core.context import Exchange
from core.faults import ClientFault
from routing.policies import WebSockets
from routing.upstream.connection import UpstreamConnection

KEY_PROTOCOL = b"portcullis.key."
TOKEN_PROTOCOL = b"portcullis.token."
_CREDENTIALS = (KEY_PROTOCOL, TOKEN_PROTOCOL)
OWN_PROTOCOL = b"portcullis"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_DEFLATE = b"permessage-deflate"
_PREFIX = b"sec-websocket-"
_UNWANTED = (b"sec-websocket-", b"upgrade:", b"connection:", b"content-length:", b"transfer-encoding:")
_NO_FIELD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search  # RFC 9110 section 5.5
_UPGRADE_REQUIRED = ((b"sec-websocket-version", b"13"), (b"upgrade", b"websocket"), (b"connection", b"upgrade"))
_DEFAULT_POLICY = WebSockets()


class Opener(Protocol):
    """Whoever joins the two connections when the upstream has agreed."""

    def open(self, exchange: Any, connection: UpstreamConnection, rest: bytes) -> None: ...


class Handshake:
    """What a client asked for. ``policy`` and ``opener`` are given to it when it is admitted."""

    __slots__ = (
        "_extensions",
        "_key",
        "_keys",
        "_protocols",
        "_versions",
        "answer",
        "is_compressed",
        "opener",
        "policy",
    )

    def __init__(self, noted: dict[bytes, bytes], passed: list[bytes], key_header: bytes) -> None:
        """Takes its fields out of ``passed`` (wire pieces, four to a line), and the key that stands among the
        subprotocols into ``noted``."""
        fields = _taken_out(passed)
        self._keys = fields.get(b"sec-websocket-key", [])
        self._key = self._keys[0] if self._keys else b""
        self._versions = fields.get(b"sec-websocket-version", [])
        self._protocols = _items(fields.get(b"sec-websocket-protocol", []))
        self._extensions = [
            item for item in _items(fields.get(b"sec-websocket-extensions", [])) if _name_of(item) == _DEFLATE
        ]
        keys = [each for each in self._protocols if each.startswith(KEY_PROTOCOL)]
        if len(keys) == 1:
            noted.setdefault(key_header, keys[0][len(KEY_PROTOCOL) :])
        tokens = [each for each in self._protocols if each.startswith(TOKEN_PROTOCOL)]
        if len(tokens) == 1:
            noted.setdefault(b"authorization", b"Bearer " + tokens[0][len(TOKEN_PROTOCOL) :])
        self.policy = _DEFAULT_POLICY
        self.opener: Opener | None = None
        self.is_compressed = False
        self.answer = b""  # the field lines of our 101

    @property
    def is_one(self) -> bool:
        """Whether there is anything of a handshake in the request beside its Upgrade field."""
        return bool(self._keys or self._versions)

    def check(self) -> None:
        """Raises ClientFault for what RFC 6455 section 4.2.1 does not allow."""
        if self._versions != [b"13"]:
            detail = "The only version of the WebSocket protocol that is served is 13."
            raise ClientFault("upgrade_required", detail, headers=_UPGRADE_REQUIRED)
        if len(self._keys) != 1 or not _is_nonce(self._key):
            raise ClientFault("bad_request", "Sec-WebSocket-Key is not 16 bytes in base64.")
        for credential in _CREDENTIALS:
            if sum(each.startswith(credential) for each in self._protocols) > 1:
                raise ClientFault("bad_request", "The request offers more than one key or token as a subprotocol.")

    def complete(self, exchange: Exchange) -> None:
        """Put the fields that the upstream is to get on the exchange."""
        noted, passed = exchange.noted, exchange.passed
        # Else what is ours would be removed as named by the client's Connection.
        named = [each for each in _items([noted.pop(b"connection", b"")]) if not each.lower().startswith(_PREFIX)]
        named = [each for each in named if each.lower() != b"upgrade"]
        if named:
            noted[b"connection"] = b", ".join(named)
        lines = [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
        lines += [(b"sec-websocket-version", b"13"), (b"sec-websocket-key", self._key)]
        if protocols := self._for_upstream():
            lines.append((b"sec-websocket-protocol", b", ".join(protocols)))
        if self._extensions:
            lines.append((b"sec-websocket-extensions", b", ".join(self._extensions)))
        for name, value in lines:
            passed += (name, b": ", value, b"\r\n")

    def _for_upstream(self) -> list[bytes]:
        return [each for each in self._protocols if each != OWN_PROTOCOL and not each.startswith(_CREDENTIALS)]

    def accepts(self, lines: list[bytes]) -> bool:
        """Whether these field lines of a 101 answer just what the client has asked for (section 4.1). If so ``answer``
        holds the lines for the client."""
        fields: dict[bytes, list[bytes]] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            fields.setdefault(name.lower(), []).append(value.strip(b" \t\r\n"))
        if not _has(fields, b"upgrade", b"websocket") or not _has(fields, b"connection", b"upgrade"):
            return False
        if fields.get(b"sec-websocket-accept") != [_accept(self._key)]:
            return False
        protocols = fields.get(b"sec-websocket-protocol", [])
        if len(protocols) > 1 or not set(protocols) <= set(self._for_upstream()):
            return False
        extensions = _items(fields.get(b"sec-websocket-extensions", []))
        if extensions and not (self._extensions and [_name_of(item) for item in extensions] == [_DEFLATE]):
            return False
        self.is_compressed = bool(extensions)
        if not protocols and OWN_PROTOCOL in self._protocols:
            protocols = [OWN_PROTOCOL]
        self.answer = self._lines(protocols, extensions)
        return True

    def _lines(self, protocols: list[bytes], extensions: list[bytes]) -> bytes:
        answer = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: " + _accept(self._key) + b"\r\n"
        answer += b"".join(b"sec-websocket-protocol: %b\r\n" % each for each in protocols)
        return answer + b"".join(b"sec-websocket-extensions: %b\r\n" % each for each in extensions)


def take_key_from_query(exchange: Exchange, name: str, key_header: bytes) -> None:
    """The query parameter ``name`` becomes the key, unless there is one already, and leaves the query. Raises
    ClientFault for what no field could hold: where the route passes credentials on, the upstream gets it in one."""
    if exchange.query is None:
        return
    kept = []
    for pair in exchange.query.split(b"&"):
        parameter, _, value = pair.partition(b"=")
        if unquote_to_bytes(parameter) == name.encode():
            key = unquote_to_bytes(value)
            if _NO_FIELD_VALUE(key):
                raise ClientFault("bad_request", "The key in the query holds a control character.")
            exchange.noted.setdefault(key_header, key)
        else:
            kept.append(pair)
    exchange.query = b"&".join(kept) or None


def without_handshake(lines: list[bytes]) -> bytes:
    """What an upstream says in its 101 beside the handshake, Set-Cookie for one."""
    return b"".join(line for line in lines if not line[:20].lower().startswith(_UNWANTED))


def is_for_websocket(upgrade: bytes) -> bool:
    """Whether an Upgrade field asks for it, maybe among others."""
    return b"websocket" in (item.lower() for item in _items([upgrade]))


def _taken_out(passed: list[bytes]) -> dict[bytes, list[bytes]]:
    taken: dict[bytes, list[bytes]] = {}
    kept: list[bytes] = []
    for i in range(0, len(passed), 4):
        if passed[i].startswith(_PREFIX):
            taken.setdefault(passed[i], []).append(passed[i + 2])
        else:
            kept += passed[i : i + 4]
    passed[:] = kept
    return taken


def _items(values: list[bytes]) -> list[bytes]:
    """The members of a list field (RFC 9110 section 5.6.1). No member of ours holds a quoted comma."""
    return [item for value in values for each in value.split(b",") if (item := each.strip(b" \t"))]


def _name_of(extension: bytes) -> bytes:
    return extension.partition(b";")[0].strip().lower()


def _has(fields: dict[bytes, list[bytes]], name: bytes, token: bytes) -> bool:
    return token in (item.lower() for item in _items(fields.get(name, [])))


def _is_nonce(key: bytes) -> bool:
    try:
        return len(b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def _accept(key: bytes) -> bytes:
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())

"""Private keys at rest: AES-256-GCM under a key that is derived from SECRET_KEY by HKDF (RFC 5869)."""

import base64
import json
import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

_NONCE_BYTES = 12


class Unreadable(Exception):
    """Sealed under another SECRET_KEY, for another id, or damaged."""


def derived_key(purpose: bytes) -> bytes:
    """32 octets that follow from SECRET_KEY and the purpose alone."""
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"portcullis " + purpose)
    return hkdf.derive(str(settings.SECRET_KEY).encode())


def seal(document: dict[str, Any], key_id: str) -> str:
    nonce = os.urandom(_NONCE_BYTES)
    sealed = AESGCM(derived_key(b"signing keys")).encrypt(nonce, json.dumps(document).encode(), key_id.encode())
    return base64.b64encode(nonce + sealed).decode()


def unseal(text: str, key_id: str) -> dict[str, Any]:
    """Raises Unreadable."""
    try:
        data = base64.b64decode(text, validate=True)
        plain = AESGCM(derived_key(b"signing keys")).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], key_id.encode())
        document: dict[str, Any] = json.loads(plain)
    except (InvalidTag, ValueError):
        raise Unreadable(f"the signing key {key_id} was sealed under another SECRET_KEY, or is damaged") from None
    return document

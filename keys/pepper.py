"""The pepper of the keyed digests: from the environment, or derived from SECRET_KEY by HKDF (RFC 5869)."""

import hmac

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


def pepper() -> bytes:
    if settings.KEY_PEPPER:
        return str(settings.KEY_PEPPER).encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"portcullis key pepper").derive(
        settings.SECRET_KEY.encode()
    )


def pepper_id() -> str:
    """Tells the pepper from another one, and nothing of what it is. It stands on each key's row: 16 hexadecimal
    digits."""
    return hmac.digest(pepper(), b"portcullis pepper id", "sha256").hex()[:16]

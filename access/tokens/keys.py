"""Keys that verify and decrypt tokens. joserfc does the arithmetic; which key fits which algorithm is decided here.

Only processes that have issuers import this module: it loads joserfc and cryptography.
"""

from __future__ import annotations

import warnings
from base64 import urlsafe_b64decode
from collections.abc import Iterable
from typing import Any

from joserfc import jwe
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from access.tokens.identity import Proof
from access.tokens.parsing import EncryptedToken, Refused, SignedToken
from access.tokens.records import public_keys

_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192  # RFC 7518 section 3.3; larger ones cost more than anybody needs
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_MOST_TRIED = 5  # keys, for a token that names none
_DECRYPTION = ("dir", "A256KW", "A256GCM")
_FAILURES = (JoseError, ValueError, TypeError, KeyError, AttributeError)

Key = RSAKey | ECKey | OKPKey | OctKey


class UnknownKey(Exception):
    """The token names a key that the set does not hold: there may be a new one."""


class VerificationKey:
    """A key and the algorithms of an issuer that it fits (RFC 8725 section 3.1): never another."""

    __slots__ = ("algorithms", "key", "kid", "thumbprint")

    def __init__(self, kid: str | None, key: Key, algorithms: frozenset[str]) -> None:
        self.kid = kid
        self.key = key
        self.algorithms = algorithms
        self.thumbprint = key.thumbprint()


class KeySet:
    """The keys of an issuer. ``kid`` is compared, and leads nowhere (RFC 8725 section 3.10)."""

    __slots__ = ("_keys", "skipped")

    def __init__(self, keys: Iterable[VerificationKey], skipped: int = 0) -> None:
        self._keys = tuple(keys)
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self, token: SignedToken) -> Proof:
        """Raises `Refused`, or `UnknownKey`."""
        fitting = self._fitting(token.algorithm, token.kid)
        if not fitting:
            raise Refused("no key of the issuer fits the algorithm")
        algorithm = JWSRegistry.algorithms[token.algorithm]
        for each in fitting:
            try:
                if algorithm.verify(token.signed, token.signature, each.key):
                    return Proof(token.algorithm, token.kid, token.typ, each.thumbprint)
            except _FAILURES:
                continue
        raise Refused("the signature is not right")

    def would_verify(self, proof: Proof) -> bool:
        """Whether what another set of the issuer's keys has verified would be by this one."""
        try:
            fitting = self._fitting(proof.algorithm, proof.kid)
        except UnknownKey:
            return False
        return any(each.thumbprint == proof.thumbprint for each in fitting)

    def _fitting(self, algorithm: str, kid: str | None) -> list[VerificationKey]:
        """Raises `UnknownKey`."""
        named = [each for each in self._keys if each.kid == kid] if kid is not None else list(self._keys)
        if kid is not None and not named:
            if any(each.kid is not None for each in self._keys) or not self._keys:
                raise UnknownKey
            named = list(self._keys)  # a set whose keys have no names
        return [each for each in named if algorithm in each.algorithms][:_MOST_TRIED]


def published_keys(document: Any, algorithms: Iterable[str]) -> KeySet:
    """The keys of a JWK Set that can verify one of ``algorithms``. Raises ValueError for what is no JWK Set; a key that
    cannot be used is left out."""
    keys, skipped = [], 0
    for jwk in public_keys(document):
        try:
            keys.append(_published(jwk, frozenset(algorithms)))
        except _FAILURES:
            skipped += 1
    return KeySet(keys, skipped)


def shared_key(secret: bytes, algorithms: Iterable[str]) -> KeySet:
    """Raises ValueError for a secret that is shorter than the digest (RFC 7518 section 3.2)."""
    fitting = frozenset(each for each in algorithms if each.startswith("HS") and len(secret) * 8 >= int(each[2:]))
    if not fitting:
        raise ValueError("the secret is shorter than the digest of HS256 and its like")
    return KeySet([VerificationKey(None, _symmetric(secret), fitting)])


def _symmetric(secret: bytes) -> OctKey:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # a PEM as a shared secret: its length was looked at
        return OctKey.import_key(secret)


def _published(jwk: dict[str, Any], algorithms: frozenset[str]) -> VerificationKey:
    """Raises one of `_FAILURES` for a key that verifies none of ``algorithms``."""
    operations = jwk.get("key_ops")
    if jwk.get("use", "sig") != "sig" or (operations is not None and "verify" not in operations):
        raise ValueError("the key is not meant for signatures")
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("kid is no text")
    key, fitting = _imported(jwk)
    if "alg" in jwk:
        fitting &= {jwk["alg"]} | ({"EdDSA"} if jwk["alg"] == "Ed25519" else set())
    fitting &= algorithms
    if not fitting:
        raise ValueError("the key fits none of the issuer's algorithms")
    return VerificationKey(kid, key, frozenset(fitting))


def _imported(jwk: dict[str, Any]) -> tuple[Key, set[str]]:
    bare = {name: value for name, value in jwk.items() if name in ("kty", "n", "e", "crv", "x", "y")}
    kind = jwk["kty"]
    if kind == "RSA":
        if not _MIN_RSA_BITS <= int.from_bytes(_octets(bare["n"])).bit_length() <= _MAX_RSA_BITS:
            raise ValueError("the RSA key is too short or too long")
        return RSAKey.import_key(bare), {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    if kind == "EC":
        return ECKey.import_key(bare), {name for name, curve in _CURVES.items() if curve == jwk["crv"]}
    if jwk["crv"] != "Ed25519":
        raise ValueError("of the curves of RFC 8037 only Ed25519 is taken")
    return OKPKey.import_key(bare), {"EdDSA"}


def decryption_key(text: bytes) -> OctKey:
    """32 octets in base64url. Raises ValueError."""
    octets = _octets(text.decode("ascii"))
    if len(octets) != 32:
        raise ValueError("a key for A256GCM is 32 octets, in base64url")
    return _symmetric(octets)


def _octets(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def decrypted(token: EncryptedToken, key: OctKey) -> bytes:
    """The signed token inside. Raises `Refused`."""
    try:
        opened = jwe.decrypt_compact(token.compact, key, algorithms=list(_DECRYPTION))
    except _FAILURES:
        raise Refused("it cannot be decrypted") from None
    assert opened.plaintext is not None
    return opened.plaintext

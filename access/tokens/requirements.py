"""What a route or service asks of its callers beside being somebody (A4, K5): decided from values alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from access.policies import Access, ClaimRule
from access.tokens.identity import Identity
from access.tokens.judging import holds
from core.faults import PolicyDenied

Credentials = Literal["any", "key", "token", "both", "public"]
_REALM = b'Bearer realm="portcullis"'
_MISSING = {
    "any": "Send an API key, or a token as Bearer.",
    "key": "Send an API key.",
    "token": "Send a token as Bearer.",
    "both": "Send an API key in its field, and a token as Bearer.",
}
_ORDER: tuple[Credentials, ...] = ("public", "any", "key", "token", "both")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A compiled `Access`, or several that must all hold. Of ``roles`` and ``issuers`` each set must be met by one of
    its names."""

    credentials: Credentials
    scopes: frozenset[str]
    roles: tuple[frozenset[str], ...]
    issuers: tuple[frozenset[str], ...]
    claims: tuple[ClaimRule, ...]
    challenge: tuple[tuple[bytes, bytes], ...]  # of a 403 for scopes (RFC 6750 section 3.1)

    @classmethod
    def of(cls, access: Access) -> Requirement:
        return _compiled(
            access.credentials,
            frozenset(access.scopes),
            (frozenset(access.roles),) if access.roles else (),
            (frozenset(access.issuers),) if access.issuers else (),
            access.claims,
        )

    @property
    def is_public(self) -> bool:
        return self.credentials == "public"

    def missing(self) -> PolicyDenied:
        """Nothing, or not enough, was brought."""
        detail = _MISSING.get(self.credentials, _MISSING["any"])
        return PolicyDenied("missing_credentials", detail, headers=((b"www-authenticate", _REALM),))

    def judge(self, key_scopes: Iterable[str] | None, user: Identity | None) -> None:
        """``key_scopes``: those of the key that came, None: none came. With a token, its own scopes count and not the
        key's. What only tokens say, a key alone does not have. Raises PolicyDenied."""
        credentials = self.credentials
        if (user is None and credentials in ("token", "both")) or (
            key_scopes is None and credentials in ("key", "both")
        ):
            raise self.missing()
        if user is not None and not all(user.issuer in named for named in self.issuers):
            raise _refused("insufficient_scope", "Tokens of this issuer do not count here.", ())
        if self.scopes:
            granted = user.scopes if user is not None else frozenset(key_scopes or ())
            if not self.scopes <= granted and (user is not None or not _cover(granted, self.scopes)):
                detail = f"This needs the scope {' '.join(sorted(self.scopes))}."
                raise _refused("insufficient_scope", detail, self.challenge)
        if self.roles or self.claims:
            self._judge_user(user)

    def _judge_user(self, user: Identity | None) -> None:
        roles = user.roles if user is not None else ()
        for named in self.roles:
            if named.isdisjoint(roles):
                raise _refused("insufficient_role", f"This needs the role {' or '.join(sorted(named))}.", ())
        for rule in self.claims:
            if user is None or not holds(user.claims, rule):
                raise _refused("insufficient_scope", f"The claim {rule.claim} is not as it is needed here.", ())


def _cover(granted: frozenset[str], wanted: frozenset[str]) -> bool:
    """Scopes of keys may end in ``:*``, which covers everything below (as in the admin API)."""
    above = tuple(scope[:-1] for scope in granted if scope.endswith(":*"))
    return all(scope in granted or scope.startswith(above) for scope in wanted)


def _refused(code: str, detail: str, challenge: tuple[tuple[bytes, bytes], ...]) -> PolicyDenied:
    return PolicyDenied(code, detail, headers=challenge)


def requirement_of(policy: Access | None) -> Requirement | None:
    return None if policy is None else Requirement.of(policy)


def all_of(requirements: Iterable[Requirement]) -> Requirement | None:
    """One that holds when all of them do; None for none."""
    found = list(requirements)
    if len(found) < 2:
        return found[0] if found else None
    credentials = found[0].credentials
    for each in found[1:]:
        credentials = _stricter(credentials, each.credentials)
    return _compiled(
        credentials,
        frozenset[str]().union(*(each.scopes for each in found)),
        tuple(names for each in found for names in each.roles),
        tuple(names for each in found for names in each.issuers),
        tuple(rule for each in found for rule in each.claims),
    )


def _stricter(one: Credentials, other: Credentials) -> Credentials:
    """What must be brought where both are asked for."""
    if {one, other} == {"key", "token"}:
        return "both"
    return max(one, other, key=_ORDER.index)


def _compiled(
    credentials: Credentials,
    scopes: frozenset[str],
    roles: tuple[frozenset[str], ...],
    issuers: tuple[frozenset[str], ...],
    claims: tuple[ClaimRule, ...],
) -> Requirement:
    said = " ".join(sorted(scopes)).encode("ascii")
    challenge = (b"www-authenticate", _REALM + b', error="insufficient_scope", scope="' + said + b'"')
    return Requirement(credentials, scopes, roles, issuers, claims, (challenge,) if scopes else ())

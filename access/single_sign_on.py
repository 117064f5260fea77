"""Whom an identity provider may bring into the panel, and with which roles. Never everybody by default."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_ROLE = re.compile(r"[\w.-]{1,63}", re.ASCII)
_QUOTED = r'"(?:[^"]|"")+"'
_PART = re.compile(rf"\s*({_QUOTED}\s*=[^,]*|[^,]*)(?:,|$)")
_QUOTED_PART = re.compile(rf"({_QUOTED})\s*=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """``roles_by_value``: roles by a value of the provider's claim; ``domains``: whose verified addresses come in with
    ``domain_roles``."""

    roles_by_value: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    domains: frozenset[str] = frozenset()
    domain_roles: tuple[str, ...] = ()


def parse_roles(text: str) -> dict[str, tuple[str, ...]]:
    """``gateway-admins=admin, "cn=ops,dc=example"=operator+viewer``: what a claim's value stands for. Within quotes
    commas count, and a quote is written twice.

    Raises ValueError with a sentence.
    """
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (match[1].strip() for match in _PART.finditer(text))):
        value, names = _value_and_names(part)
        roles = tuple(name.strip() for name in names.split("+"))
        if not value or not all(_ROLE.fullmatch(role) for role in roles):
            raise ValueError(
                f'{part[:80]!r} is not of the form value=role, value=role+role, or "value, with commas"=role.'
            )
        found[value] = found.get(value, ()) + roles
    return found


def _value_and_names(part: str) -> tuple[str, str]:
    if quoted := _QUOTED_PART.fullmatch(part):
        return quoted[1][1:-1].replace('""', '"'), quoted[2]
    value, _, names = part.rpartition("=")
    return ("", names) if value.startswith('"') else (value.strip(), names)  # a quote that is not closed


def admitted_roles(verified_email: str, values: Iterable[str], rules: AdmissionRules) -> tuple[str, ...]:
    """The roles of somebody whom nobody here has invited; none: they may not come in. ``verified_email`` is "" when the
    provider does not vouch for it."""
    roles = dict.fromkeys(role for value in values for role in rules.roles_by_value.get(value, ()))
    if not roles and verified_email.rpartition("@")[2].lower() in rules.domains:
        roles = dict.fromkeys(rules.domain_roles)
    return tuple(roles)


def claim_values(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """The texts at a claim: ``groups``, or ``realm_access.roles`` within documents. A claim of that very name, dots and
    all (as URLs are), goes first."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    values = found if isinstance(found, list) else [found]
    return tuple(value for value in values if isinstance(value, str))

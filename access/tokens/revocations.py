"""Which of our own tokens hold no longer. Every worker hears of it by the feed (rules 11, 21)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from access.tokens.identity import Identity

_SWEEP_OVER = 1024  # entries: what is over is looked for when as many have come as were left the last time


class Revocations:
    """Kept until the last token that an entry concerns has expired, so as many as there were within that time."""

    __slots__ = ("_roles", "_sessions", "_sweep_at", "_tokens", "_users", "is_known", "number")

    def __init__(self) -> None:
        self.number = 0  # of the latest that has been heard of
        self.is_known = False  # before anything has been heard, no token of ours can be trusted
        self._sessions: dict[str, float] = {}  # until
        self._tokens: dict[str, float] = {}
        self._users: dict[str, tuple[float, float]] = {}  # before, until
        self._roles: dict[str, tuple[float, float]] = {}
        self._sweep_at = _SWEEP_OVER

    def is_revoked(self, identity: Identity) -> bool:
        """Asked whenever a token of our own is recognised, remembered or not."""
        if identity.session_id in self._sessions or identity.token_id in self._tokens:
            return True
        of_user = self._users.get(identity.subject)
        if of_user is not None and identity.issued_at < of_user[0]:
            return True
        if not self._roles:
            return False
        of_roles = (self._roles[role] for role in identity.roles if role in self._roles)
        return any(identity.issued_at < before for before, _ in of_roles)

    def take(self, message: Mapping[str, Any]) -> None:
        """``{"type": "revocations", "number", "whole", "rows": [[what, value, before, until], … ]}``: ``what`` is
        session (value: the claim sid), token (jti), or user (sub) or role, whose tokens from before ``before`` do not
        hold; times are epoch seconds. ``whole``: these and no others, else these too."""
        if message["whole"]:
            self._sessions, self._tokens, self._users, self._roles = {}, {}, {}, {}
        for what, value, before, until in message["rows"]:
            if not value:
                continue  # a token without the claim is not meant
            if what == "session":
                self._sessions[value] = max(until, self._sessions.get(value, 0.0))
            elif what == "token":
                self._tokens[value] = max(until, self._tokens.get(value, 0.0))
            elif what in ("user", "role"):
                entries = self._users if what == "user" else self._roles
                known = entries.get(value, (0.0, 0.0))
                entries[value] = (max(before, known[0]), max(until, known[1]))
        self.number = message["number"]
        self.is_known = True

    def forget(self, now: float) -> None:
        """Drop what concerns only tokens that have expired by ``now`` (epoch seconds). Cheap while there is little."""
        if len(self) < self._sweep_at:
            return
        self._sessions = {value: until for value, until in self._sessions.items() if until > now}
        self._tokens = {value: until for value, until in self._tokens.items() if until > now}
        self._users = {value: known for value, known in self._users.items() if known[1] > now}
        self._roles = {value: known for value, known in self._roles.items() if known[1] > now}
        self._sweep_at = max(_SWEEP_OVER, 2 * len(self))

    def __len__(self) -> int:
        return len(self._sessions) + len(self._tokens) + len(self._users) + len(self._roles)

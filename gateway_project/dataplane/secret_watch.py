"""Looks at what the configuration's secret references stand for, so that an admin learns of one that stands for nothing
before a client does: among the node's problems and in the metrics. Names only, never values."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from access.tokens.records import IssuerRecord
from core.secret_references import SecretReferences, SecretUnavailable
from gateway_project.dataplane.snapshot import Problem
from routing.records import ServiceRecord
from routing.upstream_credentials import references_of

_NO_ISSUERS: Mapping[str, IssuerRecord] = {}
_AT_ONCE = 50  # references resolved in one look: each may read a small file


class SecretWatch:
    """`look` costs nothing while services stay as they are and all references are resolved."""

    def __init__(self, secrets: SecretReferences) -> None:
        self._secrets = secrets
        self._services: Mapping[str, ServiceRecord] = {}
        self._issuers: Mapping[str, IssuerRecord] = _NO_ISSUERS
        self._needed_by: dict[str, str] = {}  # reference → one of those that need it
        self._pending: list[str] = []
        self.problems: list[Problem] = []

    def look(
        self, services: Mapping[str, ServiceRecord], issuers: Mapping[str, IssuerRecord] = _NO_ISSUERS
    ) -> list[Problem]:
        """What cannot be resolved just now. Called once a second with the services and issuers in force."""
        if services is not self._services or issuers is not self._issuers:
            self._services, self._issuers = services, issuers
            self._needed_by = {
                reference: service.name
                for service in services.values()
                if service.credentials or service.upstream_tls is not None
                for reference in references_of(service)
            }
            self._needed_by |= {
                reference: issuer.name for issuer in issuers.values() for reference in issuer.rules.worker_secrets
            }
            self._secrets.forget(set(self._needed_by))
            self._pending = list(self._needed_by)
        failing = self._secrets.problems
        if self._pending or failing or self.problems:
            looked_at, self._pending = self._pending[:_AT_ONCE], self._pending[_AT_ONCE:]
            for reference in [*looked_at, *list(failing)[:_AT_ONCE]]:
                self._try(reference)
            self.problems = [self._problem(*each) for each in self._secrets.problems.items()]
        return self.problems

    def _try(self, reference: str) -> None:
        with suppress(SecretUnavailable):  # it stands among the problems then
            self._secrets.resolve(reference)

    def _problem(self, reference: str, reason: str) -> Problem:
        name = self._needed_by.get(reference, "")
        return {"kind": "secret", "id": reference, "name": name, "error": f"{reference} cannot be resolved: {reason}"}

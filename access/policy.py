"""What an application may call (rule 5), and what anybody may (rule 6)."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from access.records import ApplicationRecord, EntryRecord, Grant
from core.faults import PolicyDenied
from core.path_trie import PathTrie

_PublicEntry = tuple[str, EntryRecord, ApplicationRecord]  # the entry's id first: ids sort by age


def authorize(application: ApplicationRecord, destination: str, path: bytes, method: bytes) -> Grant:
    """What the request is held to. ``destination`` names the service or queue route, ``path`` is canonical.

    The most specific whitelist entry for the path decides; where every endpoint is allowed, it may still set terms of
    its own. Raises `PolicyDenied` ``service_not_allowed``,
    ``endpoint_not_whitelisted`` or ``method_not_whitelisted``.
    """
    if application.services is not None and destination not in application.services:
        raise service_not_allowed(application, destination)
    entries = application.whitelist.best(path) if application.whitelist is not None else ()
    for entry in entries:
        if entry.methods is None or method in entry.methods:
            return entry.grant
    if application.is_listed:
        raise _not_whitelisted(application, entries, path, method)
    return application.grant


def service_not_allowed(application: ApplicationRecord, destination: str) -> PolicyDenied:
    detail = f"The application {application.name} may not use the service {destination}."
    return PolicyDenied("service_not_allowed", detail)


def _not_whitelisted(
    application: ApplicationRecord, entries: tuple[EntryRecord, ...], path: bytes, method: bytes
) -> PolicyDenied:
    where = path[:500].decode("ascii", "replace")
    if not entries:
        detail = f"The application {application.name} has no whitelist entry for {where}."
        return PolicyDenied("endpoint_not_whitelisted", detail)
    allowed = sorted({name.decode() for entry in entries for name in entry.methods or ()})
    methods = ", ".join(allowed) or "no method"
    detail = (
        f"The application {application.name} may use {methods} at {where}, not {method.decode('ascii', 'replace')}."
    )
    return PolicyDenied("method_not_whitelisted", detail)


class PublicIndex:
    """The public entries of all applications. Immutable for readers; a change costs what changed."""

    __slots__ = ("_entries", "_is_empty")

    def __init__(self, entries: PathTrie[_PublicEntry] | None = None) -> None:
        self._entries: PathTrie[_PublicEntry] = entries if entries is not None else PathTrie()
        self._is_empty = not self._entries

    def find(
        self, path: bytes, method: bytes, destination: str, others: Iterable[str] = (), *, tenant_id: str
    ) -> tuple[ApplicationRecord, EntryRecord] | None:
        """The entry that lets an anonymous request pass, and whose it is; None when there is none.

        Among the entries of applications of the tenant that may use ``destination`` (and ``others``, where the answer
        is made of several services') the most specific ones decide, of these the oldest that takes the method.
        """
        if self._is_empty:
            return None
        for group in self._entries.groups(path):
            own = (item for item in group if item[2].tenant_id == tenant_id)
            deciding = [item for item in own if _serves(item[2], destination, others)]
            if deciding:
                accepting = [item for item in deciding if item[1].accepts(method)]
                if not accepting:
                    return None
                _, entry, application = min(accepting, key=itemgetter(0))
                return application, entry
        return None

    def changed(self, put: Iterable[ApplicationRecord], drop: Iterable[ApplicationRecord]) -> PublicIndex:
        """An index with ``drop`` taken out and ``put`` laid in; this one stays as it is."""
        puts = [item for application in put for item in _public_entries(application)]
        drops = [item for application in drop for item in _public_entries(application)]
        return PublicIndex(self._entries.changed(puts, drops)) if puts or drops else self

    def load(self, application: ApplicationRecord) -> None:
        """Lay in an application in place: only while nobody else sees this index yet."""
        for pattern, item in _public_entries(application):
            self._entries.load(pattern, item)
            self._is_empty = False


def _serves(application: ApplicationRecord, destination: str, others: Iterable[str]) -> bool:
    services = application.services
    return services is None or (destination in services and all(other in services for other in others))


def _public_entries(application: ApplicationRecord) -> list[tuple[bytes, _PublicEntry]]:
    return [(entry.path, (entry.id, entry, application)) for entry in application.entries if entry.is_public]

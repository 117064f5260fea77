"""Client certificates (A26): what is known of one, and whose requests come with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from access.policies import CertificateMatch
from access.records import ApplicationRecord


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate that has been verified. Times are epoch seconds.

    ``bucket`` is what its limits are counted under: its subject, so that a renewed certificate shares it with the one
    before; where it has none, its fingerprint. ``point`` is where it falls in weighted splits.
    """

    fingerprint: str  # SHA-256 of the DER form, hexadecimal
    subject: str  # as RFC 4514 writes it
    sans: frozenset[str]  # DNS names in lower case, URIs, e-mail addresses
    begins_at: float
    ends_at: float
    bucket: str
    point: int

    @classmethod
    def of(
        cls, fingerprint: str, subject: str, sans: Iterable[str], begins_at: float, ends_at: float
    ) -> ClientCertificate:
        name = sha256((subject or fingerprint).encode()).digest()
        bucket = f"certificate {name.hex()[:32]}"
        return cls(fingerprint, subject, frozenset(sans), begins_at, ends_at, bucket, int.from_bytes(name[-4:]))

    def is_valid(self, epoch: float) -> bool:
        return self.begins_at <= epoch < self.ends_at


_Entry = tuple[CertificateMatch, str]  # and the application's id
_Place = tuple[str, str]


class CertificateIndex:
    """Which application accepts a certificate: a look into a dictionary for each of its names."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[_Place, tuple[_Entry, ...]] | None = None) -> None:
        self._entries: dict[_Place, tuple[_Entry, ...]] = dict(entries or {})

    def __bool__(self) -> bool:
        return bool(self._entries)

    def find(self, certificate: ClientCertificate) -> str | None:
        """The id of the application whose policy names the certificate: by fingerprint, else by a SAN, else by its
        subject. Of several the oldest."""
        for places in (
            (("fingerprint", certificate.fingerprint),),
            tuple(("san", san) for san in certificate.sans),
            (("subject", certificate.subject),),
        ):
            found = [
                application_id
                for place in places
                for match, application_id in self._entries.get(place, ())
                if _fits(match, certificate)
            ]
            if found:
                return min(found)  # ids sort by age
        return None

    def changed(self, put: Iterable[ApplicationRecord], drop: Iterable[ApplicationRecord]) -> CertificateIndex:
        """An index with ``drop`` taken out and ``put`` laid in; this one stays as it is."""
        puts, drops = list(_entries(put)), list(_entries(drop))
        if not puts and not drops:
            return self
        changed = CertificateIndex(self._entries)
        entries = changed._entries
        for place, entry in drops:
            left = tuple(each for each in entries.get(place, ()) if each != entry)
            if left:
                entries[place] = left
            else:
                entries.pop(place, None)
        for place, entry in puts:
            entries[place] = (*entries.get(place, ()), entry)
        return changed

    def load(self, application: ApplicationRecord) -> None:
        """Lay in an application in place: only while nobody else sees this index yet."""
        for place, entry in _entries([application]):
            self._entries[place] = (*self._entries.get(place, ()), entry)


def _entries(applications: Iterable[ApplicationRecord]) -> Iterator[tuple[_Place, _Entry]]:
    for application in applications:
        policy = application.client_certificates
        for match in policy.accepted if policy is not None else ():
            yield _place(match), (match, application.id)


def _place(match: CertificateMatch) -> _Place:
    if match.fingerprint:
        return "fingerprint", match.fingerprint
    return ("san", _san(match.san)) if match.san else ("subject", match.subject)


def _fits(match: CertificateMatch, certificate: ClientCertificate) -> bool:
    """All members that say something."""
    return (
        (not match.fingerprint or match.fingerprint == certificate.fingerprint)
        and (not match.san or _san(match.san) in certificate.sans)
        and (not match.subject or match.subject == certificate.subject)
    )


def _san(name: str) -> str:
    """DNS names are the same in any case (RFC 5280 section 4.2.1.6); URIs and addresses are compared as they are."""
    return name if ":" in name or "@" in name else name.lower()

"""Keys whose digest was made with another pepper: known by argon2, which needs none, and given a digest of the present
one (K10).

argon2 takes 16 ms of a core by design. Whether a key is right, wrong, of a key that is revoked, or of none at all, it
is one query and one verification; whoever calls this bounds how much of it is done at once.
"""

from dataclasses import dataclass
from functools import lru_cache

from argon2.exceptions import Argon2Error, InvalidHashError
from django.utils import timezone

from core.revisions import Actor, locked, revision
from keys.credential import Digester, is_well_formed_with_any_prefix, lookup_id
from keys.making import hasher
from keys.models import ApiKey
from keys.pepper import pepper, pepper_id

_ACTOR = Actor("command", name="recognition")
_REASON = "The key's digest was made anew: KEY_PEPPER has changed."


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a key may be. ``row`` is None when it can be no key that works; ``digest`` is the key's by the present
    pepper."""

    row: ApiKey | None
    hash: str
    digest: str

    @property
    def is_current(self) -> bool:
        return self.row is not None and self.row.digest == self.digest


def is_needed() -> bool:
    """Whether there are live keys that only argon2 knows."""
    return ApiKey.objects.of_another_pepper(pepper_id()).exists()


def candidate(key: str) -> Candidate:
    """One query, whatever ``key`` is."""
    octets = key.encode("utf-8", "replace")
    is_key = is_well_formed_with_any_prefix(octets)
    row = ApiKey.objects.filter(lookup_id=lookup_id(key) if is_key else "").first()
    hash = row.hash if row is not None else _nobodys_hash()
    works = row is not None and _works(row)
    return Candidate(row if works else None, hash, Digester(pepper())(octets).hex())


def verifies(hash: str, key: str) -> bool:
    """The costly part: 16 ms of a core."""
    try:
        return hasher().verify(hash, key)
    except (Argon2Error, InvalidHashError):
        return False


def rebuild(found: Candidate) -> bool:
    """Give the verified key a digest of the present pepper, in a revision that takes it to the gateways. False: the key
    does not work any more."""
    assert found.row is not None  # nobody's cannot be verified
    with revision(actor=_ACTOR, source="command", reason=_REASON) as change:
        current = locked(found.row)
        if not _works(current):
            return False
        if current.digest != found.digest:
            current.digest = found.digest
            change.touch(current)
            ApiKey.objects.filter(pk=current.pk).update(pepper_id=pepper_id())
    return True


def recognise(key: str) -> bool:
    """All of it, one after the other. Whether the key works now and did not before."""
    found = candidate(key)
    is_right = verifies(found.hash, key)
    return is_right and found.row is not None and not found.is_current and rebuild(found)


def _works(key: ApiKey) -> bool:
    is_over = key.expires_at is not None and key.expires_at <= timezone.now()
    return key.status in (ApiKey.Status.ACTIVE, ApiKey.Status.DEPRECATED) and not is_over


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    """Verified in the place of a hash that is not there."""
    return hasher().hash("a key that nobody has")

"""Instances that register themselves with a service (R14): the credential, and what may be registered.

A registration is no configuration: heartbeats come every few seconds from every instance, so they make no revision and
no history. Creating the token that allows them is a revision of the service.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import DateTimeField, ExpressionWrapper
from django.db.models.functions import Now
from django.utils import timezone

from access.addresses import EgressPolicy
from core.faults import ClientFault
from core.policies import PolicyError, read
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors
from keys.pepper import pepper
from routing.checks import check_weight, target_url
from routing.compile import compile_service
from routing.health import is_address
from routing.models import DiscoveredTarget, RegistrationToken, ServiceConfig
from routing.policies import Discovery, Registration
from routing.records import ServiceRecord, TargetRecord

MOST_INSTANCES = 1000  # of one service
INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MIN_TTL_S = 5
_PREFIX = "prt_"
_NEVER = "0" * 64


# --- the credential ----------------------------------------------------------------------------------------------
def create_token(*, service: ServiceConfig, actor: Actor, source: str, reason: str = "") -> tuple[str, datetime]:
    """The service's new registration token, in the place of the one it had, and when it was made. It is shown this
    once: only a digest of it is kept."""
    token = _PREFIX + secrets.token_urlsafe(32)
    with revision(actor=actor, source=source, reason=reason or "registration token created") as change:
        current = locked(service)
        change.touch(current)
        made_at = timezone.now()
        values = {"digest": digest(token), "signing_key": signing_key(token), "created_at": made_at}
        RegistrationToken.objects.update_or_create(service=current, defaults=values)
    return token, made_at


def revoke_token(*, service: ServiceConfig, actor: Actor, source: str, reason: str = "") -> None:
    """Nobody can register any more; what is registered counts until it expires."""
    with revision(actor=actor, source=source, reason=reason or "registration token revoked") as change:
        current = locked(service)
        if not RegistrationToken.objects.filter(service=current).delete()[0]:
            raise ClientFault("not_found", f"{current.name} has no registration token.")
        change.touch(current)


def digest(token: str) -> str:
    """Keyed, as those of API keys are: who reads the database can try no tokens."""
    return hmac.digest(pepper(), b"registration token " + token.encode(), "sha256").hex()


def signing_key(token: str) -> str:
    """With which whoever holds the token signs what it registers in Redis. It opens nothing else."""
    return hmac.digest(token.encode(), b"portcullis redis registration", "sha256").hex()


def service_of(name: str, token: str) -> ServiceConfig | None:
    """The service, if the token is its. As much work is done for a service that does not exist."""
    service = ServiceConfig.objects.filter(name=name).select_related("registration_token").first()
    known = getattr(service, "registration_token", None) if service is not None else None
    is_right = hmac.compare_digest(digest(token), known.digest if known is not None else _NEVER)
    return service if is_right else None


def signature(key: str, *, service: str, instance: str, url: str, version: str, weight: int, expires: int) -> str:
    """Of a registration in Redis; ``expires`` is epoch seconds."""
    signed = "\n".join((service, instance, url, version, str(weight), str(expires)))
    return hmac.digest(bytes.fromhex(key), signed.encode(), "sha256").hex()


# --- what is registered ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Registered:
    instance: str
    version: str
    url: str
    weight: int
    ttl_s: int
    is_new: bool


def register(
    *, service: ServiceConfig, instance: str, url: Any, weight: Any = 100, ttl_s: Any = None, version: Any = ""
) -> Registered:
    """Register an instance, or renew what it has registered. Raises ClientFault: ``conflict`` where the service takes
    no registrations or has too many, ``invalid_field``."""
    policy = registration_of(service)
    if policy is None:
        raise ClientFault("conflict", f"{service.name} takes no registrations: its discovery says nothing of them.")
    ttl_s = policy.ttl_s if ttl_s is None else ttl_s
    record = ServiceRecord.from_wire(compile_service(service))
    version = version_of(record, version)
    errors = FieldErrors()
    if not INSTANCE.fullmatch(instance):
        errors.add(
            "instance", "An instance's name has 1 to 100 letters, digits and . _ - and begins with a letter or digit."
        )
    if version is None:
        errors.add("version", f"{service.name} has no such version; say which one the instance serves.")
    check_weight(weight, "weight", errors)
    if not isinstance(ttl_s, int) or isinstance(ttl_s, bool) or not MIN_TTL_S <= ttl_s <= policy.ttl_s:
        errors.add("ttlS", f"This is a whole number from {MIN_TTL_S} to {policy.ttl_s}, as the service allows.")
    errors.check("url", lambda: instance_url(url, _scheme_of(service, version)))
    errors.raise_any()
    assert version is not None
    is_new = _store(service, instance, version=version, url=url, weight=weight, ttl_s=ttl_s)
    return Registered(instance, version, url, weight, ttl_s, is_new)


def deregister(*, service: ServiceConfig, instance: str) -> None:
    """Raises ClientFault ``not_found``."""
    if not DiscoveredTarget.objects.filter(service=service, instance=instance).delete()[0]:
        raise ClientFault("not_found", f"{service.name} has no instance {instance[:100]!r}.")


def registration_of(service: ServiceConfig) -> Registration | None:
    if service.discovery is None:
        return None
    try:
        return read(Discovery, service.discovery).registration
    except PolicyError:
        return None


def version_of(service: ServiceRecord, name: Any) -> str | None:
    """The version that an instance serves; one that says nothing serves the one that answers where nobody names one."""
    if name:
        return name if name in service.versions else None
    if service.default is not None:
        return service.default.name
    return next(iter(service.versions)) if len(service.versions) == 1 else None


def _scheme_of(service: ServiceConfig, version: str | None) -> str:
    row = service.versions.filter(version=version).first()
    return (row.url if row is not None else service.default_url).partition(":")[0]


def instance_url(url: Any, version_scheme: str) -> None:
    """One that requests of a version with that scheme may be sent to. Raises ValueError."""
    if not isinstance(url, str) or len(url) > 300:
        raise ValueError("this is a URL of at most 300 characters")
    target_url(url)
    scheme, host, _ = TargetRecord.from_url(url)[0].origin
    if is_address(host) and not EgressPolicy(settings.EGRESS_ALLOW).permits(host):
        raise ValueError(f"the gateway may not connect to {host} (EGRESS_ALLOW)")
    if version_scheme == "https" and scheme != "https":
        raise ValueError("the version is served by https, so an instance of it must be too")


def _store(service: ServiceConfig, instance: str, *, ttl_s: int, **values: Any) -> bool:
    """By the database's clock, which is the one that all hosts share. Returns whether the instance is new."""
    expires_at = ExpressionWrapper(Now() + timedelta(seconds=ttl_s), DateTimeField())
    known = DiscoveredTarget.objects.filter(service=service, instance=instance)
    if known.update(expires_at=expires_at, **values):
        return False
    if DiscoveredTarget.objects.filter(service=service).count() >= MOST_INSTANCES:
        raise ClientFault("conflict", f"{service.name} has {MOST_INSTANCES} instances registered, which is the limit.")
    DiscoveredTarget.objects.bulk_create(
        [DiscoveredTarget(service=service, instance=instance, expires_at=expires_at, **values)],
        update_conflicts=True,
        unique_fields=["service", "instance"],
        update_fields=["expires_at", *values],
    )
    return True


def forget_expired() -> None:
    """Long after they have expired: an instance that comes back within a minute is still a known one."""
    DiscoveredTarget.objects.filter(expires_at__lt=Now() - timedelta(minutes=1)).delete()

"""What workers need to know of end users: the issuer that we are ourselves, and the limits of roles."""

from typing import Any

from django.conf import settings
from django.db.models import Q

from access.models import Application, EndUserRole
from access.signing.keys import LEEWAY_S, is_symmetric, published_keys
from access.signing.tokens import TYPE, audience
from access.tokens.records import OWN_DECRYPTION_KEY, OWN_ISSUER_ID, OWN_SECRET
from core.models import DEFAULT_TENANT

OWN_ISSUER_NAME = "end-users"
_HOUR_S = 3600


def end_user_application() -> Application | None:
    """The one that END_USER_APPLICATION names: its users' requests are its requests."""
    named: str = settings.END_USER_APPLICATION
    if not named:
        return None
    return Application.objects.filter(Q(pk=named) | Q(name=named)).order_by("pk").first()


def is_end_user_application(*names: str) -> bool:
    """Whether one of the ids or names is what END_USER_APPLICATION says."""
    return bool(settings.END_USER_APPLICATION) and settings.END_USER_APPLICATION in names


def own_issuers() -> list[dict[str, Any]]:
    """What `access.compile.compile_issuer` returns for the others. Public keys only: a shared secret, and what opens
    encrypted tokens, are in the workers' settings."""
    keys = published_keys()
    if not keys and not is_symmetric():
        return []  # nobody has logged in yet
    application = end_user_application()
    rules: dict[str, Any] = {
        "audiences": [audience()],
        "typ": TYPE,
        "leewayS": LEEWAY_S,
        "maxAgeS": settings.ACCESS_TOKEN_S,  # a shorter lifetime holds for tokens of before too
    }
    if is_symmetric():
        rules |= {"algorithms": [settings.JWT_ALGORITHM], "secret": OWN_SECRET}
    else:
        algorithms = {settings.JWT_ALGORITHM, *(key["alg"] for key in keys)}
        rules |= {"algorithms": sorted(algorithms), "jwks": {"keys": keys}}
    if settings.JWT_ENCRYPTION:
        rules["decryptionKey"] = OWN_DECRYPTION_KEY
    return [
        {
            "id": OWN_ISSUER_ID,
            "tenant": application.tenant_id if application is not None else DEFAULT_TENANT,
            "name": OWN_ISSUER_NAME,
            "issuer": settings.OWN_ISSUER,
            "application": application.pk if application is not None and application.is_active else None,
            "rules": rules,
            "own": True,
        }
    ]


def role_limits() -> list[dict[str, Any]]:
    """What `access.compile.compile_limit` returns for the others: a budget for each user of the role. None where end
    users cannot call anything: a gateway without limits has none to look for at each new path."""
    if not settings.END_USER_APPLICATION:
        return []
    return [
        {
            "id": role.pk,
            "tenant": role.tenant_id,
            "name": f"role-{role.name}"[:63],
            "rule": {
                "limit": role.requests_per_hour,
                "windowS": _HOUR_S,
                "burst": min(role.burst_limit or role.requests_per_hour or 1, role.requests_per_hour or 1),
                "per": ["user"],
                "roles": [role.name],
            },
        }
        for role in EndUserRole.objects.filter(requests_per_hour__isnull=False).order_by("pk")
    ]

"""The keys that sign our own tokens: made when needed, rotated, revoked, lost, and forgotten."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from access.end_users.compile import own_issuers, role_limits
from access.limits.records import LimitRecord
from access.models import EndUserRole, SigningKey
from access.signing.keys import (
    LEAD,
    keep_signing_keys,
    published_keys,
    revoke_signing_key,
    rotate_signing_keys,
    signer,
    state_of,
)
from access.signing.sealing import Unreadable, unseal
from access.signing.tokens import issue, read
from access.tokens.keys import published_keys as verifying
from access.tokens.parsing import SignedToken, parse
from access.tokens.records import IssuerRecord
from core.faults import ClientFault, PolicyDenied
from core.models import ConfigChange
from core.revisions import Actor
from tests.admin_api import problem_of

pytestmark = pytest.mark.django_db
ANN: dict[str, Any] = {"actor": Actor("user", "1", "ann"), "source": "api"}
KEYS = "/admin/access/signing-keys"


def token(**changes: Any) -> str:
    values: dict[str, Any] = {
        "subject": "usr_1", "session_id": "ses_1", "issued_at": int(timezone.now().timestamp()), "roles": ("staff",),
        "scopes": ("a:b",), "application": "app_1", "must_change_password": False,
    }  # fmt: skip
    return issue(**values | changes)


def states() -> list[str]:
    return [state_of(key) for key in SigningKey.objects.order_by("created_at", "id")]


def test_the_first_token_makes_the_first_key() -> None:
    assert published_keys() == own_issuers() == []
    assert read(token()).subject == "usr_1"
    assert states() == ["signing"]
    assert signer().key_id == SigningKey.objects.get().pk


def test_what_is_stored_and_recorded_of_a_key_is_public_or_sealed() -> None:
    private = str(signer().key.as_dict(private=True)["d"])
    row = SigningKey.objects.get()
    change = ConfigChange.objects.get(kind="signing_key")
    assert unseal(row.sealed, row.pk)["d"] == private
    assert private not in f"{row.sealed} {row.public_jwk} {change.after}" and "sealed" not in str(change.after)
    with pytest.raises(Unreadable):
        unseal(row.sealed, "sig_other")
    with pytest.raises(Unreadable):
        unseal("nonsense", row.pk)


def test_a_new_key_is_published_before_it_signs_and_the_old_one_until_its_tokens_are_gone(settings: Any) -> None:
    first = signer().key_id
    old = token()
    new = rotate_signing_keys(**ANN)
    assert (states(), signer().key_id) == (["signing", "waiting"], first)
    with pytest.raises(ClientFault):
        rotate_signing_keys(**ANN)
    SigningKey.objects.update(signs_from=timezone.now() - LEAD - timedelta(seconds=1))
    SigningKey.objects.filter(pk=first).update(retired_at=timezone.now() - timedelta(seconds=1))
    assert (states(), signer().key_id) == (["retired", "signing"], new.pk)
    assert {key["kid"] for key in published_keys()} == {first, new.pk}
    assert read(old).subject == "usr_1"
    keep_signing_keys()
    assert SigningKey.objects.count() == 2
    SigningKey.objects.filter(pk=first).update(
        retired_at=timezone.now() - timedelta(seconds=settings.ACCESS_TOKEN_S + 900)
    )
    keep_signing_keys()
    assert [key["kid"] for key in published_keys()] == [new.pk]


def test_a_key_that_has_signed_for_long_enough_is_followed_by_another(settings: Any) -> None:
    signer()
    keep_signing_keys()
    assert states() == ["signing"]
    SigningKey.objects.update(signs_from=timezone.now() - timedelta(days=settings.SIGNING_KEY_DAYS + 1))
    keep_signing_keys()
    keep_signing_keys()  # as another host would
    assert states() == ["signing", "waiting"]


def test_nothing_that_a_revoked_key_signed_counts() -> None:
    first, former = SigningKey.objects.get(pk=signer().key_id), token()
    revoke_signing_key(key=first, **ANN)
    assert states() == ["revoked", "signing"]
    with pytest.raises(PolicyDenied):
        read(former)
    assert read(token()).subject == "usr_1"


def test_with_another_secret_key_a_new_key_signs_and_living_tokens_count(settings: Any) -> None:
    former = token()
    settings.SECRET_KEY = "another secret key, which is long enough too"
    later = token()
    assert read(former).subject == read(later).subject == "usr_1"
    assert states() == ["retired", "signing"]


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "RS256", "PS256", "EdDSA"])
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_workers_verify_what_each_algorithm_signs(settings: Any, algorithm: str) -> None:
    settings.JWT_ALGORITHM = algorithm
    parsed = parse(token().encode())
    (wire,) = own_issuers()
    record = IssuerRecord.from_wire(wire)
    assert isinstance(parsed, SignedToken) and record.is_own
    assert (parsed.algorithm, parsed.typ, parsed.claims["iss"]) == (algorithm, "at+jwt", record.issuer)
    verifying(record.rules.jwks, record.rules.algorithms).verify(parsed)


CHANGED: dict[str, dict[str, Any]] = {
    "the issuer": {"OWN_ISSUER": "somebody"},
    "the audience": {"JWT_AUDIENCE": "somebody"},
    "the lifetime": {"ACCESS_TOKEN_S": -60},
    "encryption": {"JWT_ENCRYPTION": True},
}


@pytest.mark.parametrize("changes", CHANGED.values(), ids=CHANGED)
def test_tokens_of_other_settings_are_refused(settings: Any, changes: dict[str, Any]) -> None:
    former = token()
    for name, value in changes.items():
        setattr(settings, name, value)
    with pytest.raises(PolicyDenied):
        read(former)


def test_a_token_ends_with_its_time() -> None:
    now = int(timezone.now().timestamp())
    assert read(token(issued_at=now + 1)).issued_at == now + 1  # right after everything before was revoked
    for issued_at in (now + 60, now - 86_401):
        with pytest.raises(PolicyDenied):
            read(token(issued_at=issued_at))


def test_a_shared_secret_is_published_nowhere(settings: Any, api: APIClient) -> None:
    settings.JWT_ALGORITHM, settings.JWT_SECRET = "HS256", "a secret that is long enough for HS256"
    assert read(token()).subject == "usr_1"
    assert api.get("/.well-known/jwks.json").json() == {"keys": []}
    (wire,) = own_issuers()
    assert settings.JWT_SECRET not in str(wire)
    IssuerRecord.from_wire(wire)
    problem_of(api.post(f"{KEYS}/rotate", {}), 409, "conflict")


def test_admins_list_rotate_and_revoke(api: APIClient) -> None:
    signer()
    made = api.post(f"{KEYS}/rotate", {"atOnce": True})
    assert (made.status_code, made.json()["state"]) == (201, "signing")
    listed = api.get(KEYS).json()["keys"]
    assert [key["state"] for key in listed] == ["signing", "retired"]
    assert "sealed" not in str(listed) and '"d"' not in str(listed)
    assert api.post(f"{KEYS}/{made.json()['id']}/revoke").json()["state"] == "revoked"
    assert api.get(f"{KEYS}/{made.json()['id']}").json()["revokedAt"]


def test_limits_of_roles_compile_where_end_users_may_call(settings: Any) -> None:
    assert role_limits() == []
    settings.END_USER_APPLICATION = "shop"
    EndUserRole.objects.create(name="x" * 63, requests_per_hour=3, burst_limit=100)
    EndUserRole.objects.create(name="unlimited")
    records = {record.roles[0]: record for record in map(LimitRecord.from_wire, role_limits())}
    assert "unlimited" not in records
    assert {"passenger", "staff", "admin", "x" * 63} <= set(records)

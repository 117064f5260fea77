"""The first admin (rule 16): made once, whatever becomes of that admin later."""

import secrets
from dataclasses import dataclass, field

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from access.administration.users import ensure_account
from access.models import SetupCompletion
from core.faults import ClientFault
from core.revisions import Actor, revision
from core.validation import FieldErrors, is_storable, taken
from keys.services import IssuedKey, create_admin_key

FIRST_KEY_NAME = "Setup"


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    """``password`` signs in to the panel, as ``user.username``. Neither it nor the key can be shown again."""

    user: User
    issued: IssuedKey
    password: str = field(repr=False)


def is_set_up() -> bool:
    return SetupCompletion.objects.exists()


def mark_set_up() -> None:
    """Close ``POST /setup``: an admin was made in another way."""
    SetupCompletion.objects.get_or_create(id=1)


def complete_setup(*, name: str, email: str, source: str) -> FirstAdmin:
    """Make a superuser, named by the e-mail address, with an admin key and a random password.

    Raises ClientFault: ``conflict`` the second time, ``invalid_field``.
    """
    _validate(name, email)
    password = secrets.token_urlsafe(15)
    actor = Actor("setup", name=email)
    with revision(actor=actor, source=source, reason="First setup"):
        # Under the revision's lock, so that of two at once one sees the other's row.
        if is_set_up():
            raise ClientFault("conflict", "Setup is done already. `manage.py createadmin` recovers a lost admin.")
        mark_set_up()
        if User.objects.filter(username=email).exists():
            raise taken("email", f"A user named {email} exists already.")
        user = User.objects.create_superuser(email, email, password, first_name=name)
        ensure_account(user=user, name=name, actor=actor, source=source)
        issued = create_admin_key(user=user, name=FIRST_KEY_NAME, actor=actor, source=source)
    return FirstAdmin(user, issued, password)


def _validate(name: str, email: str) -> None:
    errors = FieldErrors()
    if not name.strip() or len(name) > 150 or not is_storable(name):
        errors.add("name", "A name has 1 to 150 characters.")
    try:
        validate_email(email)
    except ValidationError:
        errors.add("email", "This is no e-mail address.")
    if len(email) > 150:
        errors.add("email", "At most 150 characters.")
    errors.raise_any()

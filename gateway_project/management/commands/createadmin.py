"""``manage.py createadmin``: make an admin, or give a lost one a new password and a new admin key."""

import secrets
import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import validate_email
from django.db import DatabaseError, transaction

from access.administration.users import ensure_account
from core.revisions import Actor
from core.validation import is_storable
from keys.services import create_admin_key
from keys.setup import mark_set_up

_ACTOR = Actor("command", name="createadmin")


class Command(BaseCommand):
    help = "Make a superuser, or reset the password of an existing one. Setup counts as done from then on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--username", required=True)
        parser.add_argument("--email", default="", help="needed for a new user")
        parser.add_argument("--password-stdin", action="store_true", help="read the password; else one is made up")
        parser.add_argument("--key", action="store_true", help="also make an admin key")

    def handle(self, *, username: str, email: str, password_stdin: bool, key: bool, **_: Any) -> None:
        password = _read_password() if password_stdin else secrets.token_urlsafe(15)
        try:
            user = _admin(username, email, password)
            admin_key = _admin_key(user) if key else None
        except DatabaseError as error:
            raise CommandError(f"The database cannot be used: {str(error).partition(chr(10))[0]}") from None
        self.stdout.write(f"username  {user.get_username()}")
        if not password_stdin:
            self.stdout.write(f"password  {password}")
        if admin_key is not None:
            self.stdout.write(f"admin key {admin_key}")
        self.stdout.write("Neither can be shown again." if key or not password_stdin else "The password is set.")


def _read_password() -> str:
    """One line. Bytes that are no UTF-8 are an error or half surrogates, as the locale has it."""
    try:
        password = sys.stdin.readline().rstrip("\r\n")
        is_text = is_storable(password)
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        raise CommandError("The password must be UTF-8 text without NUL.")
    return password


@transaction.atomic
def _admin(username: str, email: str, password: str) -> User:
    user = _found(username) or User(username=username)
    user.email = email or user.email
    _check_user(user)
    _check_password(password, user)
    user.is_superuser = user.is_staff = user.is_active = True
    user.set_password(password)
    user.save()
    ensure_account(user=user, actor=_ACTOR, source="command", reason="createadmin")
    mark_set_up()
    return user


def _found(username: str) -> User | None:
    """In whatever case: the panel tells no two apart by it, and would let neither of them in."""
    found = list(User.objects.filter(username__iexact=username) if is_storable(username) else ())
    return next((user for user in found if user.username == username), found[0] if found else None)


def _check_user(user: User) -> None:
    """A user that exists already may have no address, as long as none is given."""
    try:
        user.clean_fields(exclude=["password"])
        if user.pk is None or user.email:
            validate_email(user.email)
        if user.email and User.objects.filter(email__iexact=user.email).exclude(pk=user.pk).exists():
            raise ValidationError("Another user has this address.")
    except ValidationError as error:
        raise CommandError(f"A user needs a valid --username and --email: {' '.join(error.messages)}") from None


def _check_password(password: str, user: User) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise CommandError(" ".join(error.messages)) from None


def _admin_key(user: User) -> str:
    return create_admin_key(user=user, name="createadmin", actor=_ACTOR, source="command").key

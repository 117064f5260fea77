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
from django.db import transaction

from core.revisions import Actor
from keys.services import create_admin_key
from keys.setup import mark_set_up


class Command(BaseCommand):
    help = "Make a superuser, or reset the password of an existing one. Setup counts as done from then on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--username", required=True)
        parser.add_argument("--email", default="", help="needed for a new user")
        parser.add_argument("--password-stdin", action="store_true", help="read the password; else one is made up")
        parser.add_argument("--key", action="store_true", help="also make an admin key")

    def handle(self, *, username: str, email: str, password_stdin: bool, key: bool, **_: Any) -> None:
        password = sys.stdin.readline().rstrip("\r\n") if password_stdin else secrets.token_urlsafe(15)
        with transaction.atomic():
            user = User.objects.filter(username=username).first() or _new_user(username, email)
            _check_password(password, user)
            user.email = email or user.email
            user.is_superuser = user.is_staff = user.is_active = True
            user.set_password(password)
            user.save()
            mark_set_up()
        self.stdout.write(f"username  {user.get_username()}")
        if not password_stdin:
            self.stdout.write(f"password  {password}")
        if key:
            self.stdout.write(f"admin key {_admin_key(user)}")
        self.stdout.write("Neither can be shown again." if key or not password_stdin else "The password is set.")


def _new_user(username: str, email: str) -> User:
    user = User(username=username, email=email)
    try:
        validate_email(email)
        user.clean_fields(exclude=["password"])
    except ValidationError as error:
        raise CommandError(f"A new user needs a valid --username and --email: {' '.join(error.messages)}") from None
    return user


def _check_password(password: str, user: User) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise CommandError(" ".join(error.messages)) from None


def _admin_key(user: User) -> str:
    actor = Actor("command", name="createadmin")
    return create_admin_key(user=user, name="createadmin", actor=actor, source="command").key

"""What allauth asks us: whose password is right, from where, where to next; how secrets of factors are kept."""

import base64
import hashlib
import secrets
from ipaddress import ip_address
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.auth_backends import AuthenticationBackend
from allauth.mfa.adapter import DefaultMFAAdapter
from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from django.utils.http import url_has_allowed_host_and_scheme

from access.callers import client_address
from admin_panel.sign_in import trail
from admin_panel.sign_in.brakes import LOCKOUT, account_of, attempt_at, remember_device, user_named

_BEGUN_WITH = "sign_in_began_with"  # in a session that waits for a second factor: the hash of the password's hash
HELD_BACK = "held_back"  # the code of the validation error; its parameter ``wait_s`` says for how long
_MISMATCH = "User name and password do not match an admin account."


def held_back(wait_s: int) -> ValidationError:
    minutes = -(-wait_s // 60)
    patience = "a minute" if minutes == 1 else f"{minutes} minutes"
    return ValidationError(
        f"Too many failed attempts. Wait {patience} and try again.", code=HELD_BACK, params={"wait_s": wait_s}
    )


def may_go_on(request: HttpRequest, user: User) -> bool:
    """Whether what somebody began to sign in with still counts, now that they show a second factor."""
    began_with = str(request.session.get(_BEGUN_WITH, ""))
    return user.is_active and user.is_staff and constant_time_compare(began_with, user.get_session_auth_hash())


class AccountAdapter(DefaultAccountAdapter):
    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": _MISMATCH,
        "username_password_mismatch": _MISMATCH,
        "incorrect_password": "This is not your password.",
        "enter_current_password": "This is not your present password.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """An active member of staff whose password is right. Every other answer is the same, after the same work."""
        typed = str(credentials.get("username") or credentials.get("email") or "")
        known = user_named(typed)
        attempt = attempt_at(request, account_of(typed, known))
        wait_s = LOCKOUT.begin(attempt)
        if wait_s:
            trail.refused(request, "too many failed attempts", name=typed, held_back=True)
            raise held_back(wait_s)
        AuthenticationBackend.unstash_authenticated_user()
        # By its one name, so that exactly one hash is made for every attempt, whoever is known by whatever.
        user = authenticate(request, username=known.username if known else typed, password=credentials["password"])
        AuthenticationBackend.unstash_authenticated_user()  # one that is not active is none
        if not isinstance(user, User) or not user.is_staff:
            trail.refused(request, "wrong name or password", name=typed)
            return None
        LOCKOUT.succeeded(attempt)
        return user

    def pre_login(self, request: HttpRequest, user: User, **options: Any) -> HttpResponse | None:
        response: HttpResponse | None = super().pre_login(request, user, **options)
        if response is None and not user.is_staff:
            response = self.respond_user_inactive(request, user)
        if response is None:
            request.session[_BEGUN_WITH] = user.get_session_auth_hash()
        return response

    def post_login(self, request: HttpRequest, user: User, **options: Any) -> HttpResponse:
        response: HttpResponse = super().post_login(request, user, **options)
        remember_device(request, response, user)
        return response

    def add_message(
        self, request: HttpRequest, level: int, message_template: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Greetings and farewells say nothing that the page does not."""
        if message_template and message_template.endswith(("logged_in.txt", "logged_out.txt")):
            return
        super().add_message(request, level, message_template, *args, **kwargs)

    def get_client_ip(self, request: HttpRequest) -> str:
        """An address that a column for addresses takes."""
        address = client_address(request)
        try:
            return str(ip_address(address))
        except ValueError:
            return "0.0.0.0"  # noqa: S104 - nobody's

    def is_safe_url(self, url: str | None) -> bool:
        """Only an address of this panel: anything else leads home."""
        host = {self.request.get_host()}
        is_ours = url_has_allowed_host_and_scheme(url, host, require_https=self.request.is_secure())
        return bool(url) and is_ours and str(url).startswith("/")

    def get_password_change_redirect_url(self, request: HttpRequest) -> str:
        return "/account"


class FactorAdapter(DefaultMFAAdapter):
    """Secrets of authenticator apps and recovery codes are encrypted with a key made of SECRET_KEY."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": "This code is not right, or was used already.",
    }

    def encrypt(self, text: str) -> str:
        return _cipher().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        try:
            return _cipher().decrypt(encrypted_text.encode()).decode()
        except (
            InvalidToken
        ):  # SECRET_KEY is another. No code fits a secret that nobody knows; an admin resets the factor
            return base64.b32encode(secrets.token_bytes(20)).decode()

    def get_totp_label(self, user: User) -> str:
        return user.get_username()

    def _get_user_identifier(self, user: User) -> str:
        return user.get_username()

    def generate_authenticator_name(self, user: User, type: str) -> str:
        return "Passkey"

    def get_public_key_credential_rp_entity(self) -> dict[str, str]:
        return {**super().get_public_key_credential_rp_entity(), "name": settings.SERVICE_NAME}


def _cipher() -> Fernet:
    key = hashlib.sha256(b"portcullis.second-factors:" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))

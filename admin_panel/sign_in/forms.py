"""allauth's forms with our field names and our brakes."""

from typing import Any

from allauth.account.forms import LoginForm as AllauthLoginForm
from allauth.core import context
from allauth.mfa.adapter import get_adapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from django.core.cache import cache

from admin_panel.sign_in import trail
from admin_panel.sign_in.adapters import held_back
from admin_panel.sign_in.brakes import LOCKOUT, attempt_at, key_of

_USED_CODES_S = 180  # longer than any code is right


class LoginForm(AllauthLoginForm):
    """``username`` is a user name or an e-mail address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        login, password = self.fields["login"], self.fields["password"]
        login.label, login.max_length = "User name or e-mail", 254
        login.widget.attrs = {
            "class": "form-control",
            "autocomplete": "username webauthn",
            "autocapitalize": "none",
            "spellcheck": "false",
            "maxlength": "254",
        }
        password.widget.attrs = {"class": "form-control", "autocomplete": "current-password"}
        password.help_text = ""

    def add_prefix(self, field_name: str) -> str:
        return "username" if field_name == "login" else str(super().add_prefix(field_name))


class _BrakedCode:
    """Guesses at codes are counted like those at passwords, apart from them, and no code counts twice."""

    user: Any

    def clean_code(self) -> str:
        request = context.request
        attempt = attempt_at(request, key_of(self.user.pk), step="/code")
        wait_s = LOCKOUT.begin(attempt)
        if wait_s:
            trail.refused(request, "too many wrong codes", user=self.user, held_back=True)
            raise held_back(wait_s)
        code: str = super().clean_code()  # type: ignore[misc]
        if not cache.add(f"used-code:{self.user.pk}:{code.strip()}", 1, _USED_CODES_S):
            raise get_adapter().validation_error("incorrect_code")
        LOCKOUT.succeeded(attempt)
        return code


class SecondFactorForm(_BrakedCode, AuthenticateForm):
    pass


class ConfirmFactorForm(_BrakedCode, ReauthenticateForm):
    pass

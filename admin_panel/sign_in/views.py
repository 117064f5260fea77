"""allauth's views in the panel's pages. What they do is allauth's; how they look and answer is ours."""

from typing import Any, ClassVar

from allauth.account import views as account
from allauth.account.internal.flows.logout import logout
from allauth.mfa.base import views as factor
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes import views as codes
from allauth.mfa.totp import views as totp
from allauth.mfa.webauthn import views as passkey
from allauth.socialaccount.adapter import get_adapter as single_sign_on
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import NON_FIELD_ERRORS
from django.forms import CheckboxInput
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from admin_panel.pages import PanelRequest, page
from admin_panel.sign_in.adapters import HELD_BACK, may_go_on
from admin_panel.sign_in.forgotten import TokenForm
from admin_panel.sign_in.notices import gate_notice


class Refusing:
    """A refused form is 422; one whose sender must wait is 429 and says for how long."""

    request: HttpRequest

    def form_invalid(self, form: Any) -> HttpResponse:
        response: HttpResponse = super().form_invalid(form)  # type: ignore[misc]
        if isinstance(response, HttpResponseRedirect):
            return response
        wait_s = wait_of(form)
        response.status_code = 429 if wait_s else 422
        if wait_s:
            response.headers["Retry-After"] = str(wait_s)
        return response


def wait_of(form: Any) -> int:
    """Seconds that a form's errors say its sender must wait; 0: none."""
    for errors in form.errors.as_data().values():
        for error in errors:
            if error.code == HELD_BACK:
                return int(error.params["wait_s"])
    return 0


class AtTheGate(Refusing):
    """Before somebody is in: a card on an empty page."""

    def get_context_data(self, **given: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**given)  # type: ignore[misc]
        form = context.get("form")
        error = " ".join(form.errors.get(NON_FIELD_ERRORS, form.errors.get("code", []))) if form is not None else ""
        providers = single_sign_on().list_providers(self.request) if settings.SOCIALACCOUNT_PROVIDERS else []
        ways = [{"name": each.name, "url": each.get_login_url(self.request)} for each in providers]
        return {
            **context,
            "environment": settings.SERVICE_NAME,
            "error": error,
            "providers": ways,
            "mails": settings.MAILS,
        }


_WORDS = {
    "password": ("Password", ""),
    "oldpassword": ("Present password", ""),
    "password1": (
        "New password",
        "12 characters or more, no common one, and not like your name. Several words do well.",
    ),
    "password2": ("New password, once more", ""),
    "passwordless": (
        "Sign in with it alone",
        "No name and no password any more: the device asks for your fingerprint, face or PIN. Without this it is a "
        "second factor after the password.",
    ),
    "name": ("Name", ""),
}


class InTheShell(Refusing):
    """Once somebody is in: a page of the panel."""

    template_name: str
    more: ClassVar[dict[str, Any]] = {}

    def render_to_response(self, context: dict[str, Any], **_: Any) -> HttpResponse:
        return page(self.request, self.template_name, {**context, **self.more})  # type: ignore[arg-type]

    def get_form(self, form_class: Any = None) -> Any:
        return worded(super().get_form(form_class))  # type: ignore[misc]


def worded(form: Any) -> Any:
    """A form of allauth's with our words and classes."""
    for field in form.fields.values():
        is_check = isinstance(field.widget, CheckboxInput)
        field.widget.attrs["class"] = "form-check-input" if is_check else "form-control"
        field.widget.attrs.pop("placeholder", None)
    for name, (label, hint) in _WORDS.items():
        if name in form.fields:
            form.fields[name].label, form.fields[name].help_text = label, hint
    return form


# --- in and out ----------------------------------------------------------------------------------------------------
class SignIn(AtTheGate, account.LoginView):
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.user.is_authenticated and not request.user.is_staff:  # rights taken: no page would have them
            logout(request, show_message=False)
        response: HttpResponseBase = super().dispatch(request, *args, **kwargs)
        return response

    def form_invalid(self, form: Any) -> HttpResponse:
        form.data = {name: value for name, value in form.data.items() if name != "password"}
        if not form.non_field_errors():
            form.add_error(None, "User name and password do not match an admin account.")
        return super().form_invalid(form)


class SecondFactor(AtTheGate, factor.AuthenticateView):
    template_name = "account/second_factor.html"

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not may_go_on(request, self.stage.login.user):  # deactivated, or given another password meanwhile
            aborted: HttpResponse = self.stage.abort()
            return aborted
        response: HttpResponse = super().post(request, *args, **kwargs)
        return response

    def get_context_data(self, **given: Any) -> dict[str, Any]:
        kinds = set(Authenticator.objects.filter(user=self.stage.login.user).values_list("type", flat=True))
        has = {"has_code": bool(kinds - {Authenticator.Type.WEBAUTHN}), "has_passkey": "webauthn" in kinds}
        return {**super().get_context_data(**given), **has}

    def form_invalid(self, form: Any) -> HttpResponse:
        response: HttpResponse = self.render_to_response(self.get_context_data())
        wait_s = wait_of(form)
        response.status_code = 429 if wait_s else 422
        if wait_s:
            response.headers["Retry-After"] = str(wait_s)
        return response


class PasskeySignIn(passkey.LoginWebAuthnView):
    def form_invalid(self, form: Any) -> HttpResponse:
        messages.error(self.request, "This passkey is not known here.")
        return redirect("account_login")


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request, show_message=False)
    return redirect(settings.LOGIN_URL)


@never_cache
@require_safe
def turned_away(request: HttpRequest) -> HttpResponse:
    """Somebody is who they say, and may not come in."""
    return gate_notice(request, "You have no access here", "Ask an administrator of this gateway for an invitation.")


@never_cache
@require_safe
def cancelled(request: HttpRequest) -> HttpResponse:
    return gate_notice(request, "Sign-in was cancelled", "Nothing has happened. You can try again.", status=200)


# --- a forgotten password ------------------------------------------------------------------------------------------
class WhereMailsAre:
    """Nothing here where there is no mail server."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not settings.MAILS:
            raise Http404
        response: HttpResponseBase = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
        return response


@method_decorator(never_cache, name="dispatch")
class Forgotten(WhereMailsAre, AtTheGate, account.PasswordResetView):
    template_name = "account/forgotten.html"


@never_cache
@require_safe
def link_sent(request: HttpRequest) -> HttpResponse:
    """The same for every address."""
    return gate_notice(request, "Look into your mail", _LINK_SENT, status=200)


_LINK_SENT = (
    "If this is the address of an administrator who signs in by password, a link is on its way. It works once, within "
    "an hour. Another one is sent after five minutes at the earliest."
)
_LINK_OVER = "It was used, is too old, or your password has changed since. Ask for another one."


@never_cache
@sensitive_post_parameters("code")
@require_http_methods(["GET", "HEAD", "POST"])
def password_link(request: HttpRequest) -> HttpResponse:
    """Takes the code, which a script finds behind the # of the link, into the session, and leads on.

    allauth would take it from the path and lead on by a redirect; but after a click in somebody's mail browsers send no
    SameSite=Strict cookie along with that.
    """
    if not settings.MAILS:
        raise Http404
    if request.method != "POST":
        return render(request, "account/password_link.html", {"environment": settings.SERVICE_NAME})
    uid, _, key = request.POST.get("code", "").strip().partition("-")
    if not TokenForm(data={"uidb36": uid, "key": key}).is_valid():
        return _link_over(request)
    request.session[account.INTERNAL_RESET_SESSION_KEY] = key
    return redirect("account_reset_password_from_key", uidb36=uid, key=NewPassword.reset_url_key)


def _link_over(request: HttpRequest) -> HttpResponse:
    return gate_notice(request, "This link opens nothing any more", _LINK_OVER, status=404)


@method_decorator([never_cache, sensitive_post_parameters("password1", "password2")], name="dispatch")
class NewPassword(WhereMailsAre, AtTheGate, account.PasswordResetFromKeyView):
    """The password alone: whoever has a second factor is asked for it when they sign in."""

    template_name = "account/new_password.html"

    def get_form(self, form_class: Any = None) -> Any:
        return worded(super().get_form(form_class))

    def render_to_response(self, context: dict[str, Any], **_: Any) -> HttpResponse:
        if context.get("token_fail"):
            return _link_over(self.request)
        response: HttpResponse = super().render_to_response(context)
        return response


@never_cache
@require_safe
def password_changed(request: HttpRequest) -> HttpResponse:
    """Somebody has a new password, and signs in with it."""
    return gate_notice(request, "Your password is new", "Everywhere else you have been signed out.", status=200)


# --- proving once more who one is, before what matters ------------------------------------------------------------
class Confirm(InTheShell, account.ReauthenticateView):
    template_name = "account/confirm.html"
    more = {"way": "password"}


class ConfirmByCode(InTheShell, factor.ReauthenticateView):
    template_name = "account/confirm.html"
    more = {"way": "code"}


class ConfirmByPasskey(InTheShell, passkey.ReauthenticateWebAuthnView):
    template_name = "account/confirm.html"
    more = {"way": "passkey"}

    def form_invalid(self, form: Any) -> HttpResponse:
        messages.error(self.request, "This passkey is not yours.")
        return HttpResponseRedirect(self.passthrough_next_url(reverse("mfa_reauthenticate_webauthn")))


# --- password, authenticator app, passkeys, recovery codes ---------------------------------------------------------
class ChangePassword(InTheShell, account.PasswordChangeView):
    template_name = "account/password.html"


class AddApp(InTheShell, totp.ActivateTOTPView):
    template_name = "account/app_add.html"


class RemoveApp(InTheShell, totp.DeactivateTOTPView):
    template_name = "account/app_remove.html"


class AddPasskey(InTheShell, passkey.AddWebAuthnView):
    template_name = "account/passkey_add.html"

    def get_initial(self) -> dict[str, Any]:
        return {"passwordless": True}


class RenamePasskey(InTheShell, passkey.EditWebAuthnView):
    template_name = "account/passkey_rename.html"


class RemovePasskey(InTheShell, passkey.RemoveWebAuthnView):
    template_name = "account/passkey_remove.html"


class RecoveryCodes(InTheShell, codes.ViewRecoveryCodesView):
    template_name = "account/recovery_codes.html"


class NewRecoveryCodes(InTheShell, codes.GenerateRecoveryCodesView):
    template_name = "account/recovery_codes_new.html"


@never_cache
@require_safe
def second_factor_wanted(request: PanelRequest) -> HttpResponse:
    """Where everybody is led who must have a second factor and has none."""
    return render(request, "account/second_factor_wanted.html", {"environment": settings.SERVICE_NAME})

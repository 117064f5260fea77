"""Addresses of signing in, under the names that allauth knows them by."""

from typing import Any

from django.conf import settings
from django.urls import URLPattern, path
from django.views.generic import RedirectView

from admin_panel.hiding import EVERY_ADMIN
from admin_panel.pages import for_anybody, guarded
from admin_panel.sign_in import views

_to_account = RedirectView.as_view(pattern_name="panel:account")


def _mine(route: str, view: Any, name: str) -> URLPattern:
    """A page about somebody's own account."""
    return path(route, guarded(view, EVERY_ADMIN), name=name)


urlpatterns = [
    path("login", views.SignIn.as_view(template_name="account/login.html"), name="account_login"),
    path("login/code", views.SecondFactor.as_view(), name="mfa_authenticate"),
    path("login/passkey", views.PasskeySignIn.as_view(), name="mfa_login_webauthn"),
    path("login/no-access", views.turned_away, name="account_inactive"),
    path("login/cancelled", views.cancelled, name="socialaccount_login_cancelled"),
    path("login/forgotten", views.Forgotten.as_view(), name="account_reset_password"),
    path("login/forgotten/sent", views.link_sent, name="account_reset_password_done"),
    path("login/password", views.password_link, name="password_link"),
    path(
        "login/password/<slug:uidb36>",
        views.NewPassword.as_view(),
        {"key": views.NewPassword.reset_url_key},  # no other: what opens it stands in the session
        name="account_reset_password_from_key",
    ),
    path("login/password-changed", views.password_changed, name="account_reset_password_from_key_done"),
    path("logout", views.sign_out, name="account_logout"),
    _mine("account/second-factor", views.second_factor_wanted, "second_factor_wanted"),
    _mine("account/confirm", views.Confirm.as_view(), "account_reauthenticate"),
    _mine("account/confirm/code", views.ConfirmByCode.as_view(), "mfa_reauthenticate"),
    _mine("account/confirm/passkey", views.ConfirmByPasskey.as_view(), "mfa_reauthenticate_webauthn"),
    _mine("account/password", views.ChangePassword.as_view(), "account_change_password"),
    _mine("account/app", views.AddApp.as_view(), "mfa_activate_totp"),
    _mine("account/app/remove", views.RemoveApp.as_view(), "mfa_deactivate_totp"),
    _mine("account/passkeys/new", views.AddPasskey.as_view(), "mfa_add_webauthn"),
    _mine("account/passkeys/<int:pk>", views.RenamePasskey.as_view(), "mfa_edit_webauthn"),
    _mine("account/passkeys/<int:pk>/remove", views.RemovePasskey.as_view(), "mfa_remove_webauthn"),
    _mine("account/recovery-codes", views.RecoveryCodes.as_view(), "mfa_view_recovery_codes"),
    _mine("account/recovery-codes/new", views.NewRecoveryCodes.as_view(), "mfa_generate_recovery_codes"),
    # What allauth leads back to.
    _mine("account/factors", _to_account, "mfa_index"),
    _mine("account/passkeys", _to_account, "mfa_list_webauthn"),
    _mine("account/set-password", _to_account, "account_set_password"),
]

if settings.OIDC_APP:
    from admin_panel.sign_in.openid_connect import views as openid_connect

    urlpatterns += openid_connect.urlpatterns
if settings.SAML_APP:
    from admin_panel.sign_in import saml

    urlpatterns += saml.urlpatterns

for pattern in urlpatterns:
    if not hasattr(pattern.callback, "permission"):
        for_anybody(pattern.callback, "everybody, to sign in or out")

NAMES = frozenset(pattern.name for pattern in urlpatterns)
# What somebody may see who must add a second factor first.
WITHOUT_FACTOR = NAMES - {"account_change_password", "mfa_deactivate_totp", "mfa_remove_webauthn", "mfa_edit_webauthn"}

"""The provider as allauth knows it: what we ask it for, and what we make of its answer."""

import hashlib
import secrets
from typing import Any

from allauth.account.models import EmailAddress
from allauth.socialaccount.providers.base.constants import AuthProcess
from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from allauth.socialaccount.providers.openid_connect.provider import OpenIDConnectProvider
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.http import HttpRequest, HttpResponse

from admin_panel.sign_in.openid_connect.id_token import BadIdToken, verified_claims
from admin_panel.sign_in.outgoing import EgressSession


class CheckedAdapter(OpenIDConnectOAuth2Adapter):
    @property
    def openid_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().openid_config
        wanted = self.get_provider().app.settings["issuer"]
        if str(config.get("issuer", "")).rstrip("/") != wanted.rstrip("/"):
            raise OAuth2Error("the provider calls itself by another name than OIDC_ISSUER")
        return config

    def complete_login(self, request: HttpRequest, app: Any, token: Any, **kwargs: Any) -> Any:
        id_token = kwargs["response"].get("id_token")
        if not isinstance(id_token, str):
            raise OAuth2Error("the provider gave no ID token; is openid among OIDC_SCOPES?")
        config = self.openid_config
        with EgressSession() as session:
            keys = session.get(config["jwks_uri"]).json()
        try:
            claims = verified_claims(id_token, keys, issuer=config["issuer"], client_id=app.client_id)
        except BadIdToken as error:
            raise OAuth2Error(f"the ID token cannot be used: {error}") from error
        told = self._fetch_user_info(token.token) if "userinfo_endpoint" in config else {}
        if told and told.get("sub") != claims["sub"]:  # section 5.3.2
            raise OAuth2Error("the provider's userinfo speaks of somebody else than the ID token")
        return self.get_provider().sociallogin_from_response(request, {"userinfo": {**claims, **told, **_kept(claims)}})


def _kept(claims: dict[str, Any]) -> dict[str, Any]:
    """What only the signed token may say."""
    return {name: claims[name] for name in ("iss", "sub", "aud", "exp", "nonce") if name in claims}


class PanelOpenIdProvider(OpenIDConnectProvider):
    oauth2_adapter_class = CheckedAdapter

    def redirect(
        self, request: HttpRequest, process: str, next_url: str | None = None, data: Any = None, **_: Any
    ) -> HttpResponse:
        """Nothing that the asking page says about scopes and parameters counts."""
        nonce = secrets.token_urlsafe(24)
        parameters = {**self.get_auth_params(), "nonce": nonce}
        response: HttpResponse = super().redirect(
            request, AuthProcess.LOGIN, next_url, data, auth_params=parameters, nonce=nonce
        )
        return response

    def extract_uid(self, data: dict[str, Any]) -> str:
        """One for each issuer and subject, so that another provider's subjects are other people."""
        told = data["userinfo"]
        return hashlib.sha256(f"{told['iss']}\n{told['sub']}".encode()).hexdigest()

    def extract_email_addresses(self, data: dict[str, Any]) -> list[EmailAddress]:
        told = data["userinfo"]
        email = told.get("email")
        if not isinstance(email, str) or not email:
            return []
        return [EmailAddress(email=email, verified=told.get("email_verified") in (True, "true"), primary=True)]

    def extract_extra_data(self, data: dict[str, Any]) -> dict[str, Any]:
        return {name: data["userinfo"].get(name) for name in ("iss", "sub", "email", "name")}

    def sociallogin_from_response(self, request: HttpRequest, response: dict[str, Any]) -> Any:
        login = super().sociallogin_from_response(request, response)
        login.claims = response["userinfo"]  # in memory alone
        return login


provider_classes = [PanelOpenIdProvider]

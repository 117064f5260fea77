"""To the OpenID provider and back."""

from typing import Any

from allauth.socialaccount.helpers import render_authentication_error
from allauth.socialaccount.models import SocialApp
from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView, OAuth2LoginView
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from requests import RequestException

from admin_panel.sign_in.leaving import leaving
from admin_panel.sign_in.openid_connect.provider import CheckedAdapter


def login(request: HttpRequest, provider_id: str) -> HttpResponse:
    adapter = CheckedAdapter(request, provider_id)
    return leaving(request, _answer(request, adapter, OAuth2LoginView))


def callback(request: HttpRequest, provider_id: str) -> HttpResponse:
    adapter = CheckedAdapter(request, provider_id)
    issuer = request.GET.get("iss")  # RFC 9207: which provider answers
    if issuer is not None and issuer.rstrip("/") != _provider(adapter).app.settings["issuer"].rstrip("/"):
        error = OAuth2Error("the answer came from another provider")
        return _failed(request, adapter, error)
    return _answer(request, adapter, OAuth2CallbackView)


def _answer(request: HttpRequest, adapter: CheckedAdapter, view: Any) -> HttpResponse:
    _provider(adapter)
    try:
        response: HttpResponse = view.adapter_view(adapter)(request)
    except (
        OAuth2Error,
        RequestException,
        ValueError,
        KeyError,
    ) as error:  # an answer that is no JSON, or lacks members
        return _failed(request, adapter, error)
    return response


def _provider(adapter: CheckedAdapter) -> Any:
    try:
        return adapter.get_provider()
    except SocialApp.DoesNotExist:
        raise Http404 from None


def _failed(request: HttpRequest, adapter: CheckedAdapter, error: Exception) -> HttpResponse:
    response: HttpResponse = render_authentication_error(request, adapter.get_provider(), exception=error)
    return response


urlpatterns = [
    path("login/oidc", login, {"provider_id": "oidc"}, name="openid_connect_login"),
    path("login/oidc/callback", callback, {"provider_id": "oidc"}, name="openid_connect_callback"),
]

"""To a SAML identity provider and back: allauth's views, without single logout."""

from typing import Any

from allauth.socialaccount.providers.saml import views
from allauth.socialaccount.providers.saml.utils import build_saml_config
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import re_path
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from onelogin.saml2.errors import OneLogin_Saml2_Error
from onelogin.saml2.settings import OneLogin_Saml2_Settings

from admin_panel.sign_in.leaving import leaving


class Login(views.LoginView):
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return leaving(request, super().dispatch(request, *args, **kwargs))


class Answer(views.ACSView):
    """The provider's form comes from another site, so without cookies: what it says is kept for the page after."""

    @method_decorator(csrf_exempt)
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method != "POST":
            raise Http404
        return leaving(request, super().dispatch(request, *args, **kwargs))


class Metadata(views.MetadataView):
    def dispatch(self, request: HttpRequest, organization_slug: str) -> HttpResponse:
        provider = self.get_provider(organization_slug)
        config = build_saml_config(request, provider.app.settings, organization_slug)
        del config["sp"]["singleLogoutService"]
        try:
            document = OneLogin_Saml2_Settings(settings=config, sp_validation_only=True).get_sp_metadata()
        except OneLogin_Saml2_Error as error:
            raise Http404 from error
        return HttpResponse(document, content_type="application/samlmetadata+xml")


def _no_single_logout(request: HttpRequest, organization_slug: str) -> HttpResponse:
    raise Http404


_SLUG = r"^login/(?P<organization_slug>saml)"
urlpatterns = [
    re_path(rf"{_SLUG}$", Login.as_view(), name="saml_login"),
    re_path(rf"{_SLUG}/acs$", Answer.as_view(), name="saml_acs"),
    re_path(rf"{_SLUG}/finish$", views.FinishACSView.as_view(), name="saml_finish_acs"),
    re_path(rf"{_SLUG}/metadata$", Metadata.as_view(), name="saml_metadata"),
    re_path(rf"{_SLUG}/logout$", _no_single_logout, name="saml_sls"),
]

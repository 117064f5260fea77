"""How the OpenAPI document describes the ways to authenticate."""

from typing import Any

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension


class AdminKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "keys.authentication.AdminKeyAuthentication"
    name = ["adminKey", "bearer"]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, Any]]:
        return [{"adminKey": []}, {"bearer": []}]  # either; one object with both would mean both at once

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, Any]]:
        return [
            {"type": "apiKey", "in": "header", "name": settings.API_KEY_HEADER, "description": "An admin key"},
            {"type": "http", "scheme": "bearer", "description": "An admin key as bearer token"},
        ]


class PanelSessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "keys.authentication.PanelSessionAuthentication"
    name = "panelSession"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.SESSION_COOKIE_NAME,
            "description": "A panel session, with X-CSRFToken on writes; on the panel's own port only",
        }

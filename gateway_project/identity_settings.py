"""Settings of signing in to the panel: identity providers, sessions, mail. Read by `gateway_project.settings`."""

import re
import ssl
from base64 import b64decode
from email.utils import getaddresses
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from access.single_sign_on import AdmissionRules, parse_roles
from gateway_project import environment as env

_DOMAIN = r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+"
_HTTP = ("https", "http")
MAIL_SCHEMES = ("smtp", "smtps", "smtp+tls", "smtp+ssl", "filemail", "consolemail")


def oidc_app() -> dict[str, Any] | None:
    """What allauth calls an app: the OpenID provider, or None. ``OAUTH2_…`` is another name for ``OIDC_…``."""
    issuer = _either_url("OIDC_ISSUER", "OAUTH2_ISSUER")
    if not issuer:
        return None
    client_id = env.text("OIDC_CLIENT_ID") or env.text("OAUTH2_CLIENT_ID")
    if not client_id:
        raise ImproperlyConfigured("OIDC_ISSUER needs OIDC_CLIENT_ID: what the provider calls this gateway.")
    endpoints = {
        "authorization_endpoint": _either_url("OIDC_AUTH_ENDPOINT", "OAUTH2_AUTH_ENDPOINT"),
        "token_endpoint": _either_url("OIDC_TOKEN_ENDPOINT", "OAUTH2_TOKEN_ENDPOINT"),
        "userinfo_endpoint": _either_url("OIDC_USERINFO_ENDPOINT", "OAUTH2_USERINFO_ENDPOINT"),
    }
    return {
        "provider_id": "oidc",
        "name": _name("OIDC_NAME", "single sign-on"),
        "client_id": client_id,
        "secret": env.text("OIDC_CLIENT_SECRET") or env.text("OAUTH2_CLIENT_SECRET"),
        "settings": {
            "server_url": issuer.rstrip("/"),
            "issuer": issuer,
            "oauth_pkce_enabled": True,
            "scope": env.text("OIDC_SCOPES", "openid profile email").split(),
            "openid_configuration_overrides": {name: url for name, url in endpoints.items() if url},
            "roles_claim": env.text("OIDC_ROLES_CLAIM", "groups"),
            "verified_email": _domains("OIDC_VERIFIED_DOMAINS"),
        },
    }


def saml_app() -> dict[str, Any] | None:
    entity_id = env.text("SAML_IDP_ENTITY_ID")
    if not entity_id:
        return None
    sso_url = env.url("SAML_IDP_SSO_URL", schemes=_HTTP, example="https://idp.example.com/saml/sso")
    certificate = env.checked("SAML_IDP_CERTIFICATE", env.text("SAML_IDP_CERTIFICATE"), _check_certificate)
    if not sso_url or not certificate:
        raise ImproperlyConfigured("SAML_IDP_ENTITY_ID needs SAML_IDP_SSO_URL and SAML_IDP_CERTIFICATE.")
    email = env.text("SAML_EMAIL_ATTRIBUTE")
    mapping = {"email": [email]} if email else {"email": list(_EMAIL_ATTRIBUTES)}
    return {
        "provider_id": "saml",
        "name": _name("SAML_NAME", "SAML"),
        "client_id": "saml",
        "settings": {
            "idp": {"entity_id": entity_id, "sso_url": sso_url, "x509cert": certificate},
            "sp": {"entity_id": env.text("SAML_ENTITY_ID")},
            "attribute_mapping": {**mapping, **_OTHER_ATTRIBUTES},
            "roles_claim": env.text("SAML_ROLES_ATTRIBUTE", "groups"),
            "verified_email": _domains("SAML_VERIFIED_DOMAINS"),
            "advanced": {
                "strict": True,
                "want_assertion_signed": True,
                "want_attribute_statement": False,
                "want_name_id": True,
                "allow_single_label_domains": True,
                "reject_deprecated_algorithm": True,
                "reject_idp_initiated_sso": True,
            },
        },
    }


_EMAIL_ATTRIBUTES = (
    "email",
    "mail",
    "urn:oid:0.9.2342.19200300.100.1.3",
    "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/emailaddress",
)
_OTHER_ATTRIBUTES = {
    "uid": ["urn:oasis:names:tc:SAML:attribute:subject-id"],
    "first_name": ["givenName", "urn:oid:2.5.4.42"],
    "last_name": ["sn", "urn:oid:2.5.4.4"],
    "username": ["uid", "urn:oid:0.9.2342.19200300.100.1.1"],
}


def admission() -> AdmissionRules:
    """Whom identity providers may bring in who is not known here, and as what. Nobody, unless settings say so."""
    roles = env.checked("SSO_ROLES", env.text("SSO_ROLES"), parse_roles)
    domains = frozenset(_domains("SSO_DOMAINS"))
    domain_roles = tuple(env.words("SSO_DOMAIN_ROLES", form=r"[\w.-]{1,63}", says="the name of a role"))
    if bool(domains) != bool(domain_roles):
        raise ImproperlyConfigured("SSO_DOMAINS and SSO_DOMAIN_ROLES go together: one of them is not set.")
    return AdmissionRules(parse_roles(roles), domains, domain_roles)


def mail() -> dict[str, Any]:
    """Django's settings of an EMAIL_URL; empty when there is none."""
    url = env.url("EMAIL_URL", schemes=MAIL_SCHEMES, example="smtp+tls://user:password@mail.example.com:587")
    if not url:
        return {}
    config = environ.Env.email_url_config(url)
    return {name: value for name, value in config.items() if name.startswith("EMAIL_")} | {"EMAIL_TIMEOUT": 10}


def mail_from() -> str:
    return str(env.checked("EMAIL_FROM", env.text("EMAIL_FROM", "portcullis@localhost"), _check_sender))


def _check_sender(value: str) -> None:
    found = getaddresses([value])
    is_one_line = not re.search(r"[\x00-\x1f\x7f]", value)
    if not is_one_line or len(found) != 1 or not re.fullmatch(r"[^@\s<>(),;:]+@[^@\s<>(),;:]+", found[0][1]):
        raise ValueError("it must be one address, such as gateway@example.com or Gateway <gateway@example.com>.")


def _check_certificate(value: str) -> None:
    """One certificate, as python3-saml takes it: with its first and last line or without."""
    body = value.strip().removeprefix("-----BEGIN CERTIFICATE-----").removesuffix("-----END CERTIFICATE-----")
    try:
        encoded = b64decode("".join(body.split()), validate=True)
        if value:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=encoded)
    except (ValueError, ssl.SSLError):
        raise ValueError("it must be one certificate in PEM.") from None


def panel_url() -> str:
    url = env.url("PANEL_URL", schemes=_HTTP, example="https://gateway.example.com")
    if url and (urlsplit(url).path.strip("/") or urlsplit(url).query):
        raise ImproperlyConfigured("PANEL_URL is malformed: the panel has no path, only scheme, host and port.")
    return url.rstrip("/")


def _either_url(name: str, other: str) -> str:
    example = "https://login.example.com"
    return env.url(name, schemes=_HTTP, example=example) or env.url(other, schemes=_HTTP, example=example)


def _name(setting: str, default: str) -> str:
    return env.text(setting, default, form=r"[^\x00-\x1f\x7f]{1,40}", says="one line of at most 40 characters")


def _domains(setting: str) -> list[str]:
    return [domain.lower() for domain in env.words(setting, form=_DOMAIN, says="a domain such as example.com")]

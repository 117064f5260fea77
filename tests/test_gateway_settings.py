"""Whatever is wrong with the settings, the start ends with one sentence that names the setting and tells no secret."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from django.core.exceptions import ImproperlyConfigured

from tests.saml_idp import certificate_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing set but what a start needs."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", "postgres://gate:hush@db.example.com:6543/config")
    monkeypatch.setenv("SECRET_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("VAR_DIR", str(tmp_path))


def load() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "gateway_project/settings.py"))


MALFORMED = [
    ("EMBEDDED", "sure"),
    ("PORT", "abc"),
    ("PORT", "0"),
    ("PORT", "1" * 5000),
    ("BIND", "nonsense"),
    ("PANEL_BIND", "999.1.1.1"),
    ("METRICS_BIND", "example.com"),
    ("WORKERS", "two"),
    ("LOG_LEVEL", "loud"),
    ("ADMIN_API_ON_GATEWAY_PORT", "enabled"),
    ("DOCS_ON_GATEWAY_PORT", "flase"),
    ("PANEL_HTTPS", "maybe"),
    ("REQUIRE_MFA", "perhaps"),
    ("OIDC_ISSUER", "login.example.com"),
    ("OIDC_ISSUER", "https://login.example.com"),  # without a client id
    ("SAML_IDP_ENTITY_ID", "https://idp.example.com"),  # without the rest
    ("SSO_ROLES", "admins"),
    ("SSO_ROLES", '"cn=ops,dc=example'),
    ("EMAIL_FROM", "nobody"),
    ("EMAIL_FROM", "one@example.com, two@example.com"),
    ("EMAIL_FROM", "Gate <gate@example.com>\nBcc: eve@example.com"),
    ("SSO_DOMAINS", "example.com"),  # without roles
    ("SSO_DOMAINS", "everybody"),
    ("EMAIL_URL", "mail.example.com"),
    ("PANEL_URL", "https://example.com/panel"),
    ("SERVICE_NAME", "two\nlines"),
    ("NODE_NAME", "two\nlines"),
    ("NODE_NAME", "x" * 181),
    ("API_KEY_HEADER", "X API Key"),
    ("API_KEY_HEADER", "X_API_Key"),
    ("API_KEY_HEADER", "authorization"),
    ("API_KEY_HEADER", "Ключ"),
    ("API_KEY_PREFIX", "ключ_"),
    ("API_KEY_PREFIX", "x" * 300),
    ("CORS_ORIGINS", "example.com"),
    ("CORS_ORIGINS", "https://example.com/path"),
    ("TRUSTED_PROXIES", "proxy"),
    ("EGRESS_ALLOW", "10.0.0.0/99"),
    ("MAX_REQUEST_BODY_SIZE", "10MB"),
    ("ALLOWED_HOSTS", "https://panel.example.com"),
    ("EVENTS_QUEUE", "a,b"),
    ("TLS_PORT", "443"),  # without a certificate
    ("TLS_CERTIFICATE", "gateway.crt"),  # without its key
    ("TLS_MIN_VERSION", "1.1"),
    ("HTTPS_REDIRECT", "true"),  # without a port to lead to
    ("HSTS", "forever"),
    ("PROXY_PROTOCOL", "on"),  # without anybody to believe
    ("REDIS_URL", "redis"),
    ("RATE_LIMIT_REDIS_WAIT_MS", "0"),
    ("RATE_LIMIT_MODE", "sometimes"),
    ("RATE_LIMIT_LEGACY_HEADERS", "perhaps"),
]
# These may hold a password, which is "hush" here.
MALFORMED_SECRETS = [
    ("SECRET_KEY", "hush"),
    ("KEY_PEPPER", "hush"),
    ("SETUP_TOKEN", "hush"),
    ("SETUP_TOKEN", "hush hush hush hush"),
    ("METRICS_TOKEN", "hush\nhush"),
    ("DATABASE_URL", "hush"),
    ("DATABASE_URL", "mysql://gate:hush@db/config"),
    ("DATABASE_URL", "postgres://gate:hush@db:port/config"),
    ("DATABASE_URL", "postgres://gate:hush@[::1/config"),
    ("DATABASE_URL", "postgres://gate:hush@db"),
    ("DATABASE_URL", "postgres://"),
    ("DATABASE_LISTEN_URL", "host=db password=hush"),
    ("REDIS_URL", "redis://:hu#sh@cache:6379"),
    ("REDIS_URL", "redis://:hush@cache:6379/limits"),
    ("CELERY_BROKER_URL", "amqp://gate:hush@broker:port//"),
    ("CELERY_BROKER_URL", "ftp://gate:hush@broker"),
    ("DATABASE_LISTEN_URL", "postgresqll://gate:hush@db/config"),
    ("CELERY_BROKER_URL", "amqp://gate:fine@one:5672//;gate:hush@two"),
]


@pytest.mark.parametrize(("name", "value"), [*MALFORMED, *MALFORMED_SECRETS])
def test_a_malformed_setting_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured) as caught:
        load()
    sentence = str(caught.value)
    assert sentence.startswith(f"{name} ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "hush" not in sentence


CERTIFICATE = certificate_of(ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize("value", [CERTIFICATE, "".join(CERTIFICATE.split("\n")[1:-2])], ids=["PEM", "Base64 alone"])
def test_the_certificate_of_a_saml_provider_is_taken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    name_saml_provider(monkeypatch, value)
    assert load()["SAML_APP"]["settings"]["idp"]["x509cert"] == value


@pytest.mark.parametrize(
    "value",
    ["MIIB", "/etc/idp.pem", CERTIFICATE[:200], CERTIFICATE * 2, CERTIFICATE.replace("\n", "\\n"), "-----BEGIN"],
    ids=["no certificate", "a path", "half of one", "two", "escaped line ends", "its beginning"],
)
def test_what_is_no_certificate_of_a_saml_provider_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    name_saml_provider(monkeypatch, value)
    with pytest.raises(ImproperlyConfigured, match=r"^SAML_IDP_CERTIFICATE is malformed: it must be one certificate"):
        load()


def name_saml_provider(monkeypatch: pytest.MonkeyPatch, certificate: str) -> None:
    monkeypatch.setenv("SAML_IDP_ENTITY_ID", "https://idp.example.com")
    monkeypatch.setenv("SAML_IDP_SSO_URL", "https://idp.example.com/sso")
    monkeypatch.setenv("SAML_IDP_CERTIFICATE", certificate)


@pytest.mark.parametrize("sender", ["gate@gateway", "The Gateway <gate@example.com>", "gate@example.com"])
def test_mails_may_be_from_a_name_and_an_address(monkeypatch: pytest.MonkeyPatch, sender: str) -> None:
    monkeypatch.setenv("EMAIL_FROM", sender)
    assert load()["DEFAULT_FROM_EMAIL"] == sender


@pytest.mark.parametrize("name", ["SECRET_KEY", "DATABASE_URL"])
def test_what_has_no_default_must_be_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    with pytest.raises(ImproperlyConfigured, match=f"^{name} is not set"):
        load()


def test_an_empty_setting_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _ in MALFORMED:
        monkeypatch.setenv(name, "")
    settings = load()
    assert (settings["PORT"], settings["BIND"], settings["API_KEY_HEADER"]) == (4200, "0.0.0.0", "X-API-Key")


def test_a_secret_may_stand_in_a_file_whose_last_newline_is_not_part_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a token of enough length\n".replace(" ", "-"))
    (tmp_path / "url").write_text("postgres://gate:hush@db.example.com/config\n")
    monkeypatch.setenv("SETUP_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    settings = load()
    assert settings["SETUP_TOKEN"] == "a-token-of-enough-length"
    assert settings["DATABASES"]["default"]["NAME"] == "config"


def test_a_secret_may_begin_with_a_dollar_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "$" + "x" * 40)
    assert load()["SECRET_KEY"] == "$" + "x" * 40


def test_a_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_PEPPER_FILE", "/nonexistent/pepper")
    with pytest.raises(ImproperlyConfigured, match=r"^KEY_PEPPER_FILE /nonexistent/pepper cannot be read: No such"):
        load()


def test_workers_reach_control_whatever_hosts_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", "panel.example.com")
    assert load()["ALLOWED_HOSTS"] == ["panel.example.com", "control"]


def test_two_gateways_on_one_host_are_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load()["NODE_NAME"]
    monkeypatch.setenv("PORT", "4300")
    assert load()["NODE_NAME"] == f"{first}:4300"


def test_the_secret_key_of_the_embedded_mode_is_made_once_and_private(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDDED", "true")
    monkeypatch.setenv("SECRET_KEY", "")
    monkeypatch.setenv("VAR_DIR", str(tmp_path / "new"))
    key = load()["SECRET_KEY"]
    assert len(key) >= 32
    assert load()["SECRET_KEY"] == key
    assert [(path.name, path.stat().st_mode & 0o777) for path in (tmp_path / "new").iterdir()] == [
        ("secret_key", 0o600)
    ]


def test_a_command_ends_with_code_2_and_the_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "rungateway"],
        cwd=ROOT,
        env={**os.environ, "PORT": "many"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "portcullis: PORT must be a whole number, not 'many'.\n",
    )

"""All settings, read from the environment once. A missing or malformed one stops the start with a sentence naming it.

Every secret may also be given as ``NAME_FILE``, the path of a file that holds it.
"""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from access.cors import CorsPolicy
from gateway_project import environment as env

BASE_DIR = Path(__file__).resolve().parent.parent

EMBEDDED = env.flag("EMBEDDED", default=False)  # set by --embedded
TESTING = env.flag("PORTCULLIS_TESTING", default=False)
VAR_DIR = Path(env.text("VAR_DIR", str(BASE_DIR / "var"))).resolve()


def _secret_key() -> str:
    key = env.text("SECRET_KEY")
    if not key and EMBEDDED:
        return _kept_secret_key()
    if not key:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set. Set it (or SECRET_KEY_FILE) to at least 32 random characters."
        )
    if len(key) < 32:
        raise ImproperlyConfigured("SECRET_KEY is too short: it needs at least 32 characters.")
    return key


def _kept_secret_key() -> str:
    """Made once, whole or not at all, and the same for all that start at once."""
    path = VAR_DIR / "secret_key"
    _make_var_dir()
    try:
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=VAR_DIR) as draft:  # of mode 0600
                draft.write(secrets.token_urlsafe(48))
                draft.flush()
                with suppress(FileExistsError):  # another process was faster
                    os.link(draft.name, path)
        return path.read_text().strip()
    except OSError as error:
        raise ImproperlyConfigured(f"VAR_DIR cannot keep {path}: {error.strerror}.") from None


def _make_var_dir() -> None:
    try:
        VAR_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(f"VAR_DIR {VAR_DIR} cannot be made: {error.strerror}.") from None


def _key_header() -> str:
    name = env.text("API_KEY_HEADER", "X-API-Key", form=r"[A-Za-z][A-Za-z0-9-]{0,63}", says="a field name without _")
    if name.lower() in ("authorization", "connection", "content-length", "content-type", "cookie", "host", "origin"):
        raise ImproperlyConfigured(f"API_KEY_HEADER cannot be {name}, which has a meaning of its own.")
    return name


# --- who and where -------------------------------------------------------------------------------------------------
SERVICE_NAME = env.text("SERVICE_NAME", "portcullis", form=r"[^\x00-\x1f\x7f]{1,100}", says="one line of text")
BIND = env.address("BIND", "127.0.0.1" if EMBEDDED else "0.0.0.0")  # noqa: S104
PORT = env.number("PORT", 4200, 1, 65535)
PANEL_BIND = env.address("PANEL_BIND", "127.0.0.1")
ADMIN_PORT = env.number("ADMIN_PORT", 4201, 1, 65535)
METRICS_BIND = env.address("METRICS_BIND", "127.0.0.1")
METRICS_PORT = env.number("METRICS_PORT", 9090, 1, 65535)
WORKERS = env.number("WORKERS", 1 if EMBEDDED else max(os.cpu_count() or 1, 1), 1, 512)
# Two gateways on one host and one database must not take each other's heartbeats for their own.
_node_name = os.uname().nodename if PORT == 4200 else f"{os.uname().nodename}:{PORT}"
NODE_NAME = env.text("NODE_NAME", _node_name, form=r"[\w.:-]{1,180}", says="letters, digits and . _ : -")
LOG_LEVEL = env.text("LOG_LEVEL", "INFO").upper()
if LOG_LEVEL not in ("DEBUG", "INFO", "WARNING", "ERROR"):
    raise ImproperlyConfigured(f"LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR, not {LOG_LEVEL!r}.")
ACCESS_LOG = env.text("ACCESS_LOG", str(VAR_DIR / "access.log"))  # "-" is standard output
ADMIN_API_ON_GATEWAY_PORT = env.flag("ADMIN_API_ON_GATEWAY_PORT", default=True)
DOCS_ON_GATEWAY_PORT = env.flag("DOCS_ON_GATEWAY_PORT", default=EMBEDDED)

# --- secrets -------------------------------------------------------------------------------------------------------
SECRET_KEY = _secret_key()
KEY_PEPPER = env.text(
    "KEY_PEPPER", form=r"(?s).{16,}", says="16 or more random characters"
)  # default: derived from SECRET_KEY (keys.pepper)
SETUP_TOKEN = env.text("SETUP_TOKEN", form=r"[!-~]{16,}", says="16 or more characters of ASCII without spaces")
METRICS_TOKEN = env.text("METRICS_TOKEN", form=r"[!-~]([ -~]*[!-~])?", says="printable ASCII")

# --- clients -------------------------------------------------------------------------------------------------------
API_KEY_HEADER = _key_header()
API_KEY_PREFIX = env.text("API_KEY_PREFIX", "km_", form=r"[\w.-]{1,32}", says="1 to 32 letters, digits and . _ -")
API_KEY_DEFAULT_DAYS = env.number("API_KEY_DEFAULT_DAYS", 365, 1, 36500)
CORS_ORIGINS = env.checked("CORS_ORIGINS", env.words("CORS_ORIGINS"), CorsPolicy)
TRUSTED_PROXIES = env.networks("TRUSTED_PROXIES", [])
RATE_LIMIT_REQUESTS = env.number("RATE_LIMIT_REQUESTS", 1000, 1, 10**9)
RATE_LIMIT_WINDOW = env.number("RATE_LIMIT_WINDOW", 3600, 1, 31 * 86400)
AUTH_FAILURES_PER_MINUTE = env.number("AUTH_FAILURES_PER_MINUTE", 60, 1, 10**6)  # per address (IPv6: per /64)
VALIDATIONS_PER_MINUTE = env.number("VALIDATIONS_PER_MINUTE", 300, 1, 10**6)  # POST /validate, per address
MAX_REQUEST_BODY_SIZE = env.number("MAX_REQUEST_BODY_SIZE", 10 * 1024 * 1024, 0, 2**40)
MAX_HEADER_SIZE = env.number("MAX_HEADER_SIZE", 8192, 256, 65536)

# --- upstreams -----------------------------------------------------------------------------------------------------
REQUEST_TIMEOUT = env.number("REQUEST_TIMEOUT", 30, 1, 3600)
EGRESS_ALLOW = env.networks("EGRESS_ALLOW", ["127.0.0.0/8", "::1/128"] if EMBEDDED else [])
MAX_CONFIG_AGE = env.number("MAX_CONFIG_AGE", 24 * 3600, 1, 366 * 86400)

# --- database ------------------------------------------------------------------------------------------------------
_database_url = env.text("DATABASE_URL")
if not _database_url:
    if not EMBEDDED:
        raise ImproperlyConfigured(
            "DATABASE_URL is not set. Give a PostgreSQL URL, or start with --embedded for SQLite under VAR_DIR."
        )
    _make_var_dir()
    _database_url = f"sqlite:///{VAR_DIR / 'portcullis.sqlite3'}"
_database = env.database("DATABASE_URL", _database_url)
if _database["ENGINE"].endswith("sqlite3"):
    _database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",  # the deferred default fails under concurrent writers
        "timeout": 10,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
    }
else:
    _database.setdefault("OPTIONS", {}).setdefault("connect_timeout", 3)
    _database |= {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
if TESTING:
    _database["TEST"] = {"NAME": env.text("TEST_DATABASE_NAME", f"test_portcullis_{os.getpid()}")}
DATABASES = {"default": _database}
# Default: as DATABASE_URL says.
DATABASE_LISTEN_URL = env.url(
    "DATABASE_LISTEN_URL", schemes=("postgres", "postgresql"), example="postgres://user:password@host:5432/name"
)
REDIS_URL = env.url("REDIS_URL", schemes=("redis", "rediss", "unix"), example="redis://host:6379/0")
CELERY_BROKER_URL = env.url(
    "CELERY_BROKER_URL",
    "filesystem://" if EMBEDDED else "",
    schemes=("amqp", "amqps", "pyamqp", "redis", "rediss", "redis+socket", "sentinel", "filesystem", "memory"),
    example="amqp://user:password@host:5672// or redis://host:6379/0",
)
# One for each gateway on a shared broker.
EVENTS_QUEUE = env.text("EVENTS_QUEUE", "gateway.events", form=r"[\w.:-]{1,120}", says="letters, digits and . _ : -")
OUTBOX_LIMIT = env.number("OUTBOX_LIMIT", 100_000, 1, 10**9)  # tasks that may wait to be published

# --- Django --------------------------------------------------------------------------------------------------------
DEBUG = False
# Any by default: the panel checks Origin and cookies.
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", ["*"], form=r"\*|\.?[\w.-]+|\[[0-9a-f:.]+\]", says="a host name or *")
ALLOWED_HOSTS.append("control")  # how workers name it when they hand a request over
ROOT_URLCONF = "gateway_project.urls"
ASGI_APPLICATION = "gateway_project.control.application"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_htmx",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "core",
    "access",
    "keys",
    "queues",
    "routing",
    "admin_panel",
    "gateway_project",
]
MIDDLEWARE = [
    "core.middleware.ControlMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "admin_panel.middleware.PanelMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
# OWASP's parameters for argon2id, used for API keys.
ARGON2_TIME_COST = env.number("ARGON2_TIME_COST", 2, 1, 100)
ARGON2_MEMORY_KIB = env.number("ARGON2_MEMORY_KIB", 19 * 1024, 8, 4 * 1024 * 1024)
ARGON2_PARALLELISM = env.number("ARGON2_PARALLELISM", 1, 1, 64)
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.text("STATIC_ROOT", str(BASE_DIR / "staticfiles")))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
LOGIN_URL = "/login"
SESSION_COOKIE_NAME = "portcullis_session"
CSRF_COOKIE_NAME = "portcullis_csrf"
PANEL_HTTPS = env.flag("PANEL_HTTPS", default=False)  # the panel is reached over TLS
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PANEL_HTTPS
if PANEL_HTTPS:
    # TLS ends before the panel, which learns of it from a header; a client that forges it harms only itself.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 365 * 86400
# W008, a redirect to HTTPS: whoever ends TLS redirects. W005, W021: HSTS for other hosts of a domain is theirs to say.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]
SESSION_COOKIE_SAMESITE = "Strict"
CSRF_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "core.api_problems.csrf_failure"
APPEND_SLASH = False
REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "keys.authentication.AdminKeyAuthentication",
        "keys.authentication.PanelSessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["core.permissions.MayAdminister"],
    "DEFAULT_PARSER_CLASSES": ["core.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "core.parsers.AlwaysJSON",
    "DEFAULT_SCHEMA_CLASS": "core.schema.AdminSchema",
    "DEFAULT_METADATA_CLASS": "core.parsers.NoMetadata",
    "EXCEPTION_HANDLER": "core.api_problems.exception_handler",
    "NON_FIELD_ERRORS_KEY": "body",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Portcullis admin API",
    "DESCRIPTION": "Services, routes, applications and keys of the gateway. Every write is one revision.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "core.schema.add_problems"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

"""All settings, read from the environment once. A missing or malformed one stops the start with a sentence naming it.

Every secret may also be given as ``NAME_FILE``, the path of a file that holds it.
"""

import os
import secrets
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.FileAwareEnv()

EMBEDDED: bool = env.bool("EMBEDDED", default=False)  # set by --embedded
TESTING: bool = env.bool("PORTCULLIS_TESTING", default=False)
VAR_DIR = Path(env.str("VAR_DIR", default=str(BASE_DIR / "var"))).resolve()


def _setting(read: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return read(name, *args, **kwargs)
    except ImproperlyConfigured:
        raise
    except Exception as error:
        raise ImproperlyConfigured(f"{name} is malformed: {error}") from None


def _number(name: str, default: int, minimum: int, maximum: int) -> int:
    value = int(_setting(env.int, name, default=default))
    if not minimum <= value <= maximum:
        raise ImproperlyConfigured(f"{name} must be from {minimum} to {maximum}, not {value}.")
    return value


def _networks(name: str, default: list[str]) -> list[str]:
    values = [value.strip() for value in _setting(env.list, name, default=default) if value.strip()]
    for value in values:
        try:
            ip_network(value, strict=False)
        except ValueError:
            raise ImproperlyConfigured(f"{name} holds {value!r}, which is no address or CIDR network.") from None
    return values


def _private_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(f"VAR_DIR {path} cannot be made: {error.strerror}.") from None


def _secret_key() -> str:
    key: str = env.str("SECRET_KEY", default="")
    if key:
        if len(key) < 32:
            raise ImproperlyConfigured("SECRET_KEY is too short: it needs at least 32 characters.")
        return key
    if not EMBEDDED:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set. Set it (or SECRET_KEY_FILE) to at least 32 random characters."
        )
    _private_dir(VAR_DIR)
    path = VAR_DIR / "secret_key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(48))
    return path.read_text().strip()


# --- who and where -------------------------------------------------------------------------------------------------
SERVICE_NAME: str = env.str("SERVICE_NAME", default="portcullis")
BIND: str = env.str("BIND", default="127.0.0.1" if EMBEDDED else "0.0.0.0")  # noqa: S104
PORT = _number("PORT", 4200, 1, 65535)
PANEL_BIND: str = env.str("PANEL_BIND", default="127.0.0.1")
ADMIN_PORT = _number("ADMIN_PORT", 4201, 1, 65535)
METRICS_BIND: str = env.str("METRICS_BIND", default="127.0.0.1")
METRICS_PORT = _number("METRICS_PORT", 9090, 1, 65535)
WORKERS = _number("WORKERS", 1 if EMBEDDED else max(os.cpu_count() or 1, 1), 1, 512)
NODE_NAME: str = env.str("NODE_NAME", default=os.uname().nodename)
LOG_LEVEL: str = env.str("LOG_LEVEL", default="INFO").upper()
if LOG_LEVEL not in ("DEBUG", "INFO", "WARNING", "ERROR"):
    raise ImproperlyConfigured(f"LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR, not {LOG_LEVEL!r}.")
ACCESS_LOG: str = env.str("ACCESS_LOG", default=str(VAR_DIR / "access.log"))  # "-" is standard output
ADMIN_API_ON_GATEWAY_PORT: bool = _setting(env.bool, "ADMIN_API_ON_GATEWAY_PORT", default=True)
DOCS_ON_GATEWAY_PORT: bool = _setting(env.bool, "DOCS_ON_GATEWAY_PORT", default=EMBEDDED)

# --- secrets -------------------------------------------------------------------------------------------------------
SECRET_KEY = _secret_key()
KEY_PEPPER: str = env.str("KEY_PEPPER", default="")  # default: derived from SECRET_KEY (keys.pepper)
SETUP_TOKEN: str = env.str("SETUP_TOKEN", default="")
METRICS_TOKEN: str = env.str("METRICS_TOKEN", default="")

# --- clients -------------------------------------------------------------------------------------------------------
API_KEY_HEADER: str = env.str("API_KEY_HEADER", default="X-API-Key")
API_KEY_PREFIX: str = env.str("API_KEY_PREFIX", default="km_")
API_KEY_DEFAULT_DAYS = _number("API_KEY_DEFAULT_DAYS", 365, 1, 36500)
CORS_ORIGINS: list[str] = _setting(env.list, "CORS_ORIGINS", default=[])
TRUSTED_PROXIES = _networks("TRUSTED_PROXIES", [])
RATE_LIMIT_REQUESTS = _number("RATE_LIMIT_REQUESTS", 1000, 1, 10**9)
RATE_LIMIT_WINDOW = _number("RATE_LIMIT_WINDOW", 3600, 1, 31 * 86400)
AUTH_FAILURES_PER_MINUTE = _number("AUTH_FAILURES_PER_MINUTE", 60, 1, 10**6)  # per address (IPv6: per /64)
VALIDATIONS_PER_MINUTE = _number("VALIDATIONS_PER_MINUTE", 300, 1, 10**6)  # POST /validate, per address
MAX_REQUEST_BODY_SIZE = _number("MAX_REQUEST_BODY_SIZE", 10 * 1024 * 1024, 0, 2**40)
MAX_HEADER_SIZE = _number("MAX_HEADER_SIZE", 8192, 256, 65536)

# --- upstreams -----------------------------------------------------------------------------------------------------
REQUEST_TIMEOUT = _number("REQUEST_TIMEOUT", 30, 1, 3600)
EGRESS_ALLOW = _networks("EGRESS_ALLOW", ["127.0.0.0/8", "::1/128"] if EMBEDDED else [])
MAX_CONFIG_AGE = _number("MAX_CONFIG_AGE", 24 * 3600, 1, 366 * 86400)

# --- database ------------------------------------------------------------------------------------------------------
_database_url: str = env.str("DATABASE_URL", default="")
if not _database_url:
    if not EMBEDDED:
        raise ImproperlyConfigured(
            "DATABASE_URL is not set. Give a PostgreSQL URL, or start with --embedded for SQLite under VAR_DIR."
        )
    _private_dir(VAR_DIR)
    _database_url = f"sqlite:///{VAR_DIR / 'portcullis.sqlite3'}"
_database: dict[str, Any] = _setting(env.db_url_config, _database_url)
if _database["ENGINE"].endswith("sqlite3"):
    _database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",  # the deferred default fails under concurrent writers
        "timeout": 10,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
    }
elif _database["ENGINE"].endswith("postgresql"):
    _database.setdefault("OPTIONS", {}).setdefault("connect_timeout", 3)
    _database |= {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
else:
    raise ImproperlyConfigured("DATABASE_URL must be a postgres:// URL (or sqlite:// when embedded).")
if TESTING:
    _database["TEST"] = {"NAME": env.str("TEST_DATABASE_NAME", default=f"test_portcullis_{os.getpid()}")}
DATABASES = {"default": _database}
DATABASE_LISTEN_URL: str = env.str("DATABASE_LISTEN_URL", default="")  # default: as DATABASE_URL says
REDIS_URL: str = env.str("REDIS_URL", default="")
CELERY_BROKER_URL: str = env.str("CELERY_BROKER_URL", default="filesystem://" if EMBEDDED else "")
EVENTS_QUEUE: str = env.str("EVENTS_QUEUE", default="gateway.events")  # one for each gateway on a shared broker
OUTBOX_LIMIT = _number("OUTBOX_LIMIT", 100_000, 1, 10**9)  # tasks that may wait to be published

# --- Django --------------------------------------------------------------------------------------------------------
DEBUG = False
ALLOWED_HOSTS: list[str] = _setting(env.list, "ALLOWED_HOSTS", default=["*"])  # the panel checks Origin and cookies
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
ARGON2_TIME_COST = _number("ARGON2_TIME_COST", 2, 1, 100)
ARGON2_MEMORY_KIB = _number("ARGON2_MEMORY_KIB", 19 * 1024, 8, 4 * 1024 * 1024)
ARGON2_PARALLELISM = _number("ARGON2_PARALLELISM", 1, 1, 64)
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.str("STATIC_ROOT", default=str(BASE_DIR / "staticfiles")))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
LOGIN_URL = "/login"
SESSION_COOKIE_NAME = "portcullis_session"
CSRF_COOKIE_NAME = "portcullis_csrf"
PANEL_HTTPS: bool = _setting(env.bool, "PANEL_HTTPS", default=False)  # the panel is reached over TLS
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

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
from access.limits.shared.address import RedisAddress
from core.masking import CLASSES, Masker
from gateway_project import environment as env
from gateway_project import identity_settings as identity

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
# Without TLS_PORT nothing of what follows counts, but for PROXY_PROTOCOL.
TLS_PORT = env.number("TLS_PORT", 0, 0, 65535)
TLS_CERTIFICATE = env.text("TLS_CERTIFICATE")
TLS_KEY = env.text("TLS_KEY")
TLS_CERTIFICATES_DIR = env.text("TLS_CERTIFICATES_DIR")
if bool(TLS_CERTIFICATE) != bool(TLS_KEY):
    raise ImproperlyConfigured("TLS_CERTIFICATE and TLS_KEY go together: one of them is not set.")
if TLS_PORT and not TLS_CERTIFICATE and not TLS_CERTIFICATES_DIR:
    raise ImproperlyConfigured("TLS_PORT needs TLS_CERTIFICATE and TLS_KEY, or TLS_CERTIFICATES_DIR.")
TLS_MIN_VERSION = env.text("TLS_MIN_VERSION", "1.2", form=r"1\.[23]", says="1.2 or 1.3")
TLS_CLIENT_CERTIFICATES = env.text(
    "TLS_CLIENT_CERTIFICATES", "off", form=r"off|optional|required", says="off, optional or required"
)
TLS_CLIENT_CA = env.text("TLS_CLIENT_CA")  # whose certificates are believed
TLS_CLIENT_CRL = env.text("TLS_CLIENT_CRL")
if TLS_CLIENT_CERTIFICATES != "off" and not (TLS_PORT and TLS_CLIENT_CA):
    raise ImproperlyConfigured("TLS_CLIENT_CERTIFICATES needs TLS_PORT and TLS_CLIENT_CA.")
if TLS_CLIENT_CRL and not TLS_CLIENT_CA:
    raise ImproperlyConfigured("TLS_CLIENT_CRL needs TLS_CLIENT_CA.")
HTTP2 = env.flag("HTTP2", default=True)
HTTPS_REDIRECT = env.flag("HTTPS_REDIRECT", default=False)
HTTPS_REDIRECT_PORT = env.number("HTTPS_REDIRECT_PORT", 0, 0, 65535)  # as clients see it; 0: TLS_PORT
if HTTPS_REDIRECT and not TLS_PORT:
    raise ImproperlyConfigured("HTTPS_REDIRECT needs TLS_PORT: there is nothing to lead clients to.")
_hsts = r"max-age=[0-9]{1,10}(; includeSubDomains)?(; preload)?"
HSTS = env.text("HSTS", form=_hsts, says="such as max-age=31536000; includeSubDomains")
PROXY_PROTOCOL = env.flag("PROXY_PROTOCOL", default=False)
METRICS_BIND = env.address("METRICS_BIND", "127.0.0.1")
METRICS_PORT = env.number("METRICS_PORT", 9090, 1, 65535)
WORKERS = env.number("WORKERS", 1 if EMBEDDED else max(os.cpu_count() or 1, 1), 1, 512)
# Two gateways on one host and one database must not take each other's heartbeats for their own.
_node_name = os.uname().nodename if PORT == 4200 else f"{os.uname().nodename}:{PORT}"
NODE_NAME = env.text("NODE_NAME", _node_name, form=r"[\w.:-]{1,180}", says="letters, digits and . _ : -")
LOG_LEVEL = env.text("LOG_LEVEL", "INFO").upper()
if LOG_LEVEL not in ("DEBUG", "INFO", "WARNING", "ERROR"):
    raise ImproperlyConfigured(f"LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR, not {LOG_LEVEL!r}.")
MASK = env.words("MASK", CLASSES, form="|".join((*CLASSES, "nothing")), says=f"one of {', '.join(CLASSES)}, or nothing")
MASK_PATTERNS = env.checked(
    "MASK_PATTERNS",
    [each for each in env.text("MASK_PATTERNS").splitlines() if each.strip()],  # one on each line
    lambda patterns: Masker((), patterns=patterns),
)
# For how many days what is no configuration is kept; 0: for ever.
AUDIT_DAYS = env.number("AUDIT_DAYS", 400, 0, 36500)
TASK_DAYS = env.number("TASK_DAYS", 30, 0, 36500)
SESSION_DAYS = env.number("SESSION_DAYS", 30, 0, 36500)
VIOLATION_DAYS = env.number("VIOLATION_DAYS", 30, 0, 36500)
QUOTA_DAYS = env.number("QUOTA_DAYS", 400, 32, 36500)  # a month's must last
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
SECRETS_DIR = Path(env.text("SECRETS_DIR", "/run/secrets")).absolute()  # what secret://file/… names
# What names in secrets managers begin with; without, the manager is off.
_begins: dict[str, str] = {"form": r"[A-Za-z0-9/_+=.@:-]{1,400}", "says": "the beginning of a secret's name"}
SECRETS_AWS_PREFIX = env.text("SECRETS_AWS_PREFIX", **_begins)
SECRETS_VAULT_PREFIX = env.text("SECRETS_VAULT_PREFIX", **_begins)
SECRETS_AZURE_PREFIX = env.text("SECRETS_AZURE_PREFIX", **_begins)
SECRETS_GOOGLE_PREFIX = env.text("SECRETS_GOOGLE_PREFIX", **_begins)
SECRETS_RENEW_MINUTES = env.number("SECRETS_RENEW_MINUTES", 5, 1, 1440)
VAULT_ADDR = env.url("VAULT_ADDR", schemes=("http", "https"), example="https://vault.internal:8200")
VAULT_TOKEN = env.text("VAULT_TOKEN", form=r"[!-~]+", says="printable ASCII")
VAULT_TOKEN_FILE = os.environ.get("VAULT_TOKEN_FILE", "")  # read again for each secret
VAULT_NAMESPACE = env.text("VAULT_NAMESPACE")
VAULT_KV_VERSION = env.number("VAULT_KV_VERSION", 2, 1, 2)
AZURE_KEYVAULT_SUFFIX = env.text(
    "AZURE_KEYVAULT_SUFFIX", "vault.azure.net", form=r"[a-z0-9.-]+(:[0-9]{1,5})?", says="a host name"
)
GOOGLE_SECRET_MANAGER_ENDPOINT = env.url(
    "GOOGLE_SECRET_MANAGER_ENDPOINT",
    schemes=("http", "https"),
    example="https://secretmanager.me-central2.rep.googleapis.com",
)
OWN_SECRET_FILES: list[str] = env.files  # no reference reaches these

# --- clients -------------------------------------------------------------------------------------------------------
API_KEY_HEADER = _key_header()
API_KEY_PREFIX = env.text("API_KEY_PREFIX", "km_", form=r"[\w.-]{1,32}", says="1 to 32 letters, digits and . _ -")
API_KEY_DEFAULT_DAYS = env.number("API_KEY_DEFAULT_DAYS", 365, 1, 36500)
CORS_ORIGINS = env.checked("CORS_ORIGINS", env.words("CORS_ORIGINS"), CorsPolicy)
TRUSTED_PROXIES = env.networks("TRUSTED_PROXIES", [])
if PROXY_PROTOCOL and not TRUSTED_PROXIES:
    raise ImproperlyConfigured("PROXY_PROTOCOL needs TRUSTED_PROXIES: the balancers whose header is believed.")
TRUST_CLIENT_CERT_FIELD = env.flag("TRUST_CLIENT_CERT_FIELD", default=False)  # Client-Cert (RFC 9440), of those
if TRUST_CLIENT_CERT_FIELD and not TRUSTED_PROXIES:
    raise ImproperlyConfigured("TRUST_CLIENT_CERT_FIELD needs TRUSTED_PROXIES: whose field is believed.")
RATE_LIMIT_REQUESTS = env.number("RATE_LIMIT_REQUESTS", 1000, 1, 10**9)
RATE_LIMIT_WINDOW = env.number("RATE_LIMIT_WINDOW", 3600, 1, 31 * 86400)
RATE_LIMIT_LEGACY_HEADERS = env.flag("RATE_LIMIT_LEGACY_HEADERS", default=False)  # X-RateLimit-* beside RateLimit
AUTH_FAILURES_PER_MINUTE = env.number("AUTH_FAILURES_PER_MINUTE", 60, 1, 10**6)  # per address (IPv6: per /64)
# With JWKS_ENDPOINT: an issuer of clients' tokens beside those of the admin API. Without: the name of our own.
JWT_ISSUER = env.text("JWT_ISSUER", form=r"[!-~]{1,500}", says="1 to 500 characters of ASCII without spaces")
JWT_AUDIENCE = env.text("JWT_AUDIENCE", form=r"[!-~]{1,300}", says="1 to 300 characters of ASCII without spaces")
JWKS_ENDPOINT = env.url("JWKS_ENDPOINT", schemes=("http", "https"), example="https://login.example.com/jwks")
JWT_ALGORITHMS = env.words(
    "JWT_ALGORITHMS", ["RS256"], form=r"(RS|PS|ES)(256|384|512)|EdDSA", says="RS256, PS256, ES256, EdDSA and their like"
)
JWT_APPLICATION = env.text("JWT_APPLICATION", form=r"[^\s].{0,99}", says="the id or name of an application")
if JWKS_ENDPOINT and not JWT_ISSUER:
    raise ImproperlyConfigured("JWKS_ENDPOINT needs JWT_ISSUER: whose keys they are.")
VALIDATIONS_PER_MINUTE = env.number("VALIDATIONS_PER_MINUTE", 300, 1, 10**6)  # POST /validate, per address
MAX_REQUEST_BODY_SIZE = env.number("MAX_REQUEST_BODY_SIZE", 10 * 1024 * 1024, 0, 2**40)
MAX_HEADER_SIZE = env.number("MAX_HEADER_SIZE", 8192, 256, 65536)

# --- end users and our own tokens ----------------------------------------------------------------------------------
END_USER_APPLICATION = env.text("END_USER_APPLICATION")  # its name or id
JWT_SECRET = env.text("JWT_SECRET")
_algorithms = r"(HS|RS|PS|ES)(256|384|512)|EdDSA"
JWT_ALGORITHM = env.text(
    "JWT_ALGORITHM", "HS256" if JWT_SECRET else "ES256", form=_algorithms, says="such as ES256, EdDSA or HS256"
)
if JWT_ALGORITHM.startswith("HS") and len(JWT_SECRET.encode()) * 8 < int(JWT_ALGORITHM[2:]):  # RFC 7518 section 3.2
    raise ImproperlyConfigured(
        f"JWT_ALGORITHM {JWT_ALGORITHM} needs JWT_SECRET of at least {int(JWT_ALGORITHM[2:]) // 8} characters."
    )
# With JWKS_ENDPOINT the name JWT_ISSUER belongs to somebody else, whose tokens we take.
OWN_ISSUER = SERVICE_NAME if JWKS_ENDPOINT or not JWT_ISSUER else JWT_ISSUER
JWT_EXPIRY_HOURS = env.number("JWT_EXPIRY_HOURS", 24, 1, 720)
ACCESS_TOKEN_S = 60 * env.number("ACCESS_TOKEN_MINUTES", 60 * JWT_EXPIRY_HOURS, 1, 60 * 720)
JWT_ENCRYPTION = env.flag("JWT_ENCRYPTION", default=False)
REFRESH_TOKEN_DAYS = env.number("REFRESH_TOKEN_DAYS", 30, 1, 3650)  # unused
USER_SESSION_DAYS = env.number("USER_SESSION_DAYS", 90, 1, 3650)  # from login, whatever is refreshed
SIGNING_KEY_DAYS = env.number("SIGNING_KEY_DAYS", 90, 1, 3650)

# --- upstreams -----------------------------------------------------------------------------------------------------
REQUEST_TIMEOUT = env.number("REQUEST_TIMEOUT", 30, 1, 3600)
CIRCUIT_BREAKER_FAILURES = env.number("CIRCUIT_BREAKER_FAILURES", 5, 1, 10_000)
CIRCUIT_BREAKER_TIMEOUT = env.number("CIRCUIT_BREAKER_TIMEOUT", 30, 1, 3600)
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
if REDIS_URL:
    try:
        RedisAddress.from_url(REDIS_URL)
    except ValueError as error:
        raise ImproperlyConfigured(f"{error}.") from None
# Who counts what limits that say nothing themselves allow: each worker, or all together by REDIS_URL.
RATE_LIMIT_MODE = env.text("RATE_LIMIT_MODE", "leased" if REDIS_URL else "local")
if RATE_LIMIT_MODE not in ("local", "strict", "leased"):
    raise ImproperlyConfigured(f"RATE_LIMIT_MODE must be local, strict or leased, not {RATE_LIMIT_MODE!r}.")
if RATE_LIMIT_MODE != "local" and not REDIS_URL:
    raise ImproperlyConfigured(f"RATE_LIMIT_MODE={RATE_LIMIT_MODE} needs REDIS_URL, where the workers count together.")
RATE_LIMIT_REDIS_WAIT_MS = env.number("RATE_LIMIT_REDIS_WAIT_MS", 100, 1, 60_000)  # of a request, at most
CELERY_BROKER_URL = env.url(
    "CELERY_BROKER_URL",
    "filesystem://" if EMBEDDED else "",
    schemes=("amqp", "amqps", "pyamqp", "redis", "rediss", "redis+socket", "sentinel", "filesystem", "memory"),
    example="amqp://user:password@host:5672// or redis://host:6379/0",
)
# One for each gateway on a shared broker.
EVENTS_QUEUE = env.text("EVENTS_QUEUE", "gateway.events", form=r"[\w.:-]{1,120}", says="letters, digits and . _ : -")
OUTBOX_LIMIT = env.number("OUTBOX_LIMIT", 100_000, 1, 10**9)  # tasks that may wait to be published

CACHE_BYTES = env.number("CACHE_BYTES", 64 * 1024 * 1024, 0, 2**40)  # of stored answers, for each worker

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
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.usersessions",
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
    "allauth.account.middleware.AccountMiddleware",
    "admin_panel.sign_in.sessions.SessionMiddleware",
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
    "access.passwords.Argon2Hasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
# OWASP's parameters for argon2id, used for API keys and passwords.
ARGON2_TIME_COST = env.number("ARGON2_TIME_COST", 2, 1, 100)
ARGON2_MEMORY_KIB = env.number("ARGON2_MEMORY_KIB", 19 * 1024, 8, 4 * 1024 * 1024)
ARGON2_PARALLELISM = env.number("ARGON2_PARALLELISM", 1, 1, 64)
PASSWORD_THREADS = env.number("PASSWORD_THREADS", max((os.cpu_count() or 1) - 1, 1), 1, 256)  # checking at once
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.text("STATIC_ROOT", str(BASE_DIR / "staticfiles")))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "gateway_project.static_storage.PanelStorage"},
}

# --- signing in to the panel ---------------------------------------------------------------------------------------
REQUIRE_MFA = env.text("REQUIRE_MFA", "off", form="off|admins|all", says="off, admins or all")
PANEL_SESSION_IDLE = env.number("PANEL_SESSION_IDLE", 3600, 60, 31 * 86400)
PANEL_SESSION_LIFETIME = env.number("PANEL_SESSION_LIFETIME", 12 * 3600, 60, 366 * 86400)
INVITATION_DAYS = env.number("INVITATION_DAYS", 7, 1, 365)
PANEL_URL = identity.panel_url()  # default: as the browser of whoever invites names it
SSO_ADMISSION = identity.admission()
OIDC_APP = identity.oidc_app()
SAML_APP = identity.saml_app()
_mail = identity.mail()
MAILS = bool(_mail)
EMAIL_BACKEND = _mail.get("EMAIL_BACKEND", "django.core.mail.backends.smtp.EmailBackend")
EMAIL_HOST = _mail.get("EMAIL_HOST") or "localhost"
EMAIL_PORT = int(_mail.get("EMAIL_PORT") or 25)
EMAIL_HOST_USER = _mail.get("EMAIL_HOST_USER") or ""
EMAIL_HOST_PASSWORD = _mail.get("EMAIL_HOST_PASSWORD") or ""
EMAIL_USE_TLS = bool(_mail.get("EMAIL_USE_TLS"))
EMAIL_USE_SSL = bool(_mail.get("EMAIL_USE_SSL"))
EMAIL_FILE_PATH = f"/{_mail['EMAIL_FILE_PATH'].lstrip('/')}" if _mail.get("EMAIL_FILE_PATH") else None
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = identity.mail_from()
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
ACCOUNT_ADAPTER = "admin_panel.sign_in.adapters.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_SIGNUP_FIELDS = ["username*", "email", "password1*"]
ACCOUNT_FORMS = {
    "login": "admin_panel.sign_in.forms.LoginForm",
    "reset_password": "admin_panel.sign_in.forgotten.ForgottenForm",
    "user_token": "admin_panel.sign_in.forgotten.TokenForm",
}
PASSWORD_RESET_TIMEOUT = 3600
ACCOUNT_SESSION_REMEMBER = True  # the cookie outlives the browser; sessions end as the settings above say
# Guessing is held back by `access.lockout`, which knows devices; allauth's own limits would lock accounts.
ACCOUNT_RATE_LIMITS = {
    "login": "",
    "login_failed": "",
    "reauthenticate": "",
    "change_password": "20/m/user",
    "reset_password": "10/m/ip",  # of mails to one address, `admin_panel.sign_in.forgotten` sends few
}
MFA_ADAPTER = "admin_panel.sign_in.adapters.FactorAdapter"
MFA_FORMS = {
    "authenticate": "admin_panel.sign_in.forms.SecondFactorForm",
    "reauthenticate": "admin_panel.sign_in.forms.ConfirmFactorForm",
}
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_TOTP_TOLERANCE = 1  # the step before and after: telephones' clocks are not exact
MFA_TOTP_ISSUER = SERVICE_NAME
MFA_RECOVERY_CODES_SHOW_ONCE = True
MFA_RATE_LIMITS = {"webauthn_login": "60/m/ip"}
SOCIALACCOUNT_ADAPTER = "admin_panel.sign_in.single_sign_on.SingleSignOnAdapter"
SOCIALACCOUNT_ONLY = False
SOCIALACCOUNT_STORE_TOKENS = False
SOCIALACCOUNT_PROVIDERS: dict[str, Any] = {}
if OIDC_APP:
    INSTALLED_APPS.insert(INSTALLED_APPS.index("core"), "admin_panel.sign_in.openid_connect")
    SOCIALACCOUNT_PROVIDERS["openid_connect"] = {"APPS": [OIDC_APP]}
if SAML_APP:
    INSTALLED_APPS.insert(INSTALLED_APPS.index("core"), "allauth.socialaccount.providers.saml")
    SOCIALACCOUNT_PROVIDERS["saml"] = {"APPS": [SAML_APP]}
LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login"
SESSION_COOKIE_NAME = "portcullis_session"
SESSION_COOKIE_AGE = PANEL_SESSION_LIFETIME
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
CSRF_FAILURE_VIEW = "admin_panel.middleware.csrf_failure"
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
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "GET_LIB_DOC_EXCLUDES": "core.serializers.classes_without_words",
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "core.openapi.complete"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

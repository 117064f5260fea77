"""`WorkerSettings` from Django's settings."""

from base64 import urlsafe_b64encode
from typing import cast

from django.conf import settings

from access.limits.charges import Mode
from access.signing.keys import is_symmetric
from access.signing.tokens import encryption_key
from gateway_project.dataplane.settings import WorkerSettings
from keys.pepper import pepper


def worker_settings(slot: int = 0) -> WorkerSettings:
    return WorkerSettings(
        service_name=settings.SERVICE_NAME,
        node_name=settings.NODE_NAME,
        slot=slot,
        workers=settings.WORKERS,
        bind=settings.BIND,
        port=settings.PORT,
        agent_socket=str(settings.VAR_DIR / "agent.sock"),
        control_socket=str(settings.VAR_DIR / "control.sock"),
        snapshot_path=str(settings.VAR_DIR / "snapshot.bin"),
        access_log=settings.ACCESS_LOG,
        log_level=settings.LOG_LEVEL,
        embedded=settings.EMBEDDED,
        pepper=pepper().hex(),
        api_key_header=settings.API_KEY_HEADER,
        api_key_prefix=settings.API_KEY_PREFIX,
        cors_origins=tuple(settings.CORS_ORIGINS),
        trusted_proxies=tuple(settings.TRUSTED_PROXIES),
        egress_allow=tuple(settings.EGRESS_ALLOW),
        rate_limit_requests=settings.RATE_LIMIT_REQUESTS,
        rate_limit_window_s=settings.RATE_LIMIT_WINDOW,
        rate_limit_mode=cast("Mode", settings.RATE_LIMIT_MODE),
        rate_limit_wait_s=settings.RATE_LIMIT_REDIS_WAIT_MS / 1000,
        rate_limit_legacy_headers=settings.RATE_LIMIT_LEGACY_HEADERS,
        auth_failures_per_minute=settings.AUTH_FAILURES_PER_MINUTE,
        max_body_bytes=settings.MAX_REQUEST_BODY_SIZE,
        max_header_field_bytes=settings.MAX_HEADER_SIZE,
        request_timeout_s=settings.REQUEST_TIMEOUT,
        circuit_failures=settings.CIRCUIT_BREAKER_FAILURES,
        circuit_open_s=settings.CIRCUIT_BREAKER_TIMEOUT,
        redis_url=settings.REDIS_URL,
        cache_bytes=settings.CACHE_BYTES,
        max_config_age_s=settings.MAX_CONFIG_AGE,
        admin_api_on_gateway_port=settings.ADMIN_API_ON_GATEWAY_PORT,
        docs_on_gateway_port=settings.DOCS_ON_GATEWAY_PORT,
        metrics_port=settings.METRICS_PORT,
        metrics_token=settings.METRICS_TOKEN,
        secrets_dir=str(settings.SECRETS_DIR),
        mask=tuple(settings.MASK),
        mask_patterns=tuple(settings.MASK_PATTERNS),
        own_secret_files=tuple(sorted(set(settings.OWN_SECRET_FILES))),
        token_secret=settings.JWT_SECRET.encode().hex() if is_symmetric() else "",
        token_decryption_key=urlsafe_b64encode(encryption_key()).decode() if settings.JWT_ENCRYPTION else "",
        metrics_host="127.0.0.1" if settings.METRICS_BIND in ("0.0.0.0", "::") else settings.METRICS_BIND,  # noqa: S104
        tls_port=settings.TLS_PORT,
        tls_certificate=settings.TLS_CERTIFICATE,
        tls_key=settings.TLS_KEY,
        tls_certificates_dir=settings.TLS_CERTIFICATES_DIR,
        tls_min_version=settings.TLS_MIN_VERSION,
        tls_client_ca=settings.TLS_CLIENT_CA,
        tls_client_crl=settings.TLS_CLIENT_CRL,
        tls_client_certificates=settings.TLS_CLIENT_CERTIFICATES,
        trust_client_cert_field=settings.TRUST_CLIENT_CERT_FIELD,
        https_redirect_port=(settings.HTTPS_REDIRECT_PORT or settings.TLS_PORT) if settings.HTTPS_REDIRECT else 0,
        hsts=settings.HSTS,
        http2=settings.HTTP2,
        proxy_protocol=settings.PROXY_PROTOCOL,
    )

"""`WorkerSettings` from Django's settings."""

from django.conf import settings

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
        auth_failures_per_minute=settings.AUTH_FAILURES_PER_MINUTE,
        max_body_bytes=settings.MAX_REQUEST_BODY_SIZE,
        max_header_field_bytes=settings.MAX_HEADER_SIZE,
        request_timeout_s=settings.REQUEST_TIMEOUT,
        max_config_age_s=settings.MAX_CONFIG_AGE,
        admin_api_on_gateway_port=settings.ADMIN_API_ON_GATEWAY_PORT,
        docs_on_gateway_port=settings.DOCS_ON_GATEWAY_PORT,
        metrics_port=settings.METRICS_PORT,
        metrics_token=settings.METRICS_TOKEN,
        metrics_host="127.0.0.1" if settings.METRICS_BIND in ("0.0.0.0", "::") else settings.METRICS_BIND,  # noqa: S104
    )

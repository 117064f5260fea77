"""Commands to copy: how a client would call what a page shows."""

from collections.abc import Iterable
from shlex import quote

from django.conf import settings
from django.http import HttpRequest
from django.http.request import split_domain_port

PLACEHOLDER = "YOUR_API_KEY"


def gateway_url(request: HttpRequest) -> str:
    """Where clients reach the gateway, seen from whoever looks at the panel."""
    host, _ = split_domain_port(request.get_host())
    return f"http://{host}:{settings.PORT}"


def curl(request: HttpRequest, path: str, method: str = "GET", *, key: str = PLACEHOLDER, body: str = "") -> str:
    """One command on a few short lines; an empty ``key`` leaves the header out."""
    lines = ["curl -i" if method == "GET" else f"curl -i -X {quote(method)}"]
    if key:
        lines.append(f"-H {quote(f'{settings.API_KEY_HEADER}: {key}')}")
    if body:
        lines += ["-H 'Content-Type: application/json'", f"-d {quote(body)}"]
    return " \\\n  ".join([*lines, quote(gateway_url(request) + path)])


def example_path(pattern: str) -> str:
    """A path that a pattern covers: ``/api/v1/orders/{id}/*`` → ``/api/v1/orders/id/…``."""
    return "/".join(segment.strip("{}").replace("*", "x") for segment in pattern.split("/"))


def example_method(methods: Iterable[str]) -> str:
    listed = list(methods)
    return "GET" if not listed or "GET" in listed or listed == ["*"] else listed[0]

"""Answers that the gateway makes itself are protected in browsers (A17), and upstreams' are left as they are."""

import pytest
from django.test import Client

from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import OK, replying

OURS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


def ours(answer: Answer) -> dict[str, str]:
    return {name: answer.field(name) or "" for name in OURS if answer.field(name) is not None}


def test_what_workers_say_themselves_is_protected(plane: DataPlane) -> None:
    upstream = plane.serve()
    for path, key in (("/health", None), ("/nowhere", ""), (f"{upstream.path}/x", None), (f"{upstream.path}/x", "no")):
        assert ours(plane.ask("GET", path, key=key)) == OURS


def test_upstreams_answers_stay_as_they_are(plane: DataPlane) -> None:
    theirs = {"referrer-policy": "origin", "cache-control": "max-age=60"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in theirs.items()).encode()
    upstream = plane.serve(replying(OK.replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n")))
    assert ours(plane.ask("GET", f"{upstream.path}/x")) == theirs


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/admin/health", "/openapi.json", "/nowhere", "/docs", "/.well-known/jwks.json"])
def test_what_control_says_is_protected(client: Client, path: str) -> None:
    response = client.get(path)
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["X-Frame-Options"] == "DENY"
    assert response["Referrer-Policy"] in ("no-referrer", "same-origin")
    assert response["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in response["Content-Security-Policy"]
    assert response["Cache-Control"]

"""What tests of the admin API share: admins with keys of any scopes, and a client that carries such a key."""

from typing import Any

from django.contrib.auth.models import User
from rest_framework.test import APIClient

from core.revisions import Actor
from keys.services import create_admin_key

SERVICES = "/admin/routing/services"
ANN: dict[str, Any] = {"actor": Actor("user", "1", "ann"), "source": "api"}


def admin_with_key(*scopes: str, username: str = "ann") -> tuple[User, str]:
    """A superuser and a key of that user's, which opens everything unless ``scopes`` are given."""
    user = User.objects.filter(username=username).first()
    user = user or User.objects.create_superuser(username, f"{username}@example.com", "a long password 17")
    return user, create_admin_key(user=user, name="laptop", scopes=scopes or ("admin:*",), **ANN).key


def client_with_key(key: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_X_API_KEY=key)
    return client


def problem_of(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, after checking that it is that problem."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == response["X-Request-ID"]
    return problem

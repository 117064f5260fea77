"""Where the agent listens for notifications."""

from typing import Any

import pytest
from django.db import connections

from gateway_project import environment
from gateway_project.agent.follower import _listen_parameters

URL = "postgres://gate:hush@db.example.com:6543/config?sslmode=require&target_session_attrs=read-write"


@pytest.fixture
def database_url(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.DATABASE_LISTEN_URL = ""
    for name, value in environment.database("DATABASE_URL", URL).items():
        monkeypatch.setitem(connections.settings["default"], name, value)


@pytest.mark.usefixtures("database_url")
def test_notifications_come_from_the_server_and_port_of_the_database() -> None:
    told = _listen_parameters()
    asked = {name: told[name] for name in ("host", "port", "user", "password", "dbname", "sslmode")}
    assert asked == {
        "host": "db.example.com",
        "port": 6543,
        "user": "gate",
        "password": "hush",
        "dbname": "config",
        "sslmode": "require",
    }


@pytest.mark.usefixtures("database_url")
def test_notifications_come_directly_where_the_database_is_reached_through_a_pooler(settings: Any) -> None:
    settings.DATABASE_LISTEN_URL = "postgres://gate:hush@db.example.com:5433/config"
    told = _listen_parameters()
    assert told["conninfo"] == settings.DATABASE_LISTEN_URL
    assert "host" not in told

"""Fixtures that every test may use; those for servers stand in `tests.services`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.dataplane import DataPlane, data_planes
from tests.gateway_process import Databases, GatewayFactory, GatewayProcess

_PLANE = pytest.StashKey[DataPlane]()  # the one that all tests share
# No generated test fails because the machine is busy with others.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def gateway_databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Fresh, migrated PostgreSQL databases: ``gateway_databases.new()`` is a URL."""
    databases = Databases(request.getfixturevalue("postgres"))
    yield databases
    databases.drop_all()


def _databases_of(request: pytest.FixtureRequest) -> Databases:
    databases: Databases = request.getfixturevalue("gateway_databases")
    return databases


@pytest.fixture
def start_gateway(request: pytest.FixtureRequest) -> Iterator[GatewayFactory]:
    """``start_gateway(database="sqlite" | "postgres" | url, broker=url, WORKERS="2", …)`` boots a real gateway."""
    factory = GatewayFactory(lambda: _databases_of(request))
    yield factory
    factory.close()


@pytest.fixture(scope="module")
def start_module_gateway(request: pytest.FixtureRequest) -> Iterator[GatewayFactory]:
    """Like `start_gateway`, but the gateways live as long as the test module."""
    factory = GatewayFactory(lambda: _databases_of(request))
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def gateway(request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    """One embedded gateway (SQLite, one worker) for all tests that do not stop it or change its settings."""
    factory = GatewayFactory(lambda: _databases_of(request))
    yield factory()
    factory.close()


@pytest.fixture(scope="session")
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataPlane]:
    """One worker, fed by the tests, for all of them that do not stop it or change its settings."""
    for start in data_planes(lambda: tmp_path_factory.mktemp("plane")):
        started = request.config.stash[_PLANE] = start()
        yield started


@pytest.fixture(scope="module", autouse=True)
def _upstreams_end_with_their_module(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    plane = request.config.stash.get(_PLANE, None)
    if plane is not None:
        plane.close_upstreams()


@pytest.fixture
def start_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DataPlane]]:
    """``start_plane(max_body_bytes=0, …)`` starts a worker of the test's own."""
    yield from data_planes(lambda: tmp_path_factory.mktemp("plane"))


@pytest.fixture(scope="module")
def start_module_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DataPlane]]:
    """Like `start_plane`, but the workers live as long as the test module."""
    yield from data_planes(lambda: tmp_path_factory.mktemp("plane"))


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The default database: "postgres", which the test's mark has made, or "sqlite", as an embedded gateway has it."""
    from tests.agents import sqlite_database  # Django's models load after this file

    if request.param == "postgres":
        yield "postgres"
    else:
        with request.getfixturevalue("django_db_blocker").unblock(), sqlite_database(tmp_path / "portcullis.sqlite3"):
            yield "sqlite"


@pytest.fixture
def api(db: None, settings: Any, tmp_path: Path) -> Any:
    """A client of the admin API whose every request carries a key that may do everything."""
    from tests.admin_api import admin_with_key, client_with_key  # Django's models load after this file

    settings.STATIC_ROOT = str(tmp_path)  # WhiteNoise warns when there is none
    return client_with_key(admin_with_key()[1])


@pytest.fixture
def panel(db: None, settings: Any, tmp_path: Path) -> Any:
    """A client that is signed in to the panel as ann, a superuser."""
    from tests.panel_client import make_admin, signed_in  # Django's models load after this file

    settings.STATIC_ROOT = str(tmp_path)  # WhiteNoise warns when there is none
    settings.STORAGES = settings.STORAGES | {
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    }
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # argon2's time is tested elsewhere
    return signed_in(make_admin())

"""Loaded as a plugin before Django's settings: finds the servers that tests talk to and says so in the environment.

PostgreSQL, Redis and RabbitMQ are taken from ``TEST_DATABASE_URL``, ``TEST_REDIS_URL`` and ``TEST_BROKER_URL``, else
from their standard local ports. Where one does not answer but is installed, a private one is started for the session.
Otherwise the tests that need it are skipped, and one block at the end says which and why; with ``REQUIRE_SERVICES=1``
every skip is a failure. Browser tests take Chromium from ``CHROMIUM`` or the usual places in the same way.

A test needs what it names by marker or by fixture: ``postgres``, ``redis_server``, ``rabbitmq``, ``browser_path``;
every test with access to the Django database needs ``postgres``.
"""

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import pytest

from tests.private_servers import (
    PrivatePostgres,
    PrivateRabbitMQ,
    PrivateRedis,
    PrivateServer,
    postgres_answers,
    rabbitmq_answers,
    redis_answers,
)

_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
REQUIRED = os.environ.get("REQUIRE_SERVICES", "") not in ("", "0")
_DATABASE_FIXTURES = {"db", "transactional_db", "django_db_setup", "live_server"}
_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(slots=True)
class Needed:
    """Something that tests need. ``missing`` says why it cannot be had; a ``private`` server is started when needed."""

    url: str
    missing: str = ""
    private: PrivateServer | None = None


def _locate(name: str, default: str, answers: Callable[[str], bool], kind: type[PrivateServer]) -> Needed:
    given = os.environ.get(name)
    url = given or default
    if answers(url):
        return Needed(url)
    if given:
        return Needed(url, missing=f"the {kind.name} server of {name} does not answer")
    if not kind.is_installed():
        return Needed(url, missing=f"no {kind.name} server on its standard port, none installed, {name} is not set")
    private = kind()
    return Needed(private.url, private=private)


def _locate_browser() -> Needed:
    given = os.environ.get("CHROMIUM")
    found = shutil.which(given) if given else next(filter(None, map(shutil.which, _CHROMIUMS)), None)
    if found:
        return Needed(found)
    return Needed("", missing=f"CHROMIUM={given} cannot be run" if given else "no Chromium found, CHROMIUM is not set")


NEEDS = {
    "postgres": _locate(
        "TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres", postgres_answers, PrivatePostgres
    ),
    "redis_server": _locate(
        "TEST_REDIS_URL", f"redis://127.0.0.1:6379/{15 - 4 * _PROCESS}", redis_answers, PrivateRedis
    ),
    "rabbitmq": _locate("TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//", rabbitmq_answers, PrivateRabbitMQ),
    "browser_path": _locate_browser(),
}
for _fixture, _kind in (
    ("private_postgres", PrivatePostgres),
    ("private_redis", PrivateRedis),
    ("private_rabbitmq", PrivateRabbitMQ),
):
    NEEDS[_fixture] = Needed("", missing="" if _kind.is_installed() else f"{_kind.name} is not installed")

_VAR_DIR = tempfile.mkdtemp(prefix="portcullis-test-")
os.environ.pop("EMBEDDED", None)
os.environ |= {
    "PORTCULLIS_TESTING": "true",
    "DATABASE_URL": NEEDS["postgres"].url,
    "REDIS_URL": NEEDS["redis_server"].url,
    "CELERY_BROKER_URL": NEEDS["rabbitmq"].url,
    "VAR_DIR": _VAR_DIR,
    "STATIC_ROOT": os.path.join(_VAR_DIR, "static"),  # WhiteNoise warns where there is none
}
os.mkdir(os.environ["STATIC_ROOT"])
os.environ.setdefault("SECRET_KEY", "a secret key for tests only, long enough")
os.environ.setdefault("ARGON2_MEMORY_KIB", "64")
os.environ.setdefault("ARGON2_TIME_COST", "1")
os.environ.setdefault("EGRESS_ALLOW", "127.0.0.0/8,::1/128")

_skips: Counter[str] = Counter()


def _needs_of(item: pytest.Item) -> list[str]:
    fixtures = set(getattr(item, "fixturenames", ()))
    names = [name for name in NEEDS if name in fixtures or item.get_closest_marker(name)]
    if "postgres" not in names and (item.get_closest_marker("django_db") or fixtures & _DATABASE_FIXTURES):
        names.append("postgres")
    return names


# With several processes, a file's tests stay together, as their fixtures want it. Whole gateways on one RabbitMQ would
# take each other's events.
_TOGETHER = {"test_rungateway.py": "rabbitmq", "test_queues_gateway.py": "rabbitmq"}


def pytest_configure(config: pytest.Config) -> None:
    for name in NEEDS:
        config.addinivalue_line("markers", f"{name}: needs it, see tests/services.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the private servers that the selected tests need, and say which tests belong together."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_TOGETHER.get(item.path.name, str(item.path))))
    if config.option.collectonly:
        return
    for name in sorted({name for item in items for name in _needs_of(item)}):
        _start_private(NEEDS[name])


def _start_private(needed: Needed) -> None:
    if needed.private is not None and not needed.private.is_running:
        needed.private.start()


def _provide(name: str) -> str:
    """The URL or path of something that a fixture needs, for a test that has not named it before."""
    needed = NEEDS[name]
    if needed.missing:
        pytest.skip(needed.missing)
    _start_private(needed)
    return needed.url


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _needs_of(item):
        if NEEDS[name].missing:
            pytest.skip(NEEDS[name].missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _count_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _count_skip(report)
    return report


def _count_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if REQUIRED:
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_SERVICES is set, and this would have been skipped: {reason}"
    else:
        _skips[reason] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _skips:
        return
    terminalreporter.section("skipped")
    for reason, count in sorted(_skips.items()):
        terminalreporter.line(f"{count:5} {'test' if count == 1 else 'tests'}: {reason}")


def pytest_unconfigure() -> None:
    for needed in NEEDS.values():
        if needed.private is not None:
            needed.private.destroy()
    shutil.rmtree(_VAR_DIR, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> str:
    """The URL of a PostgreSQL server on which databases may be created."""
    return _provide("postgres")


@pytest.fixture(scope="session")
def redis_server() -> str:
    """The URL of a Redis database that tests may empty."""
    return _provide("redis_server")


@pytest.fixture(scope="session")
def rabbitmq() -> str:
    """The URL of a RabbitMQ server."""
    return _provide("rabbitmq")


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The path of a Chromium."""
    return _provide("browser_path")


@contextlib.contextmanager
def _running(kind: type[PrivateServer]) -> Iterator[PrivateServer]:
    server = kind()
    try:
        yield server.start()
    finally:
        server.destroy()


@pytest.fixture
def private_postgres() -> Iterator[PrivateServer]:
    """A PostgreSQL of the test's own, to stop, kill and start again."""
    with _running(PrivatePostgres) as server:
        yield server


@pytest.fixture
def private_redis() -> Iterator[PrivateServer]:
    """A Redis of the test's own, to stop, kill and start again."""
    with _running(PrivateRedis) as server:
        yield server


@pytest.fixture
def private_rabbitmq() -> Iterator[PrivateServer]:
    """A RabbitMQ of the test's own, to stop, kill and start again."""
    with _running(PrivateRabbitMQ) as server:
        yield server

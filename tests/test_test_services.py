"""How the suite finds its servers, and what it says when there is none."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg

from gateway_project.processes import ROOT
from tests.private_servers import PrivateServer

NEEDS_REDIS = """
import pytest

def test_by_fixture(redis_server):
    pass

@pytest.mark.redis_server
def test_by_marker():
    pass

def test_of_nothing():
    pass
"""
NOBODY = "redis://127.0.0.1:1/0"


def suite(directory: Path, source: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    (directory / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(directory / "test_it.py")]
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    given = os.environ | environment
    for name in ("REQUIRE_SERVICES", "DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "VAR_DIR"):
        if name not in environment:
            given.pop(name, None)
    return subprocess.run([*command, *config], cwd=ROOT, env=given, capture_output=True, text=True, timeout=180)


def test_what_needs_an_absent_server_is_skipped_and_said_once(tmp_path: Path) -> None:
    done = suite(tmp_path, NEEDS_REDIS, TEST_REDIS_URL=NOBODY)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 2 skipped" in done.stdout
    assert done.stdout.count("2 tests: the redis server of TEST_REDIS_URL does not answer") == 1


def test_a_skip_is_a_failure_where_services_are_required(tmp_path: Path) -> None:
    done = suite(tmp_path, NEEDS_REDIS, TEST_REDIS_URL=NOBODY, REQUIRE_SERVICES="1")
    assert done.returncode == 1
    assert "1 passed, 2 errors" in done.stdout
    skipped_by_itself = "import pytest\ndef test_it():\n    pytest.skip('not today')\n"
    done = suite(tmp_path, skipped_by_itself, REQUIRE_SERVICES="1")
    assert done.returncode == 1
    assert "would have been skipped: not today" in done.stdout


def test_the_database_of_a_shell_is_never_touched(tmp_path: Path) -> None:
    source = "import os\ndef test_it():\n    assert 'production' not in os.environ['DATABASE_URL']\n"
    assert suite(tmp_path, source, DATABASE_URL="postgres://production/gateway").returncode == 0


def test_a_private_server_keeps_its_data_when_it_is_killed(private_postgres: PrivateServer) -> None:
    with psycopg.connect(private_postgres.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    private_postgres.kill()
    assert not private_postgres.answers()
    private_postgres.start()
    with psycopg.connect(private_postgres.url) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


def test_a_private_server_can_hang(private_redis: PrivateServer) -> None:
    private_redis.freeze()
    assert not private_redis.answers()
    private_redis.thaw()
    assert private_redis.answers()


def test_a_private_rabbitmq_starts_again(private_rabbitmq: PrivateServer) -> None:
    private_rabbitmq.restart()
    assert private_rabbitmq.answers()

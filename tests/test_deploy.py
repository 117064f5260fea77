"""What ships beside the source agrees with it: compose file, image, lock files, documents."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands, load_command_class

from deploy.demo import consumer, services
from deploy.demo.seed import QUEUES
from gateway_project.management.commands.demo import DEFAULT_PORT, SERVICES
from gateway_project.processes import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OUR_SERVICES = [name for name, service in COMPOSE["services"].items() if service["image"] == "portcullis"]


def command(service: str) -> list[str]:
    return [str(word) for word in COMPOSE["services"][service]["command"]]


def test_compose_has_the_whole_system() -> None:
    assert set(COMPOSE["services"]) == {
        *("postgres", "redis", "rabbitmq", "migrate", "gateway", "events", "seed", "consumer"),
        *SERVICES,
    }


@pytest.mark.parametrize("name", OUR_SERVICES)
def test_every_setting_of_a_service_is_one_that_is_read(name: str) -> None:
    source = (ROOT / "gateway_project/settings.py").read_text() + (ROOT / "deploy/demo/consumer.py").read_text()
    for setting in COMPOSE["services"][name].get("environment", {}):
        assert f'"{setting}"' in source, setting


@pytest.mark.parametrize("name", ["migrate", "gateway", "seed"])
def test_every_management_command_takes_its_options(name: str) -> None:
    python, script, subcommand, *options = command(name)
    assert (python, script) == ("python", "manage.py")
    parser = load_command_class(get_commands()[subcommand], subcommand).create_parser("manage.py", subcommand)
    parser.parse_args(options)


def test_the_ports_are_the_defaults_of_the_settings() -> None:
    published = {port.rpartition(":")[2] for port in COMPOSE["services"]["gateway"]["ports"]}
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert exposed is not None
    assert published == set(exposed[1].split()) == {str(port) for port in _default_ports()}


def _default_ports() -> list[int]:
    source = (ROOT / "gateway_project/settings.py").read_text()
    return [int(port) for port in re.findall(r'env\.number\("(?:PORT|ADMIN_PORT|METRICS_PORT)", (\d+)', source)]


def test_panel_and_metrics_are_published_on_loopback_only() -> None:
    assert COMPOSE["services"]["gateway"]["ports"] == ["4200:4200", "127.0.0.1:4201:4201", "127.0.0.1:9090:9090"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_demo_service_listens_where_the_seed_says(name: str) -> None:
    words = command(name)
    assert words[:2] == ["uvicorn", f"deploy.demo.services:{name}"]
    assert hasattr(services, name)
    assert words[words.index("--port") + 1] == str(DEFAULT_PORT + SERVICES.index(name))


def test_the_consumer_takes_every_queue_of_the_seed_and_knows_its_tasks() -> None:
    words = command("consumer")
    assert words[words.index("-Q") + 1].split(",") == list(QUEUES)
    assert {"email.send", "sms.send", "analytics.track", "reports.broken"} <= set(consumer.app.tasks)


def test_the_events_worker_takes_the_queue_of_the_settings() -> None:
    words = command("events")
    assert words[words.index("-A") + 1] == "gateway_project.celery_app"
    assert words[words.index("-Q") + 1] == settings.EVENTS_QUEUE


def test_the_gateway_may_finish_what_is_in_flight_before_docker_kills_it() -> None:
    assert COMPOSE["services"]["gateway"]["stop_grace_period"] == "45s"
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE


def test_the_image_runs_as_a_user_without_privileges_and_asks_for_readiness() -> None:
    assert re.search(r"^USER portcullis$", DOCKERFILE, re.MULTILINE)
    assert "/ready" in DOCKERFILE.partition("HEALTHCHECK")[2].splitlines()[1]
    assert DOCKERFILE.count("FROM ") == 2


@pytest.mark.parametrize("path", ["requirements.lock", "requirements-dev.lock", "bench/requirements.lock"])
def test_a_lock_file_pins_by_hash_and_names_no_host(path: str) -> None:
    text = (ROOT / path).read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert all(re.match(r"[a-z0-9.-]+==[0-9][^ ]*( ; [^\\]*)? \\$", line) for line in pins), pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text


def _required(lines: list[str]) -> set[str]:
    """Names in a list of requirements, as PEP 503 normalizes them."""
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


def _pinned(path: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", (ROOT / path).read_text(), re.MULTILINE))


def test_the_lock_files_hold_what_the_project_asks_for_and_agree() -> None:
    project = PYPROJECT["project"]
    run, dev, bench = map(_pinned, ("requirements.lock", "requirements-dev.lock", "bench/requirements.lock"))
    assert _required(project["dependencies"]) <= set(run)
    extras = project["optional-dependencies"]
    own = [name for extra in ("aws", "azure", "google", "vault") for name in extras[extra]]
    assert _required([*(name for name in extras["dev"] if not name.startswith("portcullis[")), *own]) <= set(dev)
    assert _required(project["optional-dependencies"]["bench"]) <= set(bench)
    assert run.items() <= dev.items()


def test_every_dependency_is_explained() -> None:
    text = (ROOT / "docs/dependencies.md").read_text()
    explained = {
        re.sub(r"[-_.]+", "-", name).lower()
        for row in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
        for name in row.split(", ")
    }
    project = PYPROJECT["project"]
    wanted = _required(
        [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    )
    assert wanted - {"portcullis"} <= explained


@pytest.mark.parametrize("path", ["deploy/make-venv.sh", ".ci/run"])
def test_a_script_is_executable_and_names_its_shell(path: str) -> None:
    script = ROOT / path
    assert script.read_text().startswith("#!/bin/sh\n")
    assert script.stat().st_mode & 0o111


def test_every_target_of_the_makefile_says_what_it_is_for() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    assert set(shlex.split(phony[1])) == set(re.findall(r"^([a-z-]+):  ## \S", text, re.MULTILINE))


def test_every_decision_is_in_the_index() -> None:
    records = {path.name for path in Path(ROOT, "docs/adr").glob("0*.md")}
    linked = set(re.findall(r"\]\((0[^)]+)\)", (ROOT / "docs/adr/README.md").read_text()))
    assert records == linked

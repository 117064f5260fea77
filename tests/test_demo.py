"""The demonstration as a newcomer meets it: its command, its services, its configuration, what it prints."""

import asyncio
import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.demo import services
from gateway_project.processes import ROOT
from tests.gateway_process import GatewayProcess, eventually
from tests.private_servers import free_port

DEMO_PROCESSES = {"worker-0", "agent", "control", "events", "auth", "monolith", "pipeline", "consumer"}


class Demo(GatewayProcess):
    """``manage.py demo --embedded``, on ports of its own."""

    def __init__(self, var_dir: Path) -> None:
        demo_port = str(_three_free_ports())
        super().__init__(var_dir, command=("demo",), environment={"DEMO_PORT": demo_port})

    def start(self, *, wait: bool = True) -> "Demo":
        super().start(wait=wait)
        if wait:
            eventually(lambda: self.log().count("notifications/email") >= 1, 60, "the list of what to try")
        return self

    @property
    def facts(self) -> dict[str, str]:
        facts: dict[str, str] = json.loads((self.var_dir / "demo.json").read_text())
        return facts

    def printed_curls(self) -> list[str]:
        return [line.strip() for line in self.log().splitlines() if line.strip().startswith("curl ")]


def _three_free_ports() -> int:
    while True:
        first = free_port()
        if first < 65533 and not any(_is_taken(first + index) for index in range(3)):
            return first


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    process = Demo(tmp_path_factory.mktemp("demo"))
    try:
        yield process.start()
    finally:
        process.stop()


def curl(line: str) -> tuple[int, Any]:
    """Status and JSON document of what a printed line asks for."""
    command = [*shlex.split(line), "--silent", "--max-time", "10", "--write-out", "\n%{http_code}"]
    body, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_it_starts_everything_that_a_demonstration_needs(demo: Demo) -> None:
    assert set(demo.children()) == DEMO_PROCESSES


def test_the_five_printed_curls_work_as_they_stand(demo: Demo) -> None:
    answers = [curl(line) for line in demo.printed_curls()[:5]]
    assert [status for status, _ in answers] == [200, 200, 200, 200, 202], answers
    products, pipelines, login, status, task = [document for _, document in answers]
    assert len(products["products"]) == 3
    assert pipelines["version"] == "v2"
    assert login["user"] == "ada"
    assert login["application"].startswith("app_")
    assert status == {"service": "auth", "status": "up"}
    assert task["task_id"].startswith("task_")


def test_the_printed_login_gives_a_token_that_opens_what_the_application_may_call(demo: Demo) -> None:
    status, tokens = curl(demo.printed_curls()[5])
    assert (status, tokens["user"]["role"]) == (200, "passenger")
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    answer = httpx.get(f"{demo.url}/api/v1/monolith/products", headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text


def test_a_task_is_done_by_a_consumer_that_knows_nothing_of_the_gateway(demo: Demo) -> None:
    with httpx.Client(base_url=demo.url, headers={"X-API-Key": demo.facts["clientKey"]}, trust_env=False) as client:
        accepted = client.post("/api/v1/notifications/sms", json={"to": "+49 30 1234", "text": "Hello"})
        assert accepted.status_code == 202
        where = accepted.headers["Location"]
        state = eventually(lambda: _finished(client.get(where).json()), 30, "the end of the task")
    assert state["status"] == "succeeded"


def _finished(task: dict[str, Any]) -> dict[str, Any] | None:
    return task if task["status"] in ("succeeded", "failed") else None


def test_the_facts_are_private_and_complete(demo: Demo) -> None:
    path = demo.var_dir / "demo.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    urls, admin = {"gatewayUrl", "panelUrl"}, {"adminUser", "adminPassword", "adminKey"}
    assert set(demo.facts) == {*urls, *admin, "clientKey", "endUser", "endUserPassword"}
    assert demo.facts["gatewayUrl"] == demo.url
    assert demo.facts["panelUrl"] == demo.panel_url
    assert all(demo.facts[name] in demo.log() for name in ("panelUrl", "adminUser", "adminPassword", "clientKey"))


def test_the_admin_key_opens_the_admin_api(demo: Demo) -> None:
    headers = {"X-API-Key": demo.facts["adminKey"]}
    answer = httpx.get(f"{demo.url}/admin/routing/services", headers=headers, trust_env=False)
    assert answer.status_code == 200
    assert {"auth-api", "monolith", "pipeline"} <= {service["name"] for service in answer.json()["services"]}


def test_setup_is_closed_since_there_is_an_admin(demo: Demo) -> None:
    answer = httpx.post(f"{demo.url}/setup", json={"name": "Eve", "email": "eve@example.com"}, trust_env=False)
    assert answer.status_code == 409


def test_a_second_run_keeps_configuration_and_credentials_and_follows_the_ports(tmp_path: Path) -> None:
    first = Demo(tmp_path).start()
    facts = first.facts
    assert first.stop() == 0
    second = Demo(tmp_path)
    second.log_path = tmp_path / "second.log"
    try:
        second.start()
        assert second.facts == facts | {"gatewayUrl": second.url, "panelUrl": second.panel_url}
        assert [curl(line)[0] for line in second.printed_curls()] == [200, 200, 200, 200, 202, 200]
        assert "configuration is made" not in second.log()
    finally:
        assert second.stop() == 0


def test_no_process_is_left_after_a_signal(tmp_path: Path) -> None:
    demo = Demo(tmp_path).start()
    children = demo.children().values()
    demo.signal(signal.SIGINT)
    assert demo.process is not None
    assert demo.process.wait(60) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.parametrize("setting", ["PORT", "ADMIN_PORT", "METRICS_PORT", "DEMO_PORT"])
def test_a_port_in_use_ends_the_start_with_one_sentence(tmp_path: Path, setting: str) -> None:
    demo = Demo(tmp_path)
    with socket.create_server(("127.0.0.1", int(demo.environment[setting]))):
        done = subprocess.run(demo.command, cwd=ROOT, env=demo.environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    sentence = f"portcullis: Port {demo.environment[setting]} is in use; set {setting} to a free one.\n"
    assert done.stderr == sentence
    assert not (tmp_path / "demo.json").exists()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"DEMO_PORT": "many"}, "DEMO_PORT must be from 1 to 65533, not many."),
        ({"PORT": "70000"}, "PORT must be from 1 to 65535, not 70000."),
        ({"WORKERS": "some"}, "WORKERS must be a whole number"),
        ({"TRUSTED_PROXIES": "10.0.0.0/99"}, "TRUSTED_PROXIES holds '10.0.0.0/99'"),
    ],
)
def test_a_malformed_setting_ends_the_start_with_one_sentence(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    demo = Demo(tmp_path)
    given = demo.environment | environment
    done = subprocess.run(demo.command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    assert done.stderr.startswith(f"portcullis: {sentence}")
    assert len(done.stderr.splitlines()) == 1


# --- the services by themselves ------------------------------------------------------------------------------------
def call(service: services.Service, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(service)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            return await client.request(method, path, content=body)

    answer = asyncio.run(scenario())
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("service", "method", "path", "body", "status"),
    [
        (services.auth, "POST", "/api/auth/login", b'{"username": "ada"}', 200),
        (services.auth, "POST", "/api/auth/login", b"{}", 422),
        (services.auth, "POST", "/api/auth/login", b"[1]", 400),
        (services.auth, "POST", "/api/auth/login", b"\xff", 400),
        (services.auth, "GET", "/api/auth/profile", b"", 200),
        (services.monolith, "GET", "/products/3", b"", 200),
        (services.monolith, "GET", "/products/9", b"", 404),
        (services.monolith, "DELETE", "/products/3", b"", 405),
        (services.monolith, "POST", "/orders", b'{"product": 1}', 201),
        (services.monolith, "POST", "/orders", b'{"product": 9}', 422),
        (services.monolith, "GET", "/health", b"", 200),
        (services.pipeline, "GET", "/v2/pipelines", b"", 200),
        (services.pipeline, "POST", "/v1/pipelines/nightly/runs", b"", 202),
        (services.pipeline, "GET", "/nothing/of/ours", b"", 404),
    ],
)
def test_a_demo_service_answers(service: services.Service, method: str, path: str, body: bytes, status: int) -> None:
    assert call(service, method, path, body)[0] == status


# --- make run ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("python", ["/no/such/python", "old", "no-ensurepip"])
def test_an_unsuitable_python_is_one_sentence(tmp_path: Path, python: str) -> None:
    without_ensurepip = "import sys; sys.modules['ensurepip'] = None; exec('$2')"
    scripts = {
        "old": "#!/bin/sh\nexit 1\n",  # what a Python says that is asked whether it is new enough, and is not
        "no-ensurepip": f'#!/bin/sh\nexec {sys.executable} -c "{without_ensurepip}"\n',
    }
    (tmp_path / "deploy").mkdir()
    script = tmp_path / "deploy/make-venv.sh"
    script.write_text((ROOT / "deploy/make-venv.sh").read_text())
    (tmp_path / "requirements.lock").write_text("")
    if python in scripts:
        fake = tmp_path / "python"
        fake.write_text(scripts[python])
        fake.chmod(0o755)
        python = str(fake)
    environment = {"PATH": os.environ["PATH"], "PYTHON": python}
    done = subprocess.run(["sh", str(script), "requirements.lock"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("portcullis: Portcullis needs Python 3.11 or newer with its venv module")
    assert len(done.stderr.splitlines()) == 1

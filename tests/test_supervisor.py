"""The supervisor over small children of its own: a stand-in for a worker is a script of a few lines."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_project.launch import CannotStart, check_access_log, check_ports, exclusive, make_var_dir
from gateway_project.probes import worker_is_ready
from gateway_project.processes import (
    FIRST_DELAY_S,
    LONGEST_DELAY_S,
    ROOT,
    CrashLoop,
    KeptProcess,
    ProcessSpec,
    back_off_s,
)
from tests.gateway_process import eventually
from tests.private_servers import free_port

# A child's life: ready, then asleep; on SIGTERM it notes when it ended.
CHILD = """
import os, pathlib, signal, sys, time
directory, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def end(*_):
    time.sleep(0.1)
    with (directory / "ended").open("a") as file:
        file.write(name + "\\n")
    sys.exit()
signal.signal(signal.SIGTERM, end)
(directory / f"ready-{os.getpid()}").touch()
while True:
    time.sleep(600)
"""
NEVER_READY = "import time; time.sleep(600)"
DEAF = CHILD.replace("signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class SmallGateway:
    def __init__(self, directory: Path, stages: list[list[tuple[str, str]]]) -> None:
        self.directory = directory
        document = [[{"name": name, "code": code} for name, code in stage] for stage in stages]
        (directory / "stages.json").write_text(json.dumps(document))
        self.log_path = directory / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.small_supervisor", str(directory)], cwd=ROOT, stdout=log, stderr=log
            )

    def log(self) -> str:
        return self.log_path.read_text()

    def children(self) -> dict[str, int]:
        try:
            state: dict[str, Any] = json.loads((self.directory / "processes.json").read_text())
        except FileNotFoundError:
            return {}
        return {name: process["pid"] for name, process in state["processes"].items() if process["ready"]}

    def ready_children(self, count: int) -> dict[str, int]:
        eventually(lambda: len(self.children()) == count, what=f"readiness of {count} children")
        return self.children()

    def replaced(self, name: str, pid: int) -> int:
        """The pid of the process that has taken the place of ``pid``, when it is ready."""
        return int(eventually(lambda: self.children().get(name, pid) != pid and self.children().get(name)))

    def ended(self) -> list[str]:
        return (self.directory / "ended").read_text().split()


@pytest.fixture
def small_gateway(tmp_path: Path) -> Iterator[Callable[..., SmallGateway]]:
    started: list[SmallGateway] = []

    def start(*stages: list[tuple[str, str]]) -> SmallGateway:
        started.append(SmallGateway(tmp_path, list(stages)))
        return started[-1]

    yield start
    for gateway in started:
        gateway.process.kill()
        gateway.process.wait()


Start = Callable[..., SmallGateway]


def test_a_killed_child_comes_back(small_gateway: Start) -> None:
    gateway = small_gateway([("worker-0", CHILD)], [("agent", CHILD)])
    before = gateway.ready_children(2)
    os.kill(before["agent"], signal.SIGKILL)
    assert gateway.replaced("agent", before["agent"]) != before["agent"]
    assert gateway.children()["worker-0"] == before["worker-0"]
    assert "agent was ended by SIGKILL" in gateway.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_stage_after_stage_and_leaves_no_process(small_gateway: Start, number: int) -> None:
    gateway = small_gateway([("worker-0", CHILD), ("worker-1", CHILD)], [("control", CHILD)], [("agent", CHILD)])
    children = gateway.ready_children(4)
    gateway.process.send_signal(number)
    assert gateway.process.wait(20) == 0
    assert not any(is_alive(pid) for pid in children.values())
    assert sorted(gateway.ended()[:2]) == ["worker-0", "worker-1"]
    assert gateway.ended()[2:] == ["control", "agent"]
    assert not (gateway.directory / "processes.json").exists()


def test_a_child_that_ignores_the_signal_is_killed_when_its_time_is_up(small_gateway: Start) -> None:
    gateway = small_gateway([("worker-0", DEAF)])
    children = gateway.ready_children(1)
    gateway.process.terminate()
    assert gateway.process.wait(20) == 0
    assert not is_alive(children["worker-0"])


def test_a_second_signal_stops_at_once(small_gateway: Start) -> None:
    gateway = small_gateway([("worker-0", DEAF)], [("agent", CHILD)])
    children = gateway.ready_children(2)
    gateway.process.terminate()
    eventually(lambda: "stopping" in gateway.log())
    gateway.process.terminate()
    assert gateway.process.wait(2) == 0
    assert not any(is_alive(pid) for pid in children.values())


def test_no_child_outlives_a_supervisor_that_was_killed(small_gateway: Start) -> None:
    gateway = small_gateway([("worker-0", CHILD)], [("agent", CHILD)])
    children = gateway.ready_children(2)
    gateway.process.kill()
    eventually(lambda: not any(is_alive(pid) for pid in children.values()), what="the end of all children")


def test_a_child_that_cannot_start_ends_everything_with_its_last_words(small_gateway: Start) -> None:
    gateway = small_gateway([("worker-0", CHILD)], [("agent", "import sys; sys.exit('no database anywhere')")])
    assert gateway.process.wait(30) == 1
    assert "agent cannot start, it ended with code 1:" in gateway.log()
    assert gateway.log().count("no database anywhere") >= 1
    assert gateway.ended() == ["worker-0"]


def test_a_hangup_replaces_the_workers_one_at_a_time_and_nothing_else(small_gateway: Start) -> None:
    gateway = small_gateway([("worker-0", CHILD), ("worker-1", CHILD)], [("agent", CHILD)])
    before = gateway.ready_children(3)
    gateway.process.send_signal(signal.SIGHUP)
    eventually(lambda: "all workers are replaced" in gateway.log())
    after = gateway.children()
    assert after["agent"] == before["agent"]
    assert after["worker-0"] != before["worker-0"]
    assert after["worker-1"] != before["worker-1"]
    assert gateway.ended() == ["worker-0", "worker-1"]


def test_a_signal_during_a_roll_leaves_no_process(small_gateway: Start, tmp_path: Path) -> None:
    first = f"import pathlib; first = pathlib.Path({str(tmp_path)!r}, 'first')\n"
    gateway = small_gateway([("worker-0", f"{first}if first.exists():\n    {NEVER_READY}\nfirst.touch()\n{CHILD}")])
    gateway.ready_children(1)
    gateway.process.send_signal(signal.SIGHUP)
    eventually(lambda: "replacing worker-0" in gateway.log())
    successors = eventually(lambda: len(_children_of(gateway.process.pid)) == 2 and _children_of(gateway.process.pid))
    gateway.process.terminate()
    assert gateway.process.wait(20) == 0
    assert not any(is_alive(pid) for pid in successors)


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_successor_that_is_never_ready_leaves_the_old_process_in_place() -> None:
    async def scenario() -> None:
        answers = {"is_ready": True}

        async def is_ready(_: int) -> bool:
            return answers["is_ready"]

        spec = ProcessSpec("worker-0", (sys.executable, "-c", NEVER_READY), is_ready=is_ready, stop_timeout_s=1)
        kept = KeptProcess(spec, lambda _: None)
        running = asyncio.create_task(kept.run())
        await kept.was_ready.wait()
        old = kept.child
        answers["is_ready"] = False
        assert not await kept.replace(timeout_s=0.3)
        assert kept.child is old
        assert old is not None
        assert old.is_alive
        await kept.stop()
        await running

    asyncio.run(scenario())


def test_a_child_gets_its_standard_input_and_its_environment(tmp_path: Path) -> None:
    async def scenario() -> None:
        code = f"import os, sys; open({str(tmp_path / 'out')!r}, 'w').write(sys.stdin.read() + os.environ['SLOT'])"
        spec = ProcessSpec("worker-0", (sys.executable, "-c", code), stdin=b"settings ", environment={"SLOT": "7"})
        running = asyncio.create_task(KeptProcess(spec, lambda _: None).run())
        async with asyncio.timeout(10):
            while not (tmp_path / "out").exists() or not (tmp_path / "out").read_text():
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
    assert (tmp_path / "out").read_text() == "settings 7"


def test_a_command_that_does_not_exist_is_said() -> None:
    spec = ProcessSpec("worker-0", ("/no/such/command",))
    with pytest.raises(CrashLoop, match=r"worker-0 cannot be started: .*/no/such/command"):
        asyncio.run(KeptProcess(spec, lambda _: None).run())


@given(st.integers(min_value=1, max_value=1000))
def test_the_back_off_grows_up_to_its_limit(deaths: int) -> None:
    assert FIRST_DELAY_S <= back_off_s(deaths) <= back_off_s(deaths + 1) <= LONGEST_DELAY_S


def test_a_port_in_use_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"Port {port} is in use; set ADMIN_PORT to a free one."):
            check_ports([("PORT", "127.0.0.1", free_port()), ("ADMIN_PORT", "127.0.0.1", port)])


def test_two_settings_with_the_same_port_are_refused() -> None:
    port = free_port()
    with pytest.raises(CannotStart, match="set ADMIN_PORT"):
        check_ports([("PORT", "127.0.0.1", port), ("ADMIN_PORT", "127.0.0.1", port)])


def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(CannotStart, match=r"no\.such\.host\.invalid:\d+ \(PORT\) cannot be bound"):
        check_ports([("PORT", "no.such.host.invalid", free_port())])


def test_a_second_gateway_with_the_same_directory_is_refused(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path),
        pytest.raises(CannotStart, match=f"Another gateway runs with VAR_DIR {tmp_path}"),
        exclusive(tmp_path),
    ):
        pass
    with exclusive(tmp_path):
        pass


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("none/access.log", "No such file or directory")])
def test_an_access_log_that_cannot_be_written_is_said(tmp_path: Path, settings: Any, name: str, reason: str) -> None:
    settings.ACCESS_LOG = str(tmp_path / name)
    with pytest.raises(CannotStart, match=rf"^ACCESS_LOG {settings.ACCESS_LOG} cannot be written: {reason}\.$"):
        check_access_log()


def test_an_access_log_is_private_from_the_start(tmp_path: Path, settings: Any) -> None:
    settings.ACCESS_LOG = str(tmp_path / "access.log")
    check_access_log()
    assert (tmp_path / "access.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "is_open"), [(0o700, False), (0o750, False), (0o755, True)])
def test_a_directory_that_everybody_may_read_is_said(
    tmp_path: Path, settings: Any, capsys: pytest.CaptureFixture[str], mode: int, is_open: bool
) -> None:
    settings.VAR_DIR = tmp_path
    tmp_path.chmod(mode)
    make_var_dir()
    assert ("is open to every user" in capsys.readouterr().out) is is_open


SHARED_PORT_SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=True)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    connection.recv(1000)
    connection.sendall(f"HTTP/1.1 {sys.argv[2]} x\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
"""


def test_readiness_is_told_apart_for_processes_that_share_a_port() -> None:
    port = free_port()
    command = [sys.executable, "-c", SHARED_PORT_SERVER, str(port)]
    with (
        subprocess.Popen([*command, "200"], stdout=subprocess.PIPE) as ready,
        subprocess.Popen([*command, "503"], stdout=subprocess.PIPE) as starting,
    ):
        try:
            for process in (ready, starting):
                assert process.stdout is not None
                process.stdout.readline()
            asks = {
                pid: [worker_is_ready("127.0.0.1", port, pid) for _ in range(30)] for pid in (ready.pid, starting.pid)
            }

            async def ask(pid: int) -> bool:
                return any(await asyncio.gather(*asks[pid]))

            assert asyncio.run(ask(ready.pid))
            assert not asyncio.run(ask(starting.pid))
        finally:
            ready.kill()
            starting.kill()


def test_a_port_where_nobody_listens_is_not_ready() -> None:
    assert not asyncio.run(worker_is_ready("127.0.0.1", free_port(), os.getpid()))

"""The benchmarks measure what they say, and a party that answers other than 2xx fails the run."""

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cpu, machine, report
from bench.load import Load, Measurement, Party, cpu_s, memory_mb, parse_wrk, run_wrk
from bench.machine import CannotMeasure, Stage, check_programs
from bench.open_loop import percentile, poisson
from bench.report import Bar, table

ROOT = Path(__file__).resolve().parent.parent
WRK = """\
Running 4s test @ http://127.0.0.1:9100/api/v1/x
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.10ms    1.31ms  36.33ms   95.86%
    Req/Sec    32.64k     3.56k   37.86k    87.50%
  Latency Distribution
     50%    0.87ms
     75%    1.15ms
     90%    1.63ms
     99%    5.62ms
  129861 requests in 4.00s, 33.44MB read
Requests/sec:  32454.93
Transfer/sec:      8.36MB
"""
BAD_WRK = WRK.replace("Requests/sec", "  Non-2xx or 3xx responses: 17\nRequests/sec")


class Upstream(socketserver.ThreadingTCPServer):
    """Answers every request on every connection, the ``bad_from``-th and all after it with 503."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.bad_from = 10**9
        self.answered = 0
        self.lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def next_status(self) -> bytes:
        with self.lock:
            self.answered += 1
            return b"200 OK" if self.answered < self.bad_from else b"503 Service Unavailable"


class Answers(socketserver.StreamRequestHandler):
    server: Upstream

    def handle(self) -> None:
        while line := self.rfile.readline():
            if line == b"\r\n":
                # In two pieces, as an answer may arrive.
                self.wfile.write(b"HTTP/1.1 " + self.server.next_status() + b"\r\nContent-Length: 5\r\n\r\nhe")
                self.wfile.write(b"llo")


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.fixture
def fake_wrk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a wrk on the PATH that prints what it is told to."""

    def install(output: str) -> None:
        (tmp_path / "output").write_text(output)
        program = tmp_path / "wrk"
        program.write_text(f"#!/bin/sh\ncat {tmp_path}/output\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def generate(port: int, *arguments: str, by: str = "open_loop") -> dict[str, float]:
    command = [sys.executable, "-m", f"bench.{by}", "--port", str(port), "--connections", "4", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    made: dict[str, float] = json.loads(done.stdout)
    return made


# --- wrk ---


def test_the_report_of_wrk_is_understood() -> None:
    assert parse_wrk(WRK) == Load(129861, 32454.93, "5.62ms", 0, "")


def test_bad_answers_and_socket_errors_are_seen_in_the_report_of_wrk() -> None:
    errors = "connect 0, read 3, write 0, timeout 1"
    load = parse_wrk(BAD_WRK.replace("Requests/sec", f"  Socket errors: {errors}\nRequests/sec"))
    assert (load.bad, load.errors) == (17, errors)


def test_what_is_no_report_of_wrk_cannot_be_measured() -> None:
    with pytest.raises(CannotMeasure, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_party_that_answers_2xx_counts(fake_wrk: Callable[[str], None]) -> None:
    fake_wrk(WRK)
    assert run_wrk(Party("proxy", os.getpid(), 1, "/"), 1).requests == 129861


@pytest.mark.parametrize(
    "output", [BAD_WRK, WRK.replace("129861 requests", "0 requests")], ids=["other than 2xx", "no answer"]
)
def test_a_party_that_answers_other_than_2xx_fails_the_run(fake_wrk: Callable[[str], None], output: str) -> None:
    fake_wrk(output)
    with pytest.raises(CannotMeasure, match="proxy answered other than 2xx"):
        run_wrk(Party("proxy", os.getpid(), 1, "/"), 1)


# --- the open loop ---


def test_the_open_loop_sends_what_is_due_and_counts_from_then(upstream: Upstream) -> None:
    report = generate(upstream.port, "--rate", "400", "--seconds", "0.5")
    assert report["bad"] == 0
    assert report["requests"] == len(poisson(400, 0.5, 1))
    assert 0 < report["p50_ms"] <= report["p90_ms"] <= report["p99_ms"] <= report["max_ms"]


def test_the_open_loop_counts_answers_other_than_2xx(upstream: Upstream) -> None:
    upstream.bad_from = 100
    report = generate(upstream.port, "--rate", "400", "--seconds", "0.5")
    assert report["bad"] == upstream.answered - 99 > 0


def test_wrong_keys_that_are_not_refused_are_bad(upstream: Upstream) -> None:
    report = generate(upstream.port, "--rate", "400", "--seconds", "0.5", by="wrong_keys")
    assert report["bad"] == report["answered"] / 2 > 0


@given(st.integers(1, 10_000), st.integers(0, 100))
def test_arrivals_are_in_order_and_in_time(rate: int, seed: int) -> None:
    times = poisson(rate, 0.05, seed)
    assert times == sorted(times)
    assert all(0 < each < 0.05 for each in times)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1, exclude_max=True))
def test_at_most_the_rest_lies_above_a_percentile(values: list[float], share: float) -> None:
    above = sum(value > percentile(values, share) for value in values)
    assert above <= len(values) * (1 - share)


# --- what is said about it ---


def measurements(*cpu_us: float) -> list[Measurement]:
    return [Measurement(us, Load(1000, 1e6 / us, "1.00ms", 0, "")) for us in cpu_us]


def test_parties_are_compared_by_the_medians_of_their_rounds() -> None:
    runs = {
        "gateway": measurements(40, 38, 90),
        "gateway-10k": measurements(42, 41, 43),
        "gw-new-paths": measurements(46, 46, 46),
        "envoy-bare": measurements(28, 28, 28),
        "envoy-1000": measurements(64, 9, 80),
        "envoy-tree": measurements(32, 32, 32),
    }
    figures = [(round(bar.figure, 3), bar.is_met) for bar in cpu.bars(cpu.medians(runs))]
    assert figures == [(0.625, True), (1.25, True), (1.429, True), (1.05, True), (0.719, False), (1.438, True)]
    assert "gateway            40.0       1.00     25000    1.00ms  0" in cpu.table(runs)
    assert "envoy-1000         64.0       0.62     15625    1.00ms  0" in cpu.table(runs)


def test_a_bar_says_whether_it_is_met_and_its_figure() -> None:
    assert Bar("added p99", 1.5, 2.0, "ms").line().split()[:5] == ["met", "1.50", "ms", "bar", "2:"]
    assert Bar("added p99", 2.5, 2.0, "ms").line().split()[:3] == ["not", "met", "2.50"]


def test_the_newest_run_takes_the_place_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    for figure in (3.0, 1.0):
        report.report("cpu", {"cpu_us": figure}, [Bar("of bare Envoy", figure, 1.6, "x")])
    kept = json.loads((tmp_path / "results" / "cpu.json").read_text())
    assert kept["results"] == {"cpu_us": 1.0}
    assert [bar["met"] for bar in kept["bars"]] == [True]
    assert "not met" in capsys.readouterr().out


def test_columns_of_a_table_line_up() -> None:
    assert table(("ms", "p50"), [("direct", 0.5), ("all", 12.25)]).splitlines() == [
        "ms        p50",
        "direct   0.50",
        "all     12.25",
    ]


# --- processes ---


def test_what_is_missing_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.delenv("ENVOY", raising=False)
    with pytest.raises(CannotMeasure) as refusal:
        check_programs(["nginx", "wrk", "envoy"])
    assert "nginx, wrk missing; on Debian or Ubuntu: apt install nginx-light wrk" in str(refusal.value)
    assert "envoy missing" in str(refusal.value)


def test_processes_of_a_stage_are_measured_and_end_with_it() -> None:
    with Stage() as stage:
        process = stage.start(None, sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)")
        machine.eventually(lambda: "here" in stage.output(), "its first line")
        rss_mb, pss_mb = memory_mb(process.pid)
        assert 0 < pss_mb <= rss_mb < 100
        assert cpu_s(process.pid) < 10
    assert process.poll() is not None
    assert not stage.directory.exists()


def test_every_step_of_a_request_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code = (
        "from pathlib import Path; from bench import machine, report, steps;"
        f"machine.ROOT = Path({str(tmp_path)!r}); report.RESULTS = machine.ROOT / 'results'; steps.run(batch=20)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "results" / "steps.json").read_text())["results"]
    assert kept["same path"]["everything"] > 0
    assert kept["new paths"]["steps"]["match"] > 0

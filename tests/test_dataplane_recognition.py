"""Keys of another pepper, as a worker asks the agent about them; the agent is the test's."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from keys.credential import LOOKUP, _checksum, generate, is_well_formed
from tests.dataplane import DataPlane, digest_of
from tests.raw_http import Client
from tests.scripted_upstream import Upstream
from tests.wires import key_wire


class Agent:
    """Knows by argon2 the ``known`` keys, once it may answer."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.known: set[str] = set()
        self.asked: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, name: str, params: dict[str, Any]) -> dict[str, Any]:
        assert name == "recognise_key"
        key = params["key"]
        self.asked.append(key)
        assert self.may_answer.wait(20)
        if key in self.known:
            record = key_wire(f"key_{len(self.asked)}", digest_of(key))
            self.plane.feed._change({"api_key": [record]}, {})  # not `put`, which waits for what we are to read
        return {"is_known": key in self.known}


@pytest.fixture(scope="module")
def own(start_module_plane: Callable[..., DataPlane]) -> DataPlane:
    return start_module_plane(auth_failures_per_minute=6)


@pytest.fixture(scope="module")
def upstream(own: DataPlane) -> Upstream:
    return own.serve()


@pytest.fixture
def agent(own: DataPlane) -> Iterator[Agent]:
    agent = own.feed.answerer = Agent(own)
    own.feed.tell({"type": "peppers", "others": True})
    yield agent
    agent.may_answer.set()
    own.feed.tell({"type": "peppers", "others": False})


def new_key() -> str:
    return generate("km_").key


def test_a_key_that_the_agent_recognises_goes_on_and_is_known_from_then_on(
    own: DataPlane, upstream: Upstream, agent: Agent
) -> None:
    key = new_key()
    agent.known.add(key)
    with own.connect() as client:
        for _ in range(2):
            assert client.send(own.request("GET", f"{upstream.path}/x", key=key)).answer().status == 200
    assert own.ask("POST", f"{upstream.path}/x", key=key, body=b"held meanwhile").status == 200
    assert agent.asked == [key]


def test_a_request_whose_body_came_along_is_held_with_it(own: DataPlane, upstream: Upstream, agent: Agent) -> None:
    key = new_key()
    agent.known.add(key)
    assert own.ask("POST", f"{upstream.path}/x", key=key, body=b"b" * 70_000).status == 200
    assert upstream.requests[-1].body == b"b" * 70_000


def test_only_what_may_be_a_key_is_asked_about_and_only_while_there_are_such_keys(
    own: DataPlane, upstream: Upstream, agent: Agent
) -> None:
    path, source = f"{upstream.path}/x", "127.0.0.3"
    assert own.ask("GET", path, key="km_nonsense", source=source).status == 401
    own.feed.tell({"type": "peppers", "others": False})
    assert own.ask("GET", path, key=new_key(), source=source).status == 401
    assert agent.asked == []


def test_a_key_whose_prefix_is_no_text_is_none(own: DataPlane, upstream: Upstream, agent: Agent) -> None:
    unchecked = b"\xff_" + b"A" * (LOOKUP + 32)
    key = unchecked + _checksum(unchecked).encode()
    assert is_well_formed(key, b"\xff_")
    with own.connect("127.0.0.7") as client:
        client.send(own.request("GET", f"{upstream.path}/x", b"X-API-Key: " + key, key=None))
        assert client.answer().status == 401
    assert agent.asked == []


def test_wrong_keys_are_refused_charged_and_then_asked_about_no_more(
    own: DataPlane, upstream: Upstream, agent: Agent
) -> None:
    path, source = f"{upstream.path}/x", "127.0.0.4"
    statuses = [own.ask("GET", path, key=new_key(), source=source).status for _ in range(8)]
    assert statuses == [401] * 6 + [429] * 2
    assert len(agent.asked) == 6


def test_little_is_asked_at_once_and_nobody_is_called_wrong_for_that(
    own: DataPlane, upstream: Upstream, agent: Agent
) -> None:
    agent.may_answer.clear()
    keys = [new_key() for _ in range(5)]
    agent.known.update(keys)

    def ask(client: Client, key: str) -> Client:
        return client.send(own.request("GET", f"{upstream.path}/x", key=key))

    with ExitStack() as stack:
        held = [ask(stack.enter_context(own.connect("127.0.0.5")), key) for key in (*keys[:4], keys[0])]
        busy = ask(stack.enter_context(own.connect("127.0.0.5")), keys[4]).answer()
        elsewhere = ask(stack.enter_context(own.connect("127.0.0.6")), keys[4])
        assert (busy.status, busy.code) == (503, "overloaded")
        agent.may_answer.set()
        assert [client.answer().status for client in (*held, elsewhere)] == [200] * 6
    assert len(agent.asked) == 5

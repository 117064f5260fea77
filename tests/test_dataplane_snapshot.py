"""The snapshot: full loads and deltas lead to the same, and what does not compile never replaces what runs."""

import asyncio
import gc
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.wire import KINDS, encode
from gateway_project.dataplane.release import release_slowly
from gateway_project.dataplane.snapshot import (
    RecordCompiler,
    RecordDelta,
    RecordIndex,
    Snapshot,
    SnapshotBuilder,
    apply_delta,
)
from gateway_project.dataplane.snapshot_file import SnapshotFileError, read_snapshot_file, write_snapshot_file
from tests.snapshots import DEFAULT_LIMIT, answers, built
from tests.wires import (
    Wire,
    application_wire,
    entry_wire,
    gateway_wire,
    issuer_wire,
    key_wire,
    limit_wire,
    queue_route_wire,
    route_wire,
    service_wire,
    version_wire,
)

Records = dict[str, dict[str, Wire]]  # kind → id → wire


class Follower:
    """A snapshot and its index, moved along by deltas as `AgentLink` does."""

    def __init__(self) -> None:
        self.snapshot, self.index = Snapshot.empty(), RecordIndex()
        self.problems: list[dict[str, str]] = []

    def apply(self, put: dict[str, list[Wire]], drop: dict[str, list[str]] | None = None) -> None:
        compiler, delta = RecordCompiler(DEFAULT_LIMIT), RecordDelta()
        for kind, wires in put.items():
            delta.put[kind] = compiler.compile(kind, wires)
        delta.drop.update(drop or {})
        self.problems = compiler.problems
        self.snapshot = apply_delta(self.snapshot, self.index, delta, self.snapshot.revision + 1, "t")


def digest(number: int) -> bytes:
    return bytes([number]) * 32


# --- deltas --------------------------------------------------------------------------------------------------------
ids = st.integers(1, 4)
patterns = st.sampled_from(["/api/a", "/api/a/*", "/api/{x}/x", "/api/*/x/y", "/api/b/x"])
services = st.builds(
    lambda number, name, weight, implicit: service_wire(
        id=f"svc_{number}", name=name, versions=[version_wire("v1", weight)], implicit=implicit
    ),
    *(ids, st.sampled_from(["orders", "users", "mail"]), st.integers(0, 3), st.booleans()),
)
routes = st.builds(
    lambda number, path, hosts, methods, priority, is_active: route_wire(
        f"rte_{number}", path, hosts=hosts, methods=methods, priority=priority, is_active=is_active
    ),
    *(ids, patterns, st.sampled_from([[], ["api.example.com"], ["*.example.com", "localhost"]])),
    *(st.sampled_from([[], ["GET"], ["POST"]]), st.integers(0, 2), st.booleans()),
)
applications = st.builds(
    lambda number, paths, is_public, limit, sans: application_wire(
        id=f"app_{number}",
        rate_limit=limit,
        policies={"client_certificates": {"accepted": [{"san": san} for san in sans]}} if sans else {},
        entries=[entry_wire(f"wle_{number}{index}", path, is_public=is_public) for index, path in enumerate(paths)],
    ),
    *(ids, st.lists(patterns, max_size=3, unique=True), st.booleans(), st.sampled_from([None, 5])),
    st.lists(st.sampled_from(["a.test", "b.test"]), max_size=2, unique=True),
)
keys = st.builds(
    lambda number, which, scopes: key_wire(f"key_{number}", digest(4 * number + which), scopes=scopes),
    *(ids, st.integers(0, 1), st.sampled_from([[], ["read"]])),
)
queue_routes = st.builds(lambda number: queue_route_wire(id=f"que_{number}"), ids)
gateways = st.builds(
    lambda message: gateway_wire(**({"maintenance": {"message": message}} if message else {})),
    st.sampled_from(["", "Back at nine.", "Gone."]),
)
issuers = st.builds(
    lambda number, which: issuer_wire(id=f"iss_{number}", issuer=f"https://{2 * number + which}.example.com"),
    *(ids, st.integers(0, 1)),
)
limits = st.builds(
    lambda number, limit, more: limit_wire(id=f"lim_{number}", limit=limit, **more),
    *(ids, st.integers(1, 5)),
    st.sampled_from(
        [
            {},
            {"paths": ["/api/a/*", "/api/b/x"]},
            {"routes": ["rte_1"], "methods": ["GET"]},
            {"services": ["orders", "mail"]},
            {"applications": ["app_1", "web"]},
            {"applications": ["app_2"], "paths": ["/api/{x}/x"]},
        ]
    ),
)
_BY_KIND = dict(
    zip(KINDS, (services, routes, queue_routes, applications, keys, gateways, issuers, limits), strict=True)
)
wires = st.one_of(*(st.tuples(st.just(kind), wire) for kind, wire in _BY_KIND.items()))
drops = st.tuples(st.sampled_from(KINDS), ids)
steps = st.lists(st.tuples(st.lists(wires, max_size=4), st.lists(drops, max_size=2)), max_size=8)
_PREFIXES = dict(zip(KINDS, ("svc", "rte", "que", "app", "key", "gateway", "iss", "lim"), strict=True))


def row_id(kind: str, number: int) -> str:
    return kind if kind == "gateway" else f"{_PREFIXES[kind]}_{number}"


def names_differ(records: Records) -> bool:
    names = [wire["name"] for wire in records["service"].values()]
    return len(set(names)) == len(names)


@given(steps)
@settings(deadline=None)
def test_deltas_lead_to_what_a_full_load_of_the_same_records_leads_to(
    steps: list[tuple[list[tuple[str, Wire]], list[tuple[str, int]]]],
) -> None:
    records: Records = {kind: {} for kind in KINDS}
    follower = Follower()
    for puts, dropped in steps:
        drop = {kind: sorted({row_id(kind, id) for k, id in dropped if k == kind}) for kind in KINDS}
        put = {kind: {wire["id"]: wire for k, wire in puts if k == kind} for kind in KINDS}
        after = {
            kind: {id: each for id, each in records[kind].items() if id not in drop[kind]} | put[kind] for kind in KINDS
        }
        if not names_differ(after):
            continue  # the database refuses that
        records = after
        gone = {kind: [id for id in drop[kind] if id not in put[kind]] for kind in KINDS}
        follower.apply({kind: list(put[kind].values()) for kind in KINDS}, gone)
    assert answers(follower.snapshot) == answers(built({kind: list(records[kind].values()) for kind in KINDS}))


def test_services_may_trade_names_within_one_revision() -> None:
    follower = Follower()
    follower.apply({"service": [service_wire(id="svc_1", name="a"), service_wire(id="svc_2", name="b")]})
    follower.apply({"service": [service_wire(id="svc_1", name="b"), service_wire(id="svc_2", name="a")]})
    assert {name: service.id for name, service in follower.snapshot.services.items()} == {"b": "svc_1", "a": "svc_2"}


def test_a_key_whose_digest_was_rebuilt_no_longer_answers_to_the_former_one() -> None:
    follower = Follower()
    follower.apply({"api_key": [key_wire("key_1", digest(1))]})
    follower.apply({"api_key": [key_wire("key_1", digest(2))]})
    assert follower.snapshot.keys.get(digest(1)) is None
    assert follower.snapshot.keys.get(digest(2)) is not None


def test_a_snapshot_stays_as_it_is_while_later_ones_change() -> None:
    follower = Follower()
    follower.apply({"service": [service_wire()], "api_key": [key_wire("key_1", digest(1))]})
    captured, before = follower.snapshot, answers(follower.snapshot)
    follower.apply({"route": [route_wire("rte_1", "/api/a")]}, {"service": ["svc_1"], "api_key": ["key_1"]})
    assert answers(captured) == before
    assert follower.snapshot.services == {}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("service", service_wire(), service_wire(default_url="ftp://10.0.0.1")),
        ("route", route_wire("rte_1", "/api/a"), route_wire("rte_1", "/api/{a")),
        ("application", application_wire(), application_wire(entries=[entry_wire("wle_1", "no slash")])),
        ("api_key", key_wire("key_1", digest(1)), key_wire("key_1", b"short")),
        ("queue_route", queue_route_wire(), {"id": "que_1"}),
        ("gateway", gateway_wire(maintenance={}), gateway_wire(maintenance={"retryAfterS": 0})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_that_does_not_compile_is_reported_and_leaves_the_former_one_in_force(
    kind: str, good: Wire, bad: Wire
) -> None:
    follower = Follower()
    follower.apply({kind: [good]})
    before = answers(follower.snapshot)
    follower.apply({kind: [bad]})
    assert answers(follower.snapshot) == before
    assert [(each["kind"], each["id"]) for each in follower.problems] == [(kind, good["id"])]


def test_a_full_load_goes_on_past_a_record_that_does_not_compile() -> None:
    builder = SnapshotBuilder(DEFAULT_LIMIT)
    builder.add("service", [service_wire(default_url="nonsense"), service_wire(id="svc_2", name="users")])
    builder.add("of the future", [{"id": "x"}])
    assert list(builder.finish(1, "t").services) == ["users"]
    assert [each["kind"] for each in builder.problems] == ["service", "of the future"]


def test_keys_share_what_is_equal_in_many_of_them() -> None:
    application = "app_" + str(os.getpid())
    one, two = (
        key_wire(f"key_{number}", digest(number), application=str(application), scopes=["read", "write"])
        for number in (1, 2)
    )
    first, second = built({"api_key": [one, two]}).keys.values()
    assert first.scopes is second.scopes
    assert first.application_id is second.application_id


# --- the file ------------------------------------------------------------------------------------------------------
def frames() -> list[bytes]:
    return [
        encode({"type": "reset", "revision": 7, "token": "t"}),
        *(encode({"type": "records", "kind": "service", "records": [service_wire(id=f"svc_{n}")]}) for n in range(300)),
        encode({"type": "commit", "revision": 7, "token": "t", "as_of": 5.0}),
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [message for messages in read_snapshot_file(path) for message in messages]


def test_a_snapshot_file_gives_back_what_was_written_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.bin"
    write_snapshot_file(path, frames())
    write_snapshot_file(path, frames())  # over the former one
    messages = read(path)
    assert [message["type"] for message in messages] == ["reset", *["records"] * 300, "commit"]
    assert messages[-1] == {"type": "commit", "revision": 7, "token": "t", "as_of": 5.0}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_snapshot_file_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.bin"
    write_snapshot_file(path, frames())

    def failing() -> Any:
        yield frames()[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_snapshot_file(path, failing())
    assert len(read(path)) == 302
    assert list(tmp_path.iterdir()) == [path]


def types_until_refused(path: Path) -> list[str]:
    seen: list[str] = []
    try:
        for messages in read_snapshot_file(path):
            seen += [message["type"] for message in messages]
    except SnapshotFileError:
        return seen
    raise AssertionError("the file was accepted")


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_nothing_comes_out_of_a_torn_or_changed_snapshot_file(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("torn") / "snapshot.bin"
    write_snapshot_file(path, frames())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="torn"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert types_until_refused(path) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a snapshot"),
        (b"#!/bin/sh\n" + b"x" * 100, "is not a snapshot"),
        (b"PORTCULLIS\x00\x63\x00\x01" + b"x" * 100, "another version"),
        (None, "No such file"),
    ],
    ids=["empty", "foreign", "other format", "missing"],
)
def test_a_file_that_is_no_snapshot_is_refused_with_its_reason(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SnapshotFileError, match=reason):
        read(path)


# --- letting go ----------------------------------------------------------------------------------------------------
class Node:
    """Counts how many of it live."""

    living = 0

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        Node.living += 1

    def __del__(self) -> None:
        Node.living -= 1


def test_a_released_structure_is_freed_except_for_what_others_still_hold() -> None:
    kept = Node()
    holder: list[Any] = [Node({number: Node() for number in range(3000)}, kept)]
    gc.disable()  # so that nothing but the release frees anything
    try:
        asyncio.run(release_slowly(holder))
    finally:
        gc.enable()
    assert Node.living == 1
    assert sys.getrefcount(kept) == 2
    assert kept.parts == ()


def test_a_release_waits_for_whoever_still_uses_the_structure() -> None:
    async def scenario() -> int:
        in_use = Node(Node())
        releasing = asyncio.create_task(release_slowly([in_use]))
        await asyncio.sleep(0.02)
        assert not releasing.done()
        living = Node.living
        del in_use
        await releasing
        return living - Node.living

    assert asyncio.run(scenario()) == 2

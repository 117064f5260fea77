"""The embedded mode's broker: kombu's folders, written and read so that no message is lost or overtaken."""

import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.transport import filesystem

from queues.folder_broker import make_folders

OURS = "queues.folder_broker:Transport"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {**make_folders(tmp_path / "broker"), "polling_interval": 0.01}


def send(options: dict[str, Any], transport: str, *bodies: Any, queue: str = "mail") -> None:
    with kombu.Connection("filesystem://localhost", transport=transport, transport_options=options) as link:
        producer = kombu.Producer(link.channel())
        for body in bodies:
            producer.publish(body, routing_key=queue)


def receive(options: dict[str, Any], transport: str, count: int) -> list[Any]:
    bodies = []
    with (
        kombu.Connection("filesystem://localhost", transport=transport, transport_options=options) as link,
        link.SimpleQueue(kombu.Queue("mail")) as box,
    ):
        for _ in range(count):
            message = box.get(timeout=5)
            bodies.append(message.payload)
            message.ack()
    return bodies


@pytest.mark.parametrize("reader", [OURS, "filesystem"], ids=["our reader", "a consumer's reader"])
def test_messages_come_out_in_the_order_they_went_in(options: dict[str, Any], reader: str) -> None:
    numbers = list(range(200))
    send(options, OURS, *numbers)
    assert receive(options, reader, 200) == numbers


def test_folders_and_messages_are_private(options: dict[str, Any]) -> None:
    send(options, OURS, {"secret": 1})
    (message,) = Path(options["data_folder_in"]).iterdir()
    assert stat.S_IMODE(message.stat().st_mode) == 0o600
    folders = {Path(path) for name, path in options.items() if "folder" in name}
    assert {stat.S_IMODE(path.stat().st_mode) for path in {*folders, message.parent.parent}} == {0o700}


def test_nothing_is_left_behind_once_messages_are_read(options: dict[str, Any]) -> None:
    send(options, OURS, 1, 2, 3)
    receive(options, OURS, 3)
    left = [name for name in ("data_folder_in", "processed_folder") if os.listdir(options[name])]
    assert left == []


def test_a_message_that_plain_kombu_is_still_writing_is_waited_for(options: dict[str, Any]) -> None:
    send(options, "filesystem", {"n": 1})
    (path,) = Path(options["data_folder_in"]).iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:20])

    def finish_writing() -> None:
        time.sleep(0.1)
        (taken,) = Path(options["processed_folder"]).iterdir()
        taken.write_bytes(whole)

    writer = threading.Timer(0.1, finish_writing)
    writer.start()
    assert receive(options, OURS, 1) == [{"n": 1}]
    writer.join()


@pytest.mark.parametrize("queue", ["a/b", "../escape", "", "x" * 200])
def test_a_queue_that_cannot_be_a_file_name_is_refused(options: dict[str, Any], queue: str) -> None:
    with kombu.Connection("filesystem://localhost", transport=OURS, transport_options=options) as link:
        channel: filesystem.Channel = link.channel()
        with pytest.raises(ValueError, match="cannot have a queue named"):
            channel._put(queue, {})

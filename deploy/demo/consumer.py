"""A consumer of the demo: a plain Celery app that knows nothing of the gateway but task and queue names.

    DEMO_BROKER_URL=amqp://… celery -A deploy.demo.consumer worker -E -Q email,sms,analytics,reports

Without a broker server: DEMO_BROKER_DIR names the gateway's broker folder (VAR_DIR/broker), and -P solo
--without-gossip --without-mingle keep this process from leaving files for other workers there.
"""

import os
from pathlib import Path
from typing import Any

from celery import Celery, Task


def configuration() -> dict[str, Any]:
    """The broker of DEMO_BROKER_URL, or the folder of DEMO_BROKER_DIR."""
    folder = os.environ.get("DEMO_BROKER_DIR")
    if not folder:
        url = os.environ.get("DEMO_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//")
        return {"broker_read_url": url, "broker_write_url": url}
    os.umask(0o077)  # messages are files
    messages = str(Path(folder) / "messages")
    return {
        "broker_read_url": "filesystem://localhost",
        "broker_write_url": "filesystem://localhost",
        "broker_transport_options": {
            "data_folder_in": messages,
            "data_folder_out": messages,
            "control_folder": str(Path(folder) / "control"),
            "polling_interval": 0.2,
        },
    }


app = Celery("demo")
app.conf.update(
    **configuration(),
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    task_ignore_result=True,
)


@app.task(name="email.send", bind=True)
def send_email(self: Task, to: str, subject: str = "", body: str = "", **more: Any) -> dict[str, Any]:
    print(f"email to {to}: {subject!r} (trace {self.request.get('traceparent')})", flush=True)
    return {"delivered_to": to, "bytes": len(body.encode())}


@app.task(name="sms.send")
def send_sms(to: str, text: str) -> dict[str, Any]:
    return {"delivered_to": to, "parts": -(-len(text) // 160)}


@app.task(name="analytics.track")
def track(event: dict[str, Any]) -> int:
    """A task that takes the whole body as its one argument."""
    return len(event)


@app.task(name="reports.broken")
def broken_report(**_: Any) -> None:
    raise RuntimeError("the report's data source is away")

"""A consumer for tests: the demo's, and a task that returns all that it was given."""

from typing import Any

from celery import Task

from deploy.demo.consumer import app


@app.task(name="test.echo", bind=True)  # type: ignore[untyped-decorator]
def echo(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    request = self.request
    return {
        "args": args,
        "kwargs": kwargs,
        "id": request.id,
        "message_id": request.properties.get("message_id"),
        "headers": {name: request.get(name) for name in ("traceparent", "request_id", "x-team", "task")},
        "priority": request.delivery_info.get("priority"),
        "expires": request.expires,
        "routing_key": request.delivery_info.get("routing_key"),
    }

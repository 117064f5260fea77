"""By which door a request came to the control process: the panel's own port, or a worker that handed it over.

Workers hand over through a Unix socket that only this user can open.
"""

from django.http import HttpRequest


def is_through_gateway(request: HttpRequest) -> bool:
    """Whether a worker handed the request over: no panel session counts there (rule 15)."""
    scope = getattr(request, "scope", None)
    if scope is None:
        return False  # no ASGI server: a test's client
    server = scope.get("server")  # uvicorn: (path, None) on a Unix socket
    return not server or server[1] is None or not scope.get("client")

"""What several of the tests here kill, or ask through what is killed."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.gateway_process import migrate
from tests.gateway_traffic import echo
from tests.private_servers import PrivatePostgres
from tests.scripted_upstream import Upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """Echoes."""
    with closing(Upstream(echo)) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    """A migrated database server of the module's own."""
    server = PrivatePostgres()
    try:
        server.start()
        migrate(server.url)
        yield server
    finally:
        server.destroy()

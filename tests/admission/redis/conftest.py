from collections.abc import Iterator

import pytest
import redis

from admission.redis.servers import Namespace, shared_server


@pytest.fixture(scope="session")
def server() -> Iterator[redis.Redis]:
    """A real server, for all tests of this process that do not harm it."""
    with shared_server() as connection:
        yield connection


@pytest.fixture
def namespace(server: redis.Redis, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of the test's own; empty before and after."""
    one = Namespace(server, request.node.name)
    yield one
    one.empty()

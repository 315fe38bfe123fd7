"""Database servers that a test may break; where there is none, the test is skipped or fails."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from studies import servers
from studies.servers import OwnServer, ServerMissing, Wire, free_port

__all__ = ["OwnServer", "Wire", "free_port", "own_server"]


@contextlib.contextmanager
def own_server(kind: str) -> Iterator[OwnServer]:
    try:
        with servers.own_server(kind) as server:
            yield server
    except ServerMissing as missing:
        if os.environ.get("LYAP_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))

"""The server that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.http.live import serving


@pytest.fixture(scope="session")
def client(models_dir: Path) -> Iterator[httpx.Client]:
    """Of a server with the toy model and the usual settings."""
    with serving(models_dir) as (client, _):
        yield client

"""Behind a proxy that serves viola under a prefix, which it may cut off or leave."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.service.http.live import RAW, noise, serving, wav

PREFIX = "/viola"


@pytest.fixture(scope="module")
def prefixed(models_dir: Path) -> Iterator[httpx.Client]:
    with serving(models_dir, root_path=PREFIX) as (client, _):
        yield client


@pytest.fixture(params=["", PREFIX], ids=["cut off", "left"])
def seen(request: pytest.FixtureRequest) -> str:
    """What the server sees of the prefix."""
    prefix: str = request.param
    return prefix


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/page/page.js", "/page/page.css", "/page/swagger/swagger-ui.css"]
)
def test_the_page_and_its_files_are_there(path: str, seen: str, prefixed: httpx.Client) -> None:
    answer = prefixed.get(seen + path)
    assert answer.status_code == 200
    if path == "/openapi.json":
        assert PREFIX in answer.text
    if "html" in answer.headers["content-type"]:
        links = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
        assert links
        for link in links:  # as a browser resolves them, wherever the page lies
            assert not link.startswith(("/", "http"))
            assert prefixed.get(urljoin(f"{seen}{path}", link)).status_code == 200


@pytest.mark.parametrize("path", ["/embed", "/classify", "/logmel", "/models/reload"])
def test_routes_are_there(path: str, seen: str, prefixed: httpx.Client) -> None:
    assert prefixed.post(seen + path, content=wav(noise(0.1)), headers=RAW).status_code in (200, 404)


@pytest.mark.parametrize("path", ["/models/", "/models/?a=b", "/docs/", "/models//"])
def test_a_slash_too_many_is_redirected_below_the_prefix(
    path: str, seen: str, prefixed: httpx.Client
) -> None:
    answer = prefixed.get(seen + path)
    assert answer.status_code == 307
    route, _, query = path.partition("?")
    assert answer.headers["location"] == PREFIX + route.rstrip("/") + ("?" + query if query else "")


@pytest.mark.parametrize(
    "path", ["/nothing/", "//example.org/", "/page/", "/viola/", "/models/?" + "a" * 2000]
)
def test_what_is_no_route_without_its_slash_either_is_not_found(path: str, prefixed: httpx.Client) -> None:
    if path == "/viola/":
        assert prefixed.get(path).status_code == 200  # the prefix itself
        assert prefixed.get("/viola").status_code == 200
        return
    assert prefixed.get(f"{prefixed.base_url}".rstrip("/") + path).status_code == 404


def test_a_path_that_no_file_system_takes_is_not_found(prefixed: httpx.Client) -> None:
    for name in ("%00", "a" * 5000, "..%2f..%2fapp.py", "%ff"):
        assert prefixed.get(f"/page/{name}").status_code == 404

"""Every link of every page leads somewhere, its anchor included; and, within docs/, somewhere on the site."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.links import anchors, links

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "clients" / "python" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "training" / "LOG.md",
    *sorted(DOCS.rglob("*.md")),
]
ELSEWHERE = ("http://", "https://", "mailto:")
LINKS = [(page, link) for page in PAGES for link in links(page) if not link.startswith(ELSEWHERE)]
MKDOCS = shutil.which("mkdocs", path=str(ROOT / "build" / "docs" / "bin")) or shutil.which("mkdocs")


def test_pages_and_links_are_found() -> None:
    assert len(PAGES) > 20
    assert len(LINKS) > 50
    assert (DOCS / "operations.md", "settings.md") in LINKS


@pytest.mark.parametrize(
    ("page", "link"), LINKS, ids=[f"{page.relative_to(ROOT)}: {link}" for page, link in LINKS]
)
def test_a_link_leads_somewhere(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target)
    if page.is_relative_to(DOCS):
        assert target.is_relative_to(DOCS), "the site holds docs/ alone: name the file, do not link to it"


def test_the_site_is_built_without_a_complaint(tmp_path: Path) -> None:
    if MKDOCS is None:
        pytest.skip("there is no mkdocs; `make docs` sets one up")
    command = [MKDOCS, "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "operations" / "index.html").read_text().count('id="violadown"') == 1

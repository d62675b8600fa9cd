"""A page in Markdown in, its links and the anchors of its headings out."""

import re
from collections.abc import Iterator
from pathlib import Path

FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|<(?:img|a) [^>]*?(?:src|href)=\"([^\"]+)\"")


def prose(page: Path) -> str:
    """Without the programs."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[str]:
    """As they are written, images included."""
    for found in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page))):
        yield "".join(found)


def anchors(page: Path) -> set[str]:
    """`## Starting, restarting, ending` → `starting-restarting-ending`, as both the site and a view of the
    repository make them. Where these differ there is none: for a heading that comes twice, or with ` & `."""
    slugs = [slug(heading) for heading in HEADING.findall(prose(page))]
    return {each for each in slugs if slugs.count(each) == 1 and "--" not in each}


def slug(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())

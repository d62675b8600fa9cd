"""README.md: short, in order, its figures and claims those of the page or the file that they are from."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENCODERS = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
COMPARISON = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
OTHERS = ("infinity", "LitServe", "MLServer", "FastAPI", "BentoML", "Ray Serve")


def table(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose head begins so; its head comes first."""
    (lines,) = re.findall(rf"^\| {re.escape(head)}.*\n\|[ -|]*\n((?:\|.*\n)+)", page, re.MULTILINE)
    (first,) = re.findall(rf"^(\| {re.escape(head)}.*)\n", page, re.MULTILINE)
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in (first, *lines.splitlines())
    ]


def test_it_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 120


def test_the_first_screen_is_in_order() -> None:
    beginnings = (
        "viola turns sound into",
        "```sh\ngit clone",
        "```console\n$ curl ",
        "docker run",
        "```python\nfrom viola_client",
        "| viola |",
        "| encoder |",
        "(docs/index.md)",
    )
    places = [README.index(beginning) for beginning in beginnings]
    assert places == sorted(places)


def test_who_else_does_it_is_what_the_comparison_says() -> None:
    head, *rows = table(COMPARISON, "| viola | infinity")
    also = {
        what: {name for name, cell in zip(head[2:], cells, strict=True) if cell == "yes"}
        for what, viola, *cells in rows
        if viola == "yes"
    }
    _, *shown = table(README, "viola")
    assert shown
    for what, others, _ in shown:
        assert also[what] == (set() if others == "none of them" else set(others.split(", "))), what


def test_each_claim_names_the_tests_that_hold_it() -> None:
    _, *shown = table(README, "viola")
    for what, _, tests in shown:
        paths = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert paths, what
        assert all("def test_" in (ROOT / path).read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("name", OTHERS)
def test_each_speed_is_the_best_of_that_servers_settings(name: str) -> None:
    assert float(shown_speed(name)) == max(speeds(name))


def test_violas_own_speed_with_two_workers_is_that_of_the_comparison() -> None:
    (speed,) = re.findall(r"viola itself (\d\.\d\d) with\s+two\s+workers", README)
    assert float(speed) == max(speeds("viola int8, 1 worker per core"))


def shown_speed(name: str) -> str:
    (speed,) = re.findall(rf"{name} (\d\.\d\d)", " ".join(README.split()))
    return speed


def speeds(name: str) -> list[float]:
    """Requests per second over viola's at 32 clients with the int8 graph, of all settings of a server."""
    head, *rows = table(COMPARISON, "int8; clients:")
    return [float(row[head.index("32")]) for row in rows if row[0].startswith(name)]


def encoders() -> dict[str, dict[str, str]]:
    head, *rows = table(README, "encoder")
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@pytest.mark.parametrize(
    ("encoder", "model", "column"),
    [
        ("byola-2022, the default", "byola", "value"),
        ("efficientat 0.4 #9 #15, small", "viola-small", "value"),
        ("byola-2022, untrained", "byola", "untrained"),
        ("logmel-stats", "byola", "log-mel statistics"),
    ],
)
def test_what_is_measured_here_is_the_mean_of_the_cards_results(
    encoder: str, model: str, column: str
) -> None:
    rows = json.loads((ROOT / "models" / model / "card.json").read_text())["evaluation"]
    assert len(rows) == 6
    shown = encoders()[encoder]["six tasks, measured here"].strip("*")
    assert shown == f"{sum(row[column] for row in rows) / len(rows):.3f}"
    (of_model,) = (row for row in table(ENCODERS, "representation | numbers") if f"models/{model}" in row)
    assert shown in (of_model if column == "value" else table(ENCODERS, "task")[-1])


@pytest.mark.parametrize(
    ("encoder", "published"),
    [
        ("byola-2022 on AudioSet", "BYOL-A 2022, trained on AudioSet"),
        ("vggish #10 #15", "VGGish, #10 #15 fused"),
        ("cnn14 #3 #6", "CNN14, #3 #6 fused"),
        ("ast #5 #12", "AST, #5 #12 fused"),
        ("msm-mae", "MSM-MAE (arXiv 2204.12260)"),
    ],
)
def test_what_is_published_is_what_the_page_on_encoders_cites(encoder: str, published: str) -> None:
    (line,) = re.findall(rf"^\| {re.escape(published)} \|.*$", ENCODERS, re.MULTILINE)
    esc50, *_, average = (cell.strip() for cell in line.strip("|").split("|")[1:])
    shown = encoders()[encoder]
    assert (shown["ESC-50, published"], shown["nine tasks, published"]) == (esc50, average)
    assert not shown["six tasks, measured here"]


def test_sizes_and_licences_are_those_of_the_page_on_encoders() -> None:
    rows = [*table(ENCODERS, "encoder | numbers"), *table(ENCODERS, "network | numbers")]
    measured = {row[0]: row for row in rows}
    licences = table(ENCODERS, "encoder | weights")
    for name, shown in encoders().items():
        if "untrained" in name:
            continue
        network = re.split(r"[ ,]", name)[0]
        size = measured.get(name.partition(",")[0]) or measured[network]
        assert shown["numbers"] == size[1], name
        licence = shown["weights, their licence"].removeprefix("shipped, ")
        told = {row[2] for row in licences if network in re.split(r"[ ,]+", row[0])}
        assert any(each.startswith(licence) for each in told) or (licence, told) == ("none", {"–"}), name


def test_the_tree_names_every_folder_that_holds_code_or_data() -> None:
    (block,) = re.findall(r"^```text\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    top, named = "", set()
    for line in block.splitlines():
        name = line.split()[0]
        top = "" if not line.startswith(" ") else top
        named.add(top + name)
        top = top or name
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*/*"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/")[0] + "/" for path in files if not path.startswith(".")}
    assert {name.split("/")[0] + "/" for name in named} == folders
    rooms = {
        f"{path.parent.parent.name}/{path.parent.name}/"
        for package in ("service", "training")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert rooms <= named


@pytest.mark.parametrize("link", sorted(set(re.findall(r'(?:\]\(|src=")([^)"#]+)', README))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert link.startswith("https://arxiv.org/") or (ROOT / link).exists()

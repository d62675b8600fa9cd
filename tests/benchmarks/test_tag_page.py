"""What the page of tags counts as right, and which clips it draws."""

from pathlib import Path

from benchmarks.tag_page import DRAWN, LABELS, Clip, drawn, is_unheard, names_of, page
from service.inference.heads import Tag
from service.inference.model import Model
from tests.service.conftest import write_toy

NAMES = {"esc50": {"dog": ["Dog", "Bark"], "rain": ["Rain"]}, "music": {"*": ["Music"]}}


def row(
    path: str, dataset: str, label: str, *, pretrain: str = "no", redistributable: str = "yes"
) -> dict[str, str]:
    return {
        "path": path,
        "dataset": dataset,
        "label": label,
        "task": DRAWN[dataset][0],
        "fold": "5",
        "pretrain": pretrain,
        "redistributable": redistributable,
    }


def test_right_is_one_of_the_names_among_the_first_tags() -> None:
    clip = Clip(Path("a.opus"), "esc50", "dog", frozenset({"Dog", "Bark"}))
    assert clip.is_said([Tag("Animal", 0.9), Tag("Bark", 0.2)])
    assert not clip.is_said([Tag("Animal", 0.9), Tag("Cat", 0.2)])
    assert not clip.is_said([Tag("Animal", 0.9), Tag("Bark", 0.05)], at_least=0.1)


def test_what_was_trained_on_is_never_drawn() -> None:
    assert is_unheard(row("a", "esc50", "dog"))
    assert is_unheard(row("a", "music", "music", pretrain="yes", redistributable="no"))
    assert not is_unheard(row("a", "esc50", "dog", pretrain="yes"))


def test_clips_are_drawn_label_after_label_and_the_same_every_time() -> None:
    rows = [row(f"{label}{n}", "esc50", label) for label in ("dog", "rain") for n in range(40)]
    rows += [row(f"m{n}", "music", "music") for n in range(3)]
    rows += [row("heard", "esc50", "dog", pretrain="yes")]
    names = NAMES | {each: {"*": []} for each in DRAWN if each not in NAMES}
    clips = drawn(Path("data"), rows, names)
    assert clips == drawn(Path("data"), rows, names)
    assert [clip.label for clip in clips] == ["dog"] * 16 + ["rain"] * 16 + ["music"] * 3
    assert len({clip.path for clip in clips}) == len(clips)
    assert Path("data/heard") not in {clip.path for clip in clips}
    assert clips[0].names == {"Dog", "Bark"}
    assert clips[-1].names == {"Music"}


def test_every_name_that_counts_is_one_of_audiosets() -> None:
    """As the head's labels spell them, of which the repository has a copy wherever a folder has that head."""
    table = names_of(LABELS)
    assert len(table["esc50"]) == 50
    assert set(DRAWN) <= set(table)
    counted = {name for of_dataset in table.values() for names in of_dataset.values() for name in names}
    assert not counted & {"Animal", "Vehicle", "Sound effect", "Inside, small room", "Silence"}
    for path in Path("models").glob("*/heads/audioset.safetensors"):
        head = Model.load(path.parents[1], device="cpu").heads["audioset"]
        assert counted <= set(head.labels)


def test_the_page_says_how_many_are_right(tmp_path: Path) -> None:
    model = Model.load(write_toy(tmp_path / "toy"), device="cpu")
    clips = [
        Clip(Path("a"), "esc50", "dog", frozenset({"Dog"})),
        Clip(Path("b"), "esc50", "rain", frozenset({"Rain"})),
    ]
    said = [(Tag("Dog", 0.91),), (Tag("Frying (food)", 0.5),)]
    taught = [(Tag("Dog", 0.9),), (Tag("Rain", 0.8),)]
    text = page(model, clips, said, taught, [["esc50", "100", *["0.99"] * 4]])
    assert "**1 of 2 are right**, 1 of them with a score of at least 0.1; of the teacher, by" in text
    assert "| dog | esc50 | Dog 0.91 | Dog 0.90 | right |" in text
    assert "| rain | esc50 | Frying (food) 0.50 | Rain 0.80 | **wrong** |" in text
    assert "| esc50 | 100 | 0.99 | 0.99 | 0.99 | 0.99 |" in text
    head, dashes, *rows = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert {line.count("|") for line in (head, dashes, *rows)} == {6}
    text = page(model, clips, said, taught, [], {"`small` 1.0.0": said})
    assert "; of `small` 1.0.0, by the same rule, 1; of the teacher, by the same rule, 2." in text
    assert "can tell" in page(model, clips, said, None, [])

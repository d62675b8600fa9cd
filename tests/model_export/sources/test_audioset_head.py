"""The names of the published classes, from whoever knows them."""

import json
from pathlib import Path

import pytest

from model_export.errors import ExportError
from model_export.sources.audioset_head import labels_of, numbered_labels

NAMES = [f"sound, number {i}" for i in range(527)]


def test_audiosets_own_table_gives_the_names_in_its_order(tmp_path: Path) -> None:
    table = tmp_path / "class_labels_indices.csv"
    rows = [f'{i},/m/{i},"{name}"' for i, name in enumerate(NAMES)]
    table.write_text("\n".join(["index,mid,display_name", *reversed(rows)]))
    assert labels_of(table, tmp_path / "w.pth") == tuple(NAMES)


def test_audiosets_own_table_beside_the_weights_is_enough(tmp_path: Path) -> None:
    rows = [f'{i},/m/{i},"{name}"' for i, name in enumerate(NAMES)]
    (tmp_path / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *rows]))
    assert labels_of(None, tmp_path / "w.pt") == tuple(NAMES)
    (tmp_path / "others.txt").write_text("\n".join(reversed(NAMES)))
    assert labels_of(tmp_path / "others.txt", tmp_path / "w.pt") == tuple(reversed(NAMES)), (
        "what is given, wins"
    )


def test_a_name_a_line_will_do(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    assert labels_of(tmp_path / "names.txt", tmp_path / "w.pth") == tuple(NAMES)


def test_the_ports_config_beside_the_weights_knows_them(tmp_path: Path) -> None:
    names = {str(i): name for i, name in enumerate(NAMES)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(reversed(names.items()))}))
    assert labels_of(None, tmp_path / "model.safetensors") == tuple(NAMES)


def test_without_anybody_who_knows_there_are_numbers(tmp_path: Path) -> None:
    assert labels_of(None, tmp_path / "w.pth") is None
    (tmp_path / "config.json").write_text('{"model_type": "another"}')
    assert labels_of(None, tmp_path / "w.pth") is None
    assert numbered_labels()[526] == "audioset_526"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\nb\n", "holds 2 names, not one for each of the 527 classes"),
        ("index,display_name\none,Speech\n", "the column `index` must hold numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ExportError, match=sentence):
        labels_of(tmp_path / "names.csv", tmp_path / "w.pth")
    with pytest.raises(ExportError, match="cannot be read as a table"):
        labels_of(tmp_path / "nothing.csv", tmp_path / "w.pth")

"""MTEB's own evaluation of model folders and of a server, on tasks made of real sounds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="pip install '.[benchmarks]'")

from hear.mteb import Encoder, evaluate, main, meta_of  # noqa: E402 - where mteb is there
from hear.source import open_source  # noqa: E402
from service.errors import NoText  # noqa: E402
from tests.hear.local_tasks import Clip, classification, clustering, dataset, metadata  # noqa: E402

SHIPPED = "models/byola"

# MTEB's classifiers and figures warn where a task is tiny or a toy knows nothing.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
]


def encoder_of(where: str, **options: Any) -> Encoder:
    source = open_source(where)
    return Encoder(source, meta_of(source, **options), normalize=options.get("normalize", False))


def tasks_of(pieces: dict[str, list[Clip]]) -> list[Any]:
    train = pieces["train"] + pieces["valid"]
    return [classification("Pieces", train, pieces["test"]), clustering("PieceClusters", train)]


def test_a_classifier_tells_real_sounds_apart(pieces: dict[str, list[Clip]], tmp_path: Path) -> None:
    result = evaluate(encoder_of(SHIPPED), tasks_of(pieces), tmp_path)
    assert not result.exceptions
    scores = {task.task_name: task.get_score() for task in result.task_results}
    assert scores["Pieces"] == 1.0
    assert scores["PieceClusters"] > 0.8


def test_results_lie_beside_what_a_leaderboard_asks_for(
    pieces: dict[str, list[Clip]], tmp_path: Path
) -> None:
    encoder = encoder_of(SHIPPED, name="someone/byola", trained_on=["ESC50"])
    evaluate(encoder, tasks_of(pieces)[:1], tmp_path)
    (folder,) = (tmp_path / "results" / "someone__byola").iterdir()
    card = encoder.model.card
    assert folder.name == f"{card.version}-{card.files['encoder.onnx'][:12]}"
    assert (folder / "Pieces.json").is_file()
    meta = json.loads((folder / "model_meta.json").read_text())
    assert meta["name"] == "someone/byola"
    assert meta["embed_dim"] == 3072
    assert meta["license"] == "cc-by-sa-4.0"
    assert meta["open_weights"] is True
    assert meta["modalities"] == ["audio"]
    assert meta["training_datasets"] == ["ESC50"]
    assert meta["release_date"] == card.created


def test_the_parameters_are_those_of_the_network() -> None:
    import encoders

    network = encoders.build("byola-2022", n_mels=64, d=3072)
    counted = meta_of(open_source(SHIPPED)).n_parameters
    assert counted == pytest.approx(sum(each.numel() for each in network.parameters()), rel=1e-3)


def test_a_server_scores_as_its_folder(
    pieces: dict[str, list[Clip]], toys: Path, server: str, tmp_path: Path
) -> None:
    scores = [
        [
            task.get_score()
            for task in evaluate(encoder_of(where), tasks_of(pieces), tmp_path / kind).task_results
        ]
        for kind, where in (("server", server), ("folder", str(toys / "toy")))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert len(scores[0]) == 2


def test_normalized_vectors_are_another_entry(toys: Path) -> None:
    meta = meta_of(open_source(str(toys / "centred")), normalize=True)
    assert meta.experiment_name
    assert meta.model_name_with_experiment == "viola/centred (normalize=True)"


def test_words_are_matched_with_sounds_where_the_model_has_a_text_tower(
    pieces: dict[str, list[Clip]], toys: Path, server: str, tmp_path: Path
) -> None:
    from datasets import DatasetDict
    from mteb.abstasks import AbsTaskZeroShotClassification

    class ZeroShot(AbsTaskZeroShotClassification):
        input_column_name = "audio"

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset = DatasetDict(test=dataset(pieces["test"], "label"))
            self.data_loaded = True

        def get_candidate_labels(self) -> list[str]:
            return ["a dog barks", "rain on the roof", "a cat", "the doorbell rings"]

    ZeroShot.metadata = metadata("Words", "AudioZeroshotClassification", "accuracy").model_copy(
        update={"modalities": ["audio", "text"]}
    )
    for kind, where in (("server", f"{server}/?model=words"), ("folder", str(toys / "words"))):
        encoder = encoder_of(where)
        assert encoder.mteb_model_meta.modalities == ["audio", "text"]
        assert encoder.mteb_model_meta.max_tokens == 12
        result = evaluate(encoder, [ZeroShot()], tmp_path / kind)
        assert not result.exceptions
        assert 0 <= result.task_results[0].get_score() <= 1


def test_texts_are_refused_with_a_sentence_where_there_is_no_tower(toys: Path) -> None:
    from datasets import Dataset
    from torch.utils.data import DataLoader

    loader = DataLoader(Dataset.from_dict({"text": ["a dog"]}), batch_size=1)
    with pytest.raises(NoText, match="`toy` has no text tower"):
        encoder_of(str(toys / "toy")).encode(loader)
    both = DataLoader(Dataset.from_dict({"text": ["a dog"], "audio": ["?"]}), batch_size=1)
    with pytest.raises(ValueError, match="audio and text"):
        encoder_of(str(toys / "words")).encode(both)


def test_vectors_come_in_the_order_of_the_inputs(toys: Path, pieces: dict[str, list[Clip]]) -> None:
    from mteb._create_dataloaders import _custom_collate_fn
    from torch.utils.data import DataLoader

    encoder = encoder_of(str(toys / "toy"))
    rows = dataset(pieces["test"], "label")
    together = encoder.encode(DataLoader(rows, batch_size=3, collate_fn=_custom_collate_fn))
    for i, vector in enumerate(together):
        alone = encoder.encode(DataLoader(rows.select([i]), batch_size=1, collate_fn=_custom_collate_fn))
        np.testing.assert_allclose(alone[0], vector, rtol=1e-5, atol=1e-5)


def test_a_name_without_an_organization_is_refused(toys: Path) -> None:
    with pytest.raises(ValueError, match="organization/model"):
        meta_of(open_source(str(toys / "toy")), name="byola")


def test_the_command_runs_tasks_by_their_names(
    pieces: dict[str, list[Clip]],
    toys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def get_tasks(tasks: list[str]) -> list[Any]:  # MTEB's own are downloaded
        assert tasks == ["Pieces"]
        return tasks_of(pieces)[:1]

    monkeypatch.setattr(mteb, "get_tasks", get_tasks)
    assert main([str(toys / "toy"), "--tasks", "Pieces", "--results", str(tmp_path)]) == 0
    name, score = capsys.readouterr().out.split()
    assert name == "Pieces"
    assert 0 <= float(score) <= 1


def test_the_benchmarks_of_the_command_are_there() -> None:
    from hear.mteb import WITH_TEXT, WITHOUT_TEXT

    without = mteb.get_benchmark(WITHOUT_TEXT).tasks
    assert {"audio"} == {modality for task in without for modality in task.metadata.modalities}
    assert len(mteb.get_benchmark(WITH_TEXT).tasks) > len(without)

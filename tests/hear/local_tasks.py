"""A folder with manifest.csv in; small tasks of MTEB and X-ARES out, which ask no other host for sounds.

    python -m tests.hear.local_tasks mteb  models/byola ../shared/data     their scores, as MTEB and X-ARES
    python -m tests.hear.local_tasks xares models/byola ../shared/data     compute them themselves

manifest.csv has a row per clip and task: path, task, label and fold (train, valid, test, or 1 to 5).
"""

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EVERY = 1_000_000  # of a label: all of its clips


@dataclass(frozen=True)
class Clip:
    """A sound of a task; split: as the manifest names it."""

    path: Path
    label: str
    split: str


def clips_of(data: Path, task: str) -> list[Clip]:
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == task]
    return [Clip(data / row["path"], row["label"], row["fold"]) for row in rows]


def parted(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """What is learnt from, and what is tested: the fifth fold, or the split `test`."""
    return (
        [clip for clip in clips if clip.split not in ("5", "test", "valid")],
        [clip for clip in clips if clip.split in ("5", "test")],
    )


# MTEB


def metadata(name: str, kind: str, main_score: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description="Sounds of a folder.",
        dataset={"path": "none", "revision": "1"},
        type=kind,
        category="a2c",
        eval_splits=["test"],
        eval_langs=["zxx-Zxxx"],
        main_score=main_score,
        modalities=["audio"],
    )


def dataset(clips: list[Clip], column: str) -> Any:
    """A dataset of the columns `audio` and `column`, the labels, as MTEB downloads them."""
    from datasets import Audio, Dataset

    labels = sorted({clip.label for clip in clips})
    rows = {
        "audio": [str(clip.path) for clip in clips],
        column: [labels.index(clip.label) for clip in clips],
    }
    return Dataset.from_dict(rows).cast_column("audio", Audio())


def classification(name: str, train: list[Clip], test: list[Clip], *, of_a_label: int = 8) -> Any:
    """A linear classifier of `of_a_label` clips of each label; 8 are MTEB's own."""
    from datasets import DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification

    class Local(AbsTaskClassification):
        input_column_name = "audio"
        samples_per_label = of_a_label
        n_experiments = 10 if of_a_label < EVERY else 1

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset = DatasetDict(train=dataset(train, "label"), test=dataset(test, "label"))
            self.data_loaded = True

    Local.metadata = metadata(name, "AudioClassification", "accuracy")
    return Local()


def clustering(name: str, test: list[Clip]) -> Any:
    from datasets import DatasetDict
    from mteb.abstasks.clustering import AbsTaskClustering

    class Local(AbsTaskClustering):
        input_column_name = "audio"
        label_column_name = "label"
        max_fraction_of_documents_to_embed = None

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset = DatasetDict(test=dataset(test, "label"))
            self.data_loaded = True

    Local.metadata = metadata(name, "AudioClustering", "v_measure")
    return Local()


def mteb_tasks(data: Path) -> list[Any]:
    tasks = []
    for name in ("esc10", "fsdd_digit"):
        train, test = parted(clips_of(data, name))
        tasks += [
            classification(f"{name}-8", train, test),
            classification(f"{name}-all", train, test, of_a_label=EVERY),
            clustering(f"{name}-clusters", test),
        ]
    return tasks


# X-ARES

TASK = """
from xares.task import TaskConfig

def {name}_config(encoder):
    return TaskConfig(
        encoder=encoder,
        eval_weight={n_test},
        label_processor=lambda x: x["label"],
        name="{name}",
        output_dim={n_labels},
    )
"""


def write_xares_task(folder: Path, name: str, clips: dict[str, list[Clip]]) -> Path:
    """Writes env/<name>/, the tars of the splits train, valid and test as X-ARES downloads them, and the
    task's file, whose path is returned."""
    import soundfile
    from xares.audiowebdataset import write_audio_tar

    from service.sound.audio import decode

    env = folder / "env" / name
    wavs = folder / "wavs"
    env.mkdir(parents=True)
    wavs.mkdir(exist_ok=True)
    labels = sorted({clip.label for clip in clips["train"]})
    for split, members in clips.items():
        paths = []
        for i, clip in enumerate(members):
            path = wavs / f"{name}_{split}_{i}.wav"
            soundfile.write(path, decode(clip.path.read_bytes(), sample_rate=16_000).samples, 16_000)
            paths.append(str(path))
        numbers = [{"label": labels.index(clip.label)} for clip in members]
        write_audio_tar(paths, numbers, str(env / f"{split}*.tar"), num_shards=1)
    (env / ".audio_tar_ready").touch()
    task = folder / f"{name}_task.py"
    task.write_text(TASK.format(name=name, n_test=len(clips["test"]), n_labels=len(labels)), "utf-8")
    return task


def run_xares(folder: Path, model: str, *tasks: Path) -> "subprocess.CompletedProcess[str]":
    """`python -m xares.run` as docs/benchmarks.md has it, in this folder."""
    words = ["--max-jobs", "0", "hear/xares.py", *(task.name for task in tasks)]
    client = ROOT / "clients" / "python"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "xares.run", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{client}", "HEAR_MODEL": model},
        capture_output=True,
        text=True,
    )


def main() -> None:
    suite, model, data = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if suite == "mteb":
            from hear.mteb import Encoder, evaluate, meta_of
            from hear.source import open_source

            source = open_source(model)
            result = evaluate(Encoder(source, meta_of(source)), mteb_tasks(data), folder)
            for task in result.task_results:
                sys.stdout.write(f"{task.task_name}\t{task.get_score():.4f}\n")
            for error in result.exceptions or []:
                sys.stderr.write(f"{error.task_name}: {error.exception}\n")
            return
        tasks = []
        for task in ("esc10", "fsdd_digit"):
            train, test = parted(clips_of(data, task))
            valid = train[::5]
            rest = [clip for i, clip in enumerate(train) if i % 5]
            splits = {"train": rest, "valid": valid, "test": test}
            tasks.append(write_xares_task(folder, task, splits))
        where = model if "://" in model else str(Path(model).resolve())
        run = run_xares(folder, where, *tasks)
        sys.stdout.write(run.stdout[-1500:])
        sys.stderr.write(run.stderr[-3000:] if run.returncode else "")


if __name__ == "__main__":
    main()

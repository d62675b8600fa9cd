"""A folder or a repository of the hub in, its configuration, feature extractor, weights and licence out.

    FOLDER | OWNER/NAME[@REVISION] ─► config.json                     ─► which network
                                      preprocessor_config.json        ─► how it is fed
                                      model.safetensors, …            ─► its weights, every one of them
                                      README.md                       ─► its licence, as the hub knows it

Nothing of the checkpoint is run: its own code, where it brings some, is not loaded.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, ModelCard
from pydantic import JsonValue

from model_export.errors import ExportError
from service.inference.card import sha256_of

REPOSITORY = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # where both are there, the first are read
NEEDED = ("*.json", "*.txt", "README.md")
EXTRACTORS = ("preprocessor_config.json", "processor_config.json")  # as one alone, and as a part of several
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
UNTRAINED = ("masked_spec_embed", "position_ids")  # of training alone, or known without the file
SENTENCE = 300  # characters of another library's error that are shown
NAMED = 5  # keys of a complaint
SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause"}  # the hub writes them small


@dataclass(frozen=True)
class Checkpoint:
    """name: as it is called at the hub, or the folder's; folder: where it lies now; commit: at the hub."""

    name: str
    folder: Path
    config: Any
    commit: str | None = None

    @property
    def architecture(self) -> str:
        """The class that wrote it; empty where it does not say."""
        return str((self.config.architectures or [""])[0])

    def extractor(self) -> Any:
        """The feature extractor. Raises ExportError."""
        if not any((self.folder / name).is_file() for name in EXTRACTORS):
            raise ExportError(
                f"{self.name} has no preprocessor_config.json, which tells how the network is fed: take the "
                "one of the checkpoint that it was trained from."
            )
        with _told(f"{self.name}: its preprocessor_config.json cannot be read"):
            return transformers.AutoFeatureExtractor.from_pretrained(self.folder, local_files_only=True)

    def tokenizer(self) -> Any:
        """The fast tokenizer. Raises ExportError."""
        if not any(all((self.folder / name).is_file() for name in names) for names in TOKENIZERS):
            raise ExportError(
                f"{self.name} has no tokenizer.json, by which its text tower reads sentences: take that of "
                "the checkpoint that it was trained from."
            )
        with _told(f"{self.name}: its tokenizer cannot be read"):
            return transformers.AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, use_fast=True
            )

    def model(self, kind: str, *, unused: Sequence[str] = ()) -> Any:
        """As the class `kind` of transformers, in eval mode and float32. unused: beginnings of the names of
        weights that may be missing. Raises ExportError that names every one that is."""
        with _told(f"{self.name}: its weights cannot be read as those of {kind}"):
            model, found = getattr(transformers, kind).from_pretrained(
                self.folder,
                config=self.config,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
            )
        missing = sorted(
            key
            for key in found["missing_keys"]
            if not key.endswith(UNTRAINED) and not key.startswith(tuple(unused))
        )
        if missing:
            raise ExportError(
                f"{self.name} does not hold the weights of {kind}: it lacks {_listed(missing)}."
            )
        if wrong := sorted(str(each[0]) for each in found["mismatched_keys"]):
            raise ExportError(f"{self.name} has weights of other shapes than {kind}: {_listed(wrong)}.")
        broken = [name for name, each in model.named_parameters() if not bool(torch.isfinite(each).all())]
        broken = [name for name in broken if not name.endswith(UNTRAINED)]
        if broken:
            raise ExportError(f"{self.name} has NaN or infinite values in {_listed(broken)}.")
        return model.eval().requires_grad_(False)

    def licence(self) -> str | None:
        """What the front matter of its README.md says; None where that is nothing."""
        readme = self.folder / "README.md"
        if not readme.is_file():
            return None
        try:
            data = ModelCard.load(readme).data
        except Exception:  # of YAML, of the hub's own checks: then there is nothing to be read
            return None
        licence = data.get("license")
        if licence == "other":
            licence = data.get("license_name") or licence
        if not isinstance(licence, str):
            return None
        return SPDX.get(licence) or (licence.upper() if licence.startswith("cc") else licence)

    def facts(self) -> dict[str, JsonValue]:
        """For the card's `training`: the files of weights and their SHA-256."""
        files = weights_in(self.folder)
        hashes: dict[str, JsonValue] = {path.name: sha256_of(path) for path in files}
        facts: dict[str, JsonValue] = {"weights_file": self.name}
        facts["weights_sha256"] = next(iter(hashes.values())) if len(hashes) == 1 else hashes
        return facts | ({"revision": self.commit} if self.commit else {})


def open_checkpoint(source: str) -> Checkpoint:
    """source: a folder, or OWNER/NAME[@REVISION] at the hub. Raises ExportError."""
    folder, commit = Path(source), None
    name = folder.resolve().name
    if not folder.is_dir():
        folder, name = _fetched(source)
        commit = folder.name
    if not (folder / "config.json").is_file():
        raise ExportError(f"{source} is no checkpoint of transformers: it has no config.json.")
    with _told(f"{source}: its config.json cannot be read"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if not weights_in(folder):
        raise ExportError(f"{source} holds no weights: neither model.safetensors nor pytorch_model.bin.")
    return Checkpoint(name, folder, config, commit)


def weights_in(folder: Path) -> list[Path]:
    return next((found for each in WEIGHTS if (found := sorted(folder.glob(each)))), [])


def _fetched(source: str) -> tuple[Path, str]:
    """The repository's snapshot on this machine, a folder with the commit's name, and OWNER/NAME. Weights
    come as safetensors where it has them."""
    named = REPOSITORY.fullmatch(source)
    if named is None:
        raise ExportError(f"{source} is no folder, and no repository of the hub, OWNER/NAME[@REVISION].")
    with _told(f"{source} is no folder here, and the hub does not give it"):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        revision = api.model_info(named["name"], revision=named["revision"]).sha
        for pattern in WEIGHTS:
            patterns = [*NEEDED, pattern]
            folder = Path(api.snapshot_download(named["name"], revision=revision, allow_patterns=patterns))
            if weights_in(folder):
                break
    return folder, named["name"]


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What a library raises becomes an ExportError; meanwhile it prints nothing."""
    level = transformers.logging.get_verbosity()
    bar = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # transformers and the hub name no class for what may be wrong
        text = " ".join(str(error).split())
        raise ExportError(f"{what}: {text[:SENTENCE] or type(error).__name__}") from error
    finally:
        transformers.logging.set_verbosity(level)
        if bar:
            transformers.logging.enable_progress_bar()


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")

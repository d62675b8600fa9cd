"""A published BYOL-A checkpoint in, as its authors distribute it, its encoder out.

The file is a state dict, bare or under `state_dict` or `model`, with any prefix before `features.` and `fc.`;
torch.save or safetensors. Its sizes are read from its shapes, because the names of the files mislead: the one
called d2048 of v2 gives 3072 numbers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders.published import plain_byola_key
from model_export.errors import ExportError
from model_export.sources.trained import Trained, build_encoder, checked_statistics, load_weights
from service.inference.card import sha256_of

NOTICE = """\
The BYOL-A weights published by NTT are licensed for evaluation only: internal use, no redistribution, no
modification. The model folder made from them falls under the same licence: do not pass it on, do not put it
into an image or a repository. Read the licence that came with your file."""

STATISTICS_NEEDED = """\
--mean and --std are needed: the published files do not hold the statistics of their log-mels, and a wrong
mean moves every embedding. Measure them on your own sounds (log-mels of this front-end), or take published
ones for this front-end: -9.660292 and 4.7219563 (Speech Commands v2), -6.465687 and 4.7879076 (UrbanSound8K),
-3.7112076 and 3.5103734 (GTZAN, music). Those of the BYOL-A v1 README (-5.4919195, 5.0389895) belong to
another mel scale and do not fit."""

# conv1 to fc2 are the names that the layered variant of v1 has for the same weights.
KEY = re.compile(r"(?:(?P<prefix>.+?)\.)?(?:features|fc|conv[123]|fc[12])\.\d+\.\w+")
CHANNELS = 64
N_MELS = 64


def load_published(name: str, path: Path, *, mean: float | None, std: float | None) -> Trained:
    """The encoder `name` (byola-2020 or byola-2022) with the weights of the file. Raises ExportError."""
    if mean is None or std is None:
        raise ExportError(STATISTICS_NEEDED.replace("\n", " "))
    checked_statistics(mean, std, "--mean and --std")
    state = without_prefix(unwrapped(load_weights(path), path), path)
    parameters = parameters_of(name, state, path)
    encoder = build_encoder(name, parameters, state, path)
    training = {"weights_file": path.name, "weights_sha256": sha256_of(path), "notice": NOTICE}
    return Trained(name, {**parameters}, encoder, mean, std, {**training})


def unwrapped(content: Any, path: Path) -> dict[str, Any]:
    """The state dict, from under `state_dict` or `model` if it lies there."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ExportError(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    return dict(content)


def without_prefix(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """`model.features.0.weight` -> `features.0.weight`; keys of another kind stay as they are."""
    prefixes = {found["prefix"] or "" for key in state if (found := KEY.fullmatch(key))}
    if not prefixes:
        some = ", ".join(list(map(str, state))[:5])
        raise ExportError(f"{path} holds no BYOL-A encoder: no `features.*` or `fc.*`, but {some} …")
    if len(prefixes) > 1:
        names = ", ".join(f"`{prefix}`" for prefix in sorted(prefixes))
        raise ExportError(f"{path} holds several encoders, under {names}: save the one you mean on its own.")
    prefix = prefixes.pop()
    plain = {key.removeprefix(f"{prefix}.") if prefix else key: value for key, value in state.items()}
    return {plain_byola_key(key): value for key, value in plain.items()}


def parameters_of(name: str, state: dict[str, Any], path: Path) -> dict[str, int]:
    """The sizes, by the shapes of the linear layers. Raises ExportError where they are another encoder's."""
    fc_0, fc_3 = (_matrix(state, f"fc.{layer}.weight", path) for layer in (0, 3))
    looks_like = "byola-2020" if any(key.startswith("features.8.") for key in state) else "byola-2022"
    if looks_like != name:
        blocks = {"byola-2020": "three", "byola-2022": "two"}[looks_like]
        raise ExportError(
            f"{path} looks like {looks_like} ({blocks} convolution blocks, fc.0 reads {fc_0.shape[1]} "
            f"numbers), not like {name}: import it with --encoder {looks_like}."
        )
    if name == "byola-2020":
        return {"n_mels": N_MELS, "d": fc_0.shape[0]}
    return {"n_mels": N_MELS, "d": fc_3.shape[0] + CHANNELS * N_MELS // 4, "mlp_hidden_d": fc_0.shape[0]}


def _matrix(state: dict[str, Any], key: str, path: Path) -> Tensor:
    matrix = state.get(key)
    if not isinstance(matrix, Tensor) or matrix.dim() != 2:
        raise ExportError(f"{path} lacks the matrix {key}, which tells the size of the encoder.")
    return matrix

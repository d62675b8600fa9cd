"""A published file of weights in, its encoder out, ready to export; and the terms that come with it.

byola-*              published_byola.py: sizes from the shapes, statistics from the user
every other one      encoders/published.py: every key of the published layout is used or refused
logmel-stats         no weights at all
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from encoders import ENCODERS, FROZEN, AnyEncoder, build_any
from encoders.byola_2020 import AudioNTT2020
from encoders.byola_layers import BYOLALayers
from encoders.published import WrongWeightsError
from encoders.published import load_published as load_layout
from model_export.errors import ExportError
from model_export.sources.published_byola import NOTICE, load_published
from model_export.sources.trained import Trained, checked_statistics, fused, load_weights
from service.inference.card import sha256_of

LAYERED = "byola-2020-layered"
IMPORTABLE = (*ENCODERS, LAYERED, *FROZEN)


@dataclass(frozen=True)
class Terms:
    """Of published weights. licence: an SPDX identifier; notice: what the user is told and the card says;
    name: who made them, for the card's description."""

    licence: str
    notice: str
    name: str


_NTT = Terms("LicenseRef-NTT-evaluation", NOTICE, "published by NTT, for evaluation")
_VGGISH = Terms(
    "Apache-2.0",
    "The VGGish weights are Google's, trained on YouTube-8M (arXiv 1609.09430); their ports to PyTorch are\n"
    "under Apache-2.0. Name both where you pass the model folder on.",
    "of AudioSet's VGGish",
)
TERMS = {
    "byola-2020": _NTT,
    "byola-2022": _NTT,
    LAYERED: _NTT,
    "msm-mae": replace(_NTT, notice=NOTICE.replace("BYOL-A", "MSM-MAE")),
    "vggish": _VGGISH,
    "vggish-4k": _VGGISH,
    "cnn14": Terms(
        "CC-BY-4.0",
        "The CNN14 weights of PANNs (arXiv 1912.10211; Zenodo 3987831) are under CC BY 4.0: name their\n"
        "authors, Kong et al., where you pass the model folder on.",
        "of PANNs",
    ),
    "ast": Terms(
        "BSD-3-Clause",
        "The AST weights (arXiv 2104.01778; Gong, Chung, Glass) are under the BSD 3-Clause licence: keep\n"
        "their copyright notice where you pass the model folder on.",
        "of AST's authors",
    ),
    "efficientat": Terms(
        "MIT",
        "The EfficientAT weights (arXiv 2211.04772; Schmid, Koutini, Widmer) are under the MIT licence:\n"
        "keep their copyright notice where you pass the model folder on.",
        "of EfficientAT's authors",
    ),
    "logmel-stats": Terms(
        "Apache-2.0", "logmel-stats is a formula: it has no weights, and viola's licence.", ""
    ),
}


def load_import(
    name: str,
    weights: Path | None,
    *,
    mean: float | None = None,
    std: float | None = None,
    fuse: Sequence[int] = (),
) -> Trained:
    """The encoder `name` with the weights of the file. mean, std: of its log-mels, needed where neither the
    encoder nor its file has them. Raises ExportError."""
    if weights is None and name != "logmel-stats":
        raise ExportError(f"--weights is needed: the file of {name} that you have.")
    if weights is not None and name == "logmel-stats":
        raise ExportError("logmel-stats has no weights: leave --weights out.")
    if name in FROZEN:
        return _load_frozen(name, weights, mean=mean, std=std, fuse=fuse)
    assert weights is not None
    if name == LAYERED:
        return _layered(load_published("byola-2020", weights, mean=mean, std=std), fuse)
    return fused(load_published(name, weights, mean=mean, std=std), fuse)


def _layered(trained: Trained, fuse: Sequence[int]) -> Trained:
    """All five layers of BYOL-A v1, each padded to 2048 numbers."""
    if fuse:
        raise ExportError(f"{LAYERED} is all five layers: name some with --encoder byola-2020 --fuse.")
    assert isinstance(trained.encoder, AudioNTT2020)
    if (d := trained.encoder.embedding_size) != 2048:
        raise ExportError(f"{LAYERED} is of the file of d = 2048, not of {d}.")
    encoder = BYOLALayers(trained.encoder, (1, 2, 3, 4, 5), size=2048).eval()
    return replace(trained, name=LAYERED, parameters={}, encoder=encoder)


def _load_frozen(
    name: str, weights: Path | None, *, mean: float | None, std: float | None, fuse: Sequence[int]
) -> Trained:
    if fuse and not hasattr(FROZEN[name], "layers"):
        raise ExportError(f"--fuse: {name} has no layers to fuse.")
    mean, std = _statistics(name, mean, std)
    if weights is None:
        return Trained(name, {}, build_any(name), mean, std, {})
    try:
        found = load_layout(name, load_weights(weights), fuse=fuse)
    except WrongWeightsError as error:
        raise ExportError(f"{weights}: {error}") from error
    except ValueError as error:
        raise ExportError(f"--fuse: {error}") from error
    training = {
        "weights_file": weights.name,
        "weights_sha256": sha256_of(weights),
        "notice": TERMS[name].notice,
    }
    parameters = {
        key: [*value] if isinstance(value, tuple) else value for key, value in found.parameters.items()
    }
    return Trained(name, parameters, found.encoder, mean, std, {**training}, tags=found.tags)


def _statistics(name: str, mean: float | None, std: float | None) -> tuple[float, float]:
    """Those that belong to the published weights, or the user's where there are none."""
    kind: type[AnyEncoder] | object = FROZEN[name]
    own = getattr(kind, "mean", None), getattr(kind, "std", None)
    if own[0] is not None and own[1] is not None:
        if mean is not None or std is not None:
            raise ExportError(
                f"{name} brings its own normalisation ({own[0]:g}, {own[1]:g}): leave --mean and --std out."
            )
        return own[0], own[1]
    if mean is None or std is None:
        raise ExportError(
            f"--mean and --std are needed: the published file of {name} does not hold the statistics of its "
            "log-mels. Measure them on sounds like yours, with this front-end."
        )
    return checked_statistics(mean, std, "--mean and --std")

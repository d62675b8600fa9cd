"""The networks, one per file: normalised log-mel in, frame embeddings out.

An encoder is a torch module with

    forward(x (B, 1, n_mels, T), n_frames (B,) or None) -> frames (B, T', embedding_size)
    count(n_frames (B,)) -> (B,), the frames that are the clip's own in a padded batch
    pool(frames (B, T', embedding_size)) -> (B, embedding_size)

and, as attributes, `n_mels`, `embedding_size`, `frontend`, `pooling` (mean+max or mean: what `pool` does),
`windows` (how long audio may be cut), `frame_period_ms` and `first_frame_centre_ms`; and `mean` and `std`
where the published weights know one normalisation only.

Two kinds: BYOL-A is trained here (`ENCODERS`); the others are built from published weights or have none
(`FROZEN`). EfficientAT and MSM-MAE are of both (`STUDENTS`): teachers can teach an EfficientAT from nothing,
and an MSM-MAE learns by its own method. Of all but the baseline and MSM-MAE, several layers can be fused
(`fuse`).
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would compete with torch's

from collections.abc import Callable, Sequence
from typing import Any

from .ast import AST
from .byola_2020 import AudioNTT2020
from .byola_2022 import AudioNTT2022
from .byola_layers import BYOLALayers
from .cnn14 import CNN14
from .contract import AnyEncoder
from .efficientat import EfficientAT
from .logmel_stats import LogMelStats
from .msm_mae import MSMMAE
from .vggish import VGGish, VGGish4K

Encoder = AudioNTT2020 | AudioNTT2022

ENCODERS: dict[str, type[AudioNTT2020] | type[AudioNTT2022]] = {
    "byola-2020": AudioNTT2020,
    "byola-2022": AudioNTT2022,
}

Student = AudioNTT2020 | AudioNTT2022 | EfficientAT | MSMMAE  # what learns here

STUDENTS: dict[str, type[AudioNTT2020] | type[AudioNTT2022] | type[EfficientAT] | type[MSMMAE]] = {
    **ENCODERS,
    "efficientat": EfficientAT,
    "msm-mae": MSMMAE,
}

FROZEN: dict[str, Callable[..., AnyEncoder]] = {
    "vggish": VGGish,
    "vggish-4k": VGGish4K,
    "cnn14": CNN14,
    "ast": AST,
    "efficientat": EfficientAT,
    "msm-mae": MSMMAE,
    "logmel-stats": LogMelStats,
}


def build(name: str, **parameters: int) -> Encoder:
    """The encoder called `name`, untrained. Raises ValueError with the known names for any other."""
    if name not in ENCODERS:
        raise ValueError(f"There is no encoder '{name}': the known ones are {', '.join(ENCODERS)}.")
    return ENCODERS[name](**parameters)


def build_student(name: str, **parameters: Any) -> Student:
    """What `build` knows, an EfficientAT of some `width` or an MSM-MAE of any size, untrained. Raises
    ValueError likewise."""
    if name not in STUDENTS:
        raise ValueError(f"There is no encoder '{name}' to train: there are {', '.join(STUDENTS)}.")
    return STUDENTS[name](**parameters)


def build_any(name: str, *, fuse: Sequence[int] = (), **parameters: Any) -> AnyEncoder:
    """Any encoder, with random weights; `fuse`: layers, counted as in arXiv 2205.08138.

    Raises ValueError with the known names, or the layers that there are.
    """
    if name == "byola-2020-layered":
        return BYOLALayers(AudioNTT2020(d=2048), (1, 2, 3, 4, 5), size=2048)
    if name in ENCODERS:
        encoder = build(name, **parameters)
        return BYOLALayers(encoder, fuse) if fuse else encoder
    if name not in FROZEN:
        known = ", ".join((*ENCODERS, "byola-2020-layered", *FROZEN))
        raise ValueError(f"There is no encoder '{name}': the known ones are {known}.")
    return FROZEN[name](**parameters, **({"fuse": fuse} if fuse else {}))

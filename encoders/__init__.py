"""The networks, one per file: normalised log-mel in, frame embeddings out.

An encoder is a torch module with

    forward(x (B, 1, n_mels, T), n_frames (B,) or None) -> (B, T // stride, embedding_size)
    pool(frames (B, T', embedding_size)) -> (B, embedding_size)

and, as attributes, `n_mels`, `embedding_size`, `stride` (log-mel frames per output frame), `context` (output
frames spoilt by a cut), `frame_period_ms` and `first_frame_centre_ms`.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would compete with torch's

from .byola_2020 import AudioNTT2020
from .byola_2022 import AudioNTT2022

Encoder = AudioNTT2020 | AudioNTT2022

ENCODERS: dict[str, type[AudioNTT2020] | type[AudioNTT2022]] = {
    "byola-2020": AudioNTT2020,
    "byola-2022": AudioNTT2022,
}


def build(name: str, **parameters: int) -> Encoder:
    """The encoder called `name`, untrained. Raises ValueError with the known names for any other."""
    if name not in ENCODERS:
        raise ValueError(f"There is no encoder '{name}': the known ones are {', '.join(ENCODERS)}.")
    return ENCODERS[name](**parameters)

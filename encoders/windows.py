"""How a long log-mel may be cut for an encoder: the `windows` of its card, known where the network is."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Windows:
    """In log-mel frames, but for `context`, which counts output frames.

    exact: an output frame sees a bounded stretch of the input, so that overlapping windows give what the
    whole clip gives. independent: a window is embedded alone, and the clip is the mean of its windows.
    """

    kind: Literal["exact", "independent"]
    stride: int  # log-mel frames per output frame
    context: int = 0  # output frames at a cut that differ from the whole clip's
    frames: int = 1000  # longest window; for exact ones a multiple of what must stay together
    reach: int = 0  # of patches that overlap: how far one sees beyond its stride
    min_frames: int = 1  # shortest input that gives an output frame

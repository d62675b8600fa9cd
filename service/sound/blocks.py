"""What decoders have in common: blocks of samples out, and the ways in which they fail."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import AudioUnreadable
from service.sound.headers import SEND_WHOLE

BLOCK_VALUES = 96_000  # values (frames x channels) decoded at once: a second of 48 kHz in stereo
SLACK_S = 0.1  # may be missing of what a file promises: codecs and programs round lengths in their own ways

Samples = NDArray[np.float32]


class Block(NamedTuple):
    """samples: (n, channels) float32, full scale is 1; rate_hz: which may change from block to block."""

    samples: Samples
    rate_hz: int


def check_promise(promised_s: float, read_s: float) -> None:
    """Raises AudioUnreadable where a file holds less than its header promises."""
    if promised_s - read_s > SLACK_S:
        raise AudioUnreadable(
            f"the file ends early: its header promises {promised_s:.2f} s and only {read_s:.2f} s could be "
            f"read; {SEND_WHOLE}"
        )


def broken(error: Exception) -> AudioUnreadable:
    reason = str(error).removeprefix("Error : ").rstrip(".") or type(error).__name__
    return AudioUnreadable(f"the file is broken or ends early, its decoder says: {reason}; {SEND_WHOLE}")

"""glibc's allocator, told to keep what training frees.

By default it gives every large tensor back to the system and asks for it anew, page by page, at each step: on
a CPU a quarter of the time of pre-training went there (`sys` time). Settings: mallopt(3).
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = -1
TOP_PAD_BYTES = 256 << 20


def keep_freed_memory() -> bool:
    """From now on memory grows to its peak and stays there. False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: TOP_PAD_BYTES}
    return all(mallopt(name, value) == 1 for name, value in settings.items())

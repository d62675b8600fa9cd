"""glibc's allocator, told to keep what was freed.

By default it gives large arrays, and the free end of its heap above 128 kB, back to the system, and asks for
them anew, page by page, with the next request or training step. Half the time of a log-mel of one second
went there (`python -m benchmarks.logmel`), and on a CPU a quarter of the time of pre-training. Settings:
mallopt(3).
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8
NEVER = -1
TOP_PAD_BYTES = 256 << 20
# For the server: an array of more is given back, and so is the free end of a heap of more. All threads share
# HEAPS: with one each, what one has freed is of no use to the others, and what is kept grows for longer.
ARRAY_BYTES, HEAP_BYTES, HEAPS = 4 << 20, 16 << 20, 2


def keep_freed_arrays() -> bool:
    """Of up to ARRAY_BYTES, HEAP_BYTES of them in each of HEAPS. To be called before there are threads. False
    where the C library is not glibc."""
    return _set({M_MMAP_THRESHOLD: ARRAY_BYTES, M_TRIM_THRESHOLD: HEAP_BYTES, M_ARENA_MAX: HEAPS})


def keep_freed_memory() -> bool:
    """From now on memory grows to its peak and stays there. False where the C library is not glibc."""
    return _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: TOP_PAD_BYTES})


def _set(settings: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return False
    return all(mallopt(name, value) == 1 for name, value in settings.items())

import subprocess
import sys

import pytest

# Arrays made and freed: with pages kept, only the first ones are faulted in.
MEASURE = """
import resource, numpy
from service.process.allocator import keep_freed_arrays, keep_freed_memory
kept = {call}
def work():
    several = [numpy.ones({numbers}) for _ in range(2)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept)
"""


def page_faults(call: str, numbers: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(call=call, numbers=numbers)],
        capture_output=True,
        text=True,
        check=True,
    )
    faults, kept = done.stdout.split()
    return int(faults), kept


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has these settings")
@pytest.mark.parametrize(
    ("call", "numbers"), [("keep_freed_memory()", 1 << 23), ("keep_freed_arrays()", 50_000)]
)
def test_freed_memory_is_kept_and_not_faulted_in_again(call: str, numbers: int) -> None:
    kept_faults, kept = page_faults(call, numbers)
    if kept != "True":
        pytest.skip("the C library is not glibc")
    default_faults, _ = page_faults("None", numbers)
    assert kept_faults < 0.3 * default_faults


# Threads that allocate, all at once: how many heaps glibc has made for them, as malloc_info(3) tells.
COUNT_HEAPS = """
import ctypes, threading
from service.process.allocator import keep_freed_arrays
kept = {call}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
all_there = threading.Barrier(6)
def allocate():
    all_there.wait()
    libc.malloc(10_000)
    all_there.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
print("kept" if kept else "", flush=True)
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


def heaps(call: str) -> tuple[int, bool]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_HEAPS.format(call=call)], capture_output=True, text=True, check=True
    )
    return done.stdout.count("<heap nr="), done.stdout.startswith("kept")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has these settings")
def test_all_threads_of_a_server_share_two_heaps() -> None:
    found, kept = heaps("keep_freed_arrays()")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert found == 2
    assert heaps("None")[0] > 2

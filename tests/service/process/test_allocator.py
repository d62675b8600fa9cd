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

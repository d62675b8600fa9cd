import subprocess
import sys

import pytest

# Tensors of 64 MB, made and freed: with pages kept, only the first ones are faulted in.
MEASURE = """
import resource, torch
from training.allocator import keep_freed_memory
kept = {call}
torch.set_num_threads(1)
torch.empty(1 << 24).fill_(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.empty(1 << 24).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept)
"""


def page_faults(call: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(call=call)], capture_output=True, text=True, check=True
    )
    faults, kept = done.stdout.split()
    return int(faults), kept


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has these settings")
def test_freed_memory_is_kept_and_not_faulted_in_again():
    kept_faults, kept = page_faults("keep_freed_memory()")
    if kept != "True":
        pytest.skip("the C library is not glibc")
    default_faults, _ = page_faults("None")
    assert kept_faults < 0.3 * default_faults

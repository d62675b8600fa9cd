"""Settings and the machine in, a plan of thread counts with its reason out.

Unbounded thread pools cost a factor of two and more on small machines: every library (BLAS, OpenMP,
onnxruntime) would start one thread per core of the host, whatever share of it the process may use. BLAS and
OpenMP are pinned by service/__init__.py, because that must happen before NumPy is imported.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from service.settings import Settings

# A convolution over a few clips does not scale further; more cores are better used by more processes.
MAX_INFERENCE_THREADS = 16

# A short clip must not wait until a chunk of a long one (a tenth of a second) is decoded.
MIN_DECODE_THREADS = 2

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class ThreadPlan:
    """How many threads one process starts. `reason` is the line for the log."""

    inference: int  # threads inside onnxruntime for one item, which has the machine to itself
    batch: int  # threads for a batch, each of which runs parts of it alone
    decode: int  # threads that decode audio and compute log-mels
    cores: int  # cores this process plans with
    reason: str


def plan(settings: Settings) -> ThreadPlan:
    """Divide the cores among the processes.

    In each process decoding and inference may both use all cores of the process: they overlap only in part (a
    clip is decoded in a tenth of the time that its inference takes), so that the cores are kept full and no
    thread waits for long. A clip that is alone may use all cores of the machine: most likely the other
    processes have nothing to do either.
    """
    total, source = (settings.threads, "VIOLA_THREADS") if settings.threads else usable_cores()
    cores = max(1, total // settings.workers)
    inference = min(total, MAX_INFERENCE_THREADS)
    batch = min(cores, MAX_INFERENCE_THREADS)
    decode = max(cores, MIN_DECODE_THREADS)
    shared = f" shared by {settings.workers} processes" if settings.workers > 1 else ""
    return ThreadPlan(
        inference=inference,
        batch=batch,
        decode=decode,
        cores=cores,
        reason=f"{total} core(s) from {source}{shared}: {inference} thread(s) for the inference of "
        f"one clip, {batch} for that of a batch, {decode} for decoding, 1 for BLAS",
    )


def usable_cores(cgroup: Path = CGROUP, own: Path = OWN_CGROUPS) -> tuple[int, str]:
    """(cores, where the number comes from): the smaller of the CPU affinity and the cgroup's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(cgroup, own)
    if quota is not None and quota < affinity:
        # Rounded up: with 1.5 cores two threads are throttled now and then, one would waste half a core.
        return max(1, math.ceil(quota)), f"the cgroup's quota of {quota:g} CPU"
    return affinity, "the CPU affinity"


def cgroup_quota(cgroup: Path = CGROUP, own: Path = OWN_CGROUPS) -> float | None:
    """CPUs' worth of time that this process may use: the smallest quota of its cgroup and of those above it,
    None without any. Both versions of cgroups are read, for a host may have one, the other or both."""
    paths = _own_paths(own)
    quotas = [_quota_of_v2(folder) for folder in _upwards(cgroup, paths.get("", "/"))]
    for controller in ("cpu", "cpu,cpuacct"):
        quotas += [_quota_of_v1(folder) for folder in _upwards(cgroup / controller, paths.get("cpu", "/"))]
    return min((quota for quota in quotas if quota is not None), default=None)


def _own_paths(own: Path) -> dict[str, str]:
    """Controller → the path of this process's cgroup, from lines like `4:cpu,cpuacct:/a/b` and, for version
    2, `0::/a/b`."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return {}
    return {
        controller: path
        for _, controllers, path in (line.split(":", 2) for line in lines)
        for controller in controllers.split(",")
    }


def _upwards(root: Path, path: str) -> list[Path]:
    """root/a/b, root/a, root for `/a/b`. Those that a container does not see are no folders: nothing is read
    there."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _quota_of_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_of_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota < 0 else quota / period

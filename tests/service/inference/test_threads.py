"""Thread counts from cores, affinity and cgroup."""

import os
from pathlib import Path

import pytest

from service.inference.threads import cgroup_quota, plan, usable_cores
from service.settings import Settings


def test_the_quota_of_cgroup_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota(tmp_path) == 1.5


def test_the_quota_of_cgroup_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path) == 4


def own(folder: Path, *lines: str) -> Path:
    """A /proc/self/cgroup."""
    path = folder / "own"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_smallest_quota_from_the_own_cgroup_up_to_the_root_counts(tmp_path: Path) -> None:
    service = tmp_path / "system.slice" / "viola.service"
    service.mkdir(parents=True)
    (service / "cpu.max").write_text("400000 100000\n")
    (tmp_path / "system.slice" / "cpu.max").write_text("250000 100000\n")
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/system.slice/viola.service")) == 2.5
    (service / "cpu.max").write_text("50000 100000\n")
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/system.slice/viola.service")) == 0.5
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/system.slice")) == 2.5
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/")) is None


def test_a_path_that_a_container_does_not_see_leads_to_its_root(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/docker/0123abcd")) == 2
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/../../host")) == 2


def test_version_1_is_read_below_its_own_controller(tmp_path: Path) -> None:
    pod = tmp_path / "cpu,cpuacct" / "kubepods" / "pod1"
    pod.mkdir(parents=True)
    (pod / "cpu.cfs_quota_us").write_text("150000\n")
    (pod / "cpu.cfs_period_us").write_text("100000\n")
    lines = ("4:memory:/other", "3:cpu,cpuacct:/kubepods/pod1", "0::/")
    assert cgroup_quota(tmp_path, own(tmp_path, *lines)) == 1.5


@pytest.mark.parametrize(("quota", "cores"), [("10000", 1), ("100000", 1), ("100001", 2), ("199999", 2)])
def test_a_part_of_a_core_counts_as_one(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    assert usable_cores(tmp_path, own(tmp_path, "0::/"))[0] == cores


def test_no_quota_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path) is None


def test_the_smaller_of_affinity_and_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(tmp_path) == (8, "the CPU affinity")
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cores(tmp_path) == (3, "the cgroup's quota of 2.5 CPU")  # rounded up


def test_cores_are_shared_by_the_processes() -> None:
    shared = plan(Settings(threads=8, workers=2))
    assert (shared.cores, shared.inference, shared.batch, shared.decode) == (4, 8, 4, 4)
    assert "8 core(s) from VIOLA_THREADS shared by 2 processes" in shared.reason


def test_every_process_gets_a_core_and_a_short_clip_never_waits_for_a_long_one() -> None:
    small = plan(Settings(threads=1, workers=4))
    assert (small.cores, small.inference, small.batch, small.decode) == (1, 1, 1, 2)


def test_one_batch_is_not_spread_over_too_many_threads() -> None:
    assert plan(Settings(threads=64)).inference == 16

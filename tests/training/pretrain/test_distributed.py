"""Everything is a no-op for a process that is alone; two processes share what they must."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from training.pretrain.distributed import World, gather, join_world, leave_world, wait_for_first, wrap

ALONE = World(rank=0, size=1, device=torch.device("cpu"))

TWO_PROCESSES = r"""
import torch
from training.pretrain.distributed import gather, join_world, leave_world, wait_for_first, wrap

world = join_world("cpu")
assert world.size == 2
assert world.is_first == (world.rank == 0)
wait_for_first(world)

# batches of 2 and 3, as when a batch cannot be halved
x = gather(torch.full((2 + world.rank, 1, 3), float(world.rank)), world)
assert x[:, 0, 0].tolist() == [0, 0, 1, 1, 1], x

# the gradient is the mean of both processes'
layer = torch.nn.Linear(1, 1, bias=False)
wrapped = wrap(layer, world)
wrapped(torch.full((1, 1), 1.0 + 2 * world.rank)).sum().backward()
assert layer.weight.grad.item() == (1 + 3) / 2

leave_world(world)
print(f"rank {world.rank} agrees\n", end="", flush=True)  # one write: both share a pipe
"""


def test_a_process_alone_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_world("cpu")
    assert world == ALONE
    assert world.is_first
    wait_for_first(world)
    leave_world(world)


def test_alone_nothing_is_gathered_or_wrapped() -> None:
    x, layer = torch.randn(3, 2), nn.Linear(2, 2)
    assert gather(x, ALONE) is x
    assert wrap(layer, ALONE) is layer


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert join_world("auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_two_processes_gather_batches_of_two_lengths_and_average_gradients(
    tmp_path: Path,
    run: Callable[[list[str]], "subprocess.CompletedProcess[str]"],
    environment: dict[str, str],
) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": "."}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([*torchrun, str(script)])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 agrees", "rank 1 agrees"]

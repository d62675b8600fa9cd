"""One process or many (`torchrun`): everything here is a no-op for a process that is alone."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(days=1)  # the others wait while the first process decodes all sounds


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The process that prints, logs and writes checkpoints."""
        return self.rank == 0


def join_world(device: str) -> World:
    """`device` is auto, cpu or cuda; under torchrun each process takes the GPU of its local rank."""
    kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(rank=0, size=1, device=torch.device(kind))
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    return World(rank=distributed.get_rank(), size=size, device=torch.device(kind))


def leave_world(world: World) -> None:
    if world.size > 1:
        distributed.destroy_process_group()


def wrap(model: nn.Module, world: World) -> nn.Module:
    """The model with gradients averaged over all processes."""
    return DistributedDataParallel(model) if world.size > 1 else model


def gather(x: Tensor, world: World) -> Tensor:
    """The batches of all processes, (B, ...) each, as one; they may differ in length."""
    if world.size == 1:
        return x
    lengths: list[int] = [0] * world.size
    distributed.all_gather_object(lengths, len(x))
    padded = torch.zeros(max(lengths), *x.shape[1:], device=x.device, dtype=x.dtype)
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def wait_for_first(world: World) -> None:
    if world.size > 1:
        distributed.barrier()

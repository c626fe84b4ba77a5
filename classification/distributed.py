"""One process or many, as torchrun says in the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backbones.device import choose_device


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; rank 0 is the one that writes."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of ranks, in every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over the processes."""
        if self.count > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
            values /= self.count
        return values

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag is true everywhere as soon as one process raises it."""
        if self.count == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def copy_from_first(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


@contextmanager
def join_processes(wish: str) -> Iterator[Processes]:
    """Join the process group that torchrun describes, for the length of a `with` block."""
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = choose_device(wish, int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count == 1:
        yield Processes(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()

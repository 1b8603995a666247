"""Several processes as one (torchrun): each takes its strided part of the same batch, and gradients are averaged.

Every process draws the whole batch from the same seed, so that the data is that of one process. Gradients are reduced
here, after the backward pass: torch's DistributedDataParallel does it by hooks of its own forward pass, which
`torch.func.jvp` of the module inside goes around, and then every process trains a network of its own without a word.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pyflow.errors import InvalidInput

PATIENCE = timedelta(minutes=10)  # for a process that writes a checkpoint, or that has died where torchrun sees it not


@dataclass(frozen=True)
class World:
    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Only one process writes, logs and shows its progress."""
        return self.rank == 0

    def average(self, parameters: Sequence[Tensor], losses: Tensor) -> Tensor:
        """Average the gradients in place, and the losses (N,): what is not finite in one process is so in all."""
        if self.size == 1:
            return losses
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([losses, *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat[len(losses) :].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts):
            gradient.copy_(part.view(gradient.shape))
        return flat[: len(losses)]

    def refuse_apart(self, done: int, folder: object) -> None:
        """Refuse to go on from different steps: the folder has to be one that all processes see."""
        if self.size == 1:
            return
        steps = torch.tensor([done, -done], device=self.device)
        dist.all_reduce(steps, dist.ReduceOp.MAX)
        if steps[0] != -steps[1]:
            raise InvalidInput(
                f"{folder} is at step {done} for process {self.rank} and at {-steps[1]} to {steps[0]} elsewhere; "
                "expected one folder that all processes see"
            )

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))

    @contextmanager
    def own_chance(self, seed: int, step: int) -> Iterator[None]:
        """Dropout of its own for each process, while the generator that draws the batches stays common."""
        if self.size == 1:
            yield
            return
        with forked(self.device):
            torch.manual_seed((seed + step * self.size + self.rank) % 2**63)
            yield


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Chance inside leaves the generators outside as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def join(device: str) -> World:
    """This process among those that torchrun started, or alone."""
    where = _place(device)
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    if not dist.is_initialized():
        return World(where)
    return World(where, dist.get_rank(), dist.get_world_size())


def _place(device: str) -> torch.device:
    try:
        where = torch.device(device)
    except RuntimeError:
        where = torch.device("meta")
    if where.type not in ("cpu", "cuda"):
        raise InvalidInput(f"device is {device!r}; expected cpu or cuda")
    if where.type == "cpu":
        return where
    if not torch.cuda.is_available():
        raise InvalidInput(f"device is {device!r}, and torch finds no CUDA device here; expected cpu")
    if where.index is None:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if where.index >= torch.cuda.device_count():
        raise InvalidInput(f"device is {where}; expected one of the {torch.cuda.device_count()} that are here")
    torch.cuda.set_device(where)
    return where

"""What a run is made of, written to its checkpoint and put back from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyflow import checkpoint
from pyflow.errors import InvalidArtefact
from pyflow.spec import Spec

from .averages import Average
from .weighting import LearnedWeight


@dataclass(frozen=True)
class Run:
    """Everything that changes as it trains, but for the random generators."""

    net: nn.Module
    averages: Sequence[Average]
    optimizers: Sequence[Optimizer]
    weight: LearnedWeight | None
    device: torch.device

    @property
    def trained(self) -> list[Tensor]:
        modules = [self.net] if self.weight is None else [self.net, self.weight]
        return [p for module in modules for p in module.parameters() if p.requires_grad]


def save(run: Run, folder: Path, spec: Spec, done: int, texts: Mapping[str, str]) -> None:
    """Publish the averages with the state beside them, all in one swap."""
    state = {f"net.{name}": value for name, value in run.net.state_dict().items()}
    if run.weight is not None:
        state |= {f"weight.{name}": value for name, value in run.weight.state_dict().items()}
    for k, optimizer in enumerate(run.optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{k}.{index}.{slot}": value for slot, value in slots.items()}
    state |= {"rng": torch.get_rng_state(), "step": torch.tensor(done)}
    if run.device.type == "cuda":
        state["rng.cuda"] = torch.cuda.get_rng_state(run.device)
    first, *others = run.averages
    beside = {
        other.folder: (other.model, replace(spec, provenance={**spec.provenance, "half_life": other.half_life}))
        for other in others
    }
    checkpoint.save(folder, first.model, spec, state, beside=beside, texts=texts)


def restore(run: Run, folder: Path) -> int:
    """Put back what `save` wrote; the step to go on from, 0 when there is nothing."""
    if not checkpoint.is_checkpoint(folder):
        return 0
    state = checkpoint.load_state(folder)
    if ("rng.cuda" in state) != (run.device.type == "cuda"):
        raise InvalidArtefact(f"{folder} was trained on another device than {run.device}; go on where it began")
    try:
        for average, place in zip(run.averages, (folder, *(folder / other.folder for other in run.averages[1:]))):
            average.model.load_state_dict(checkpoint.load_arrays(place, checkpoint.SPEC, checkpoint.WEIGHTS))
        run.net.load_state_dict(_under("net.", state))
        if run.weight is not None:
            run.weight.load_state_dict(_under("weight.", state))
        for k, optimizer in enumerate(run.optimizers):
            _restore_optimizer(optimizer, _under(f"optimizer.{k}.", state))
        torch.set_rng_state(state["rng"])
        if run.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng.cuda"], run.device)
        return int(state["step"])
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise InvalidArtefact(
            f"{folder}: its training state does not fit this run ({error}); remove the folder"
        ) from error


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        index, slot = name.split(".", 1)
        like = parameters[int(index)]
        # In the weight's own layout: fused kernels take the tensors of one weight by their place in memory.
        laid = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        slots.setdefault(int(index), {})[slot] = laid
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

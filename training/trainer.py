"""The training loop: one function for every objective, and a resume that continues bit for bit."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyflow import checkpoint
from pyflow.errors import InvalidArtefact, InvalidInput, NotFinite
from pyflow.models import fresh
from pyflow.spec import Spec

from .batch import Draw, drop_labels
from .objectives import OBJECTIVES
from .recipes import Recipe


def train(
    recipe: Recipe, spec: Spec, draw: Draw, folder: Path, start: nn.Module | None = None, save_every: int = 500
) -> bool:
    """Train to `recipe.steps` and publish the averaged weights in `folder`, with the state for a resume beside them.

    A folder that holds an earlier part of the same run is continued, and its end result is bitwise the one of an
    uninterrupted run (on the CPU, with the same number of threads). Returns False when it was complete already.
    """
    _refuse_another_run(recipe, spec, folder)
    torch.manual_seed(recipe.seed)
    net = fresh(spec.network, start)
    average = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    done = _resume(folder, net, average, optimizer)
    if done == recipe.steps:
        return False

    objective = OBJECTIVES[recipe.objective]
    for module in (net, average):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stub
    decay = 0.5 ** (1 / max(1.0, recipe.half_lives[0] * recipe.steps))
    bar = tqdm(total=recipe.steps, initial=done, desc=f"{recipe.name} on {recipe.data}", unit="step", mininterval=0.5)
    for step in range(done, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        batch = drop_labels(draw(recipe.batch), spec, recipe.label_dropout)
        loss = objective(net, spec, batch, recipe.options).each.mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise NotFinite(
                f"step {step}: loss {loss.item():g}, gradient norm {norm.item():g}; the checkpoint in {folder}, "
                f"if any, is good: lower learning_rate (now {recipe.learning_rate:g}) and start again"
            )
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), net.parameters()):
                slow.lerp_(fast, 1 - min(decay, (1 + step) / (10 + step)))
        bar.update()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", norm=f"{norm.item():.2f}")
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            checkpoint.save(folder, average, spec, _state(net, optimizer, step + 1))
    bar.close()
    return True


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to zero."""
    warmup = max(1.0, recipe.warmup * recipe.steps)
    return min((step + 1) / warmup, (recipe.steps - step) / (recipe.steps - warmup + 1))


def provenance(recipe: Recipe) -> dict[str, object]:
    """The recipe as it stands in a spec, in JSON's own types; the network has its own place there."""
    return json.loads(json.dumps({key: value for key, value in asdict(recipe).items() if key != "network"}))


def _refuse_another_run(recipe: Recipe, spec: Spec, folder: Path) -> None:
    if recipe.objective not in OBJECTIVES:
        raise InvalidInput(f"objective is {recipe.objective!r}; expected one of {', '.join(OBJECTIVES)}")
    if checkpoint.is_checkpoint(folder) and checkpoint.load_spec(folder) != spec:
        raise InvalidInput(
            f"{folder} holds a checkpoint of another recipe; expected none or the same run: remove it, or name another"
        )


def _state(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Tensor]:
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    return state | {"rng": torch.get_rng_state(), "step": torch.tensor(step)}


def _resume(folder: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put back what `_state` saved; the step to go on from, 0 when there is nothing."""
    if not checkpoint.is_checkpoint(folder):
        return 0
    state = checkpoint.load_state(folder)
    try:
        average.load_state_dict(checkpoint.load_arrays(folder, checkpoint.SPEC, checkpoint.WEIGHTS))
        net.load_state_dict(_under("net.", state))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", state).items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        torch.set_rng_state(state["rng"])
        return int(state["step"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InvalidArtefact(
            f"{folder}: its training state does not fit this run ({error}); remove the folder"
        ) from error


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

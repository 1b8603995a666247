"""The training loop: one function for every objective, and a resume that continues bit for bit."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyflow import checkpoint
from pyflow.artefact import sweep
from pyflow.core import uniform_grid
from pyflow.errors import InvalidInput, NotFinite
from pyflow.models import fresh
from pyflow.spec import Spec

from . import logs as logging
from . import perceptual
from .averages import averages
from .batch import Batch, Draw, Losses, drop_labels
from .classifier import Classifier
from .distributed import World, forked, join
from .fields import to_yaml
from .objectives import OBJECTIVES, objective
from .optimizers import optimizers, rate, set_rate
from .resume import Run, restore, save
from .settings import Options, Recipe
from .watch import Watch
from .weighting import LearnedWeight

LOG_EVERY = 20
RECIPE = "recipe.yaml"


def train(
    recipe: Recipe,
    spec: Spec,
    draw: Draw,
    folder: Path,
    start: nn.Module | None = None,
    save_every: int = 500,
    *,
    device: str = "cpu",
    watch: int = 500,
    logs: Sequence[str] = (),
    judge: Classifier | None = None,
) -> bool:
    """Train to `recipe.steps` and publish the averaged weights in `folder`, with the state for a resume beside them.

    A folder that holds an earlier part of the same run is continued, and its end result is bitwise the one of an
    uninterrupted run (on the CPU, with the same number of threads). Returns False when it was complete already.
    Averages of further half-lives are checkpoints inside, `half-life-0.1` and so on. At the first step and each `watch`
    steps (0: never) the log beside the folder is given signs of health and samples, which change nothing; `judge`, a
    classifier of the data, lends its features to the distance. `logs` are tensorboard and wandb. Under torchrun the
    processes share each batch.
    """
    loss_each = objective(recipe.objective, spec, recipe.options).loss
    spec.plan(uniform_grid(2))  # refused here where the solver cannot sample what is trained
    if watch < 0:
        raise InvalidInput(f"watch is {watch}; expected 0 (never) or more steps")
    logging.refuse_missing(logs)
    _refuse_another_run(spec, folder)
    world = join(device)
    _refuse_uneven(recipe, world)
    if recipe.options.lpips:
        perceptual.load(world.device)
    torch.manual_seed(recipe.seed)
    run = _begin(recipe, spec, start, world.device)
    if world.writes:
        sweep(folder)
    done = restore(run, folder)
    if done < recipe.steps:
        logging.refuse_others(logging.folder_of(folder), spec, done, save_every)
    world.refuse_apart(done, folder)
    if done == recipe.steps:
        return False
    _refuse_strangers(run, folder)
    trained, texts = run.trained, {RECIPE: to_yaml(recipe)}

    def loss_of(batch: Batch) -> Tensor:
        """What is trained, and the mean square of what was missed."""
        with torch.autocast(world.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            losses = loss_each(run.net, spec, batch, recipe.options)
        weighted = losses.each if run.weight is None else run.weight.weigh(losses)
        return torch.stack([weighted.mean(), losses.square.detach().mean()])

    def looked_at(net: nn.Module, batch: Batch) -> Losses:
        return loss_each(net, spec, batch, recipe.options)

    def drawn() -> Batch:
        whole = draw(recipe.batch).to(world.device).part(world.rank, world.size)
        return drop_labels(whole, spec, recipe.label_dropout)

    steps_loss = _compiled(loss_of, drawn, recipe, world) if recipe.compile else loss_of
    watched: Watch | None = None
    with ExitStack() as stack:
        log = None
        if world.writes:
            log = stack.enter_context(logging.Log(logging.folder_of(folder), done, logs, provenance(recipe), spec))
        title = f"{recipe.name} on {recipe.data}"
        bar = tqdm(total=recipe.steps, initial=done, desc=title, unit="step", mininterval=0.5, disable=not world.writes)
        stack.callback(bar.close)
        for step in range(done, recipe.steps):
            share = rate(step, recipe)
            set_rate(run.optimizers, recipe.learning_rate * share)
            batch = drawn()
            with world.own_chance(recipe.seed, step):
                losses = _backward(steps_loss, batch, recipe.accumulate, trained)
            loss, square = world.average(trained, losses)
            norm = nn.utils.clip_grad_norm_(trained, recipe.clip)
            if not torch.isfinite(loss + norm):
                raise NotFinite(
                    f"step {step}: loss {loss.item():g}, gradient norm {norm.item():g}; the checkpoint in {folder}, "
                    f"if any, is good: lower learning_rate (now {recipe.learning_rate:g}) and start again"
                )
            for optimizer in run.optimizers:
                optimizer.step()
            for average in run.averages:
                average.follow(run.net, step)
            bar.update()
            ended = step + 1
            looks = watch > 0 and (ended == 1 or ended % watch == 0)
            if log is not None and (looks or ended % LOG_EVERY == 0 or ended in (1, recipe.steps)):
                values, picture = {"loss": square.item(), "norm": norm.item(), "rate": share}, None
                if loss != square:
                    values["weighted"] = loss.item()
                bar.set_postfix(loss=f"{values['loss']:.4f}", norm=f"{values['norm']:.2f}")
                if looks:
                    watched = watched or Watch(spec, draw, world.device, judge, recipe.data, looked_at)
                    signs, picture = watched.look(run.averages[0].model)
                    values |= signs
                log.write(ended, values, picture)
            if world.writes and (ended % save_every == 0 or ended == recipe.steps):
                save(run, folder, spec, ended, texts)
    world.wait()
    return True


def _begin(recipe: Recipe, spec: Spec, start: nn.Module | None, device: torch.device) -> Run:
    """The network before its first step, and all that goes with it."""
    net = fresh(spec.network, start).train()
    differentiates = OBJECTIVES[recipe.objective].differentiates
    # Convolutions are faster with their channels last, but torch's derivative of a group norm along a direction fails.
    layout = torch.contiguous_format if differentiates else torch.channels_last
    net.to(device, memory_format=layout)  # type: ignore[call-overload]  # missing in its stub
    weight = LearnedWeight().to(device) if recipe.options.learned_weight else None
    channels = spec.network.shape[0] + getattr(spec.network, "extra", 0)
    return Run(net, averages(net, recipe), optimizers(net, weight, recipe, channels), weight, device)


def _backward(loss_of: Callable[[Batch], Tensor], batch: Batch, parts: int, trained: Sequence[Tensor]) -> Tensor:
    """The gradient of the whole batch, a part at a time."""
    for parameter in trained:
        parameter.grad = None
    total = torch.zeros(2, device=batch.image.device)
    for index in range(parts):
        losses = loss_of(batch.part(index, parts)) / parts
        losses[0].backward()
        total += losses.detach()
    return total


def _compiled(
    loss_of: Callable[[Batch], Tensor], drawn: Callable[[], Batch], recipe: Recipe, world: World
) -> Callable[[Batch], Tensor]:
    """The loss as one compiled graph; tried on a batch, whose chance is given back, before anything is trained."""
    torch.compiler.reset()  # it gives up on a function that it met in more than eight settings
    made = torch.compile(loss_of, fullgraph=True)
    try:
        with forked(world.device):
            made(drawn().part(0, recipe.accumulate))[0].backward()
    except Exception as error:  # the compiler's errors have no common class
        told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InvalidInput(
            f"compile is True; {recipe.objective} does not compile here ({told.strip()}): expected False"
        ) from error
    return made


def provenance(recipe: Recipe) -> dict[str, object]:
    """The recipe as it stands in a spec, in JSON's own types; the network has its own place there."""
    return json.loads(json.dumps({key: value for key, value in asdict(recipe).items() if key != "network"}))


def _refuse_another_run(spec: Spec, folder: Path) -> None:
    if folder.resolve() == Path.cwd():
        raise InvalidInput(f"{folder} is where this runs, and each save takes its place; expected a folder in it")
    if checkpoint.is_checkpoint(folder):
        if _with_every_option(checkpoint.load_spec(folder)) != spec:
            raise InvalidInput(
                f"{folder} holds a checkpoint of another recipe; expected none or the same run: remove it, or name "
                "another"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"{folder} is no checkpoint; expected one of the same run, or a name that is free")


def _with_every_option(spec: Spec) -> Spec:
    """An unfinished run of a pyflow that knew fewer options has the others' defaults."""
    told = spec.provenance.get("options")
    if not isinstance(told, dict):
        return spec
    return replace(spec, provenance={**spec.provenance, "options": {**asdict(Options()), **told}})


def _refuse_strangers(run: Run, folder: Path) -> None:
    """What the first save would refuse to delete."""
    own = {RECIPE, checkpoint.SPEC, checkpoint.WEIGHTS, checkpoint.STATE}
    for other in run.averages[1:]:
        own |= {other.folder, *(f"{other.folder}/{name}" for name in (checkpoint.SPEC, checkpoint.WEIGHTS))}
    strangers = sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*")} - own)
    if strangers:
        raise InvalidInput(
            f"{folder} holds {', '.join(strangers[:3])}, which a save would delete; move that away, or name another "
            "folder"
        )


def _refuse_uneven(recipe: Recipe, world: World) -> None:
    if recipe.batch % (world.size * recipe.accumulate):
        raise InvalidInput(
            f"batch is {recipe.batch}; expected a multiple of {world.size} processes times accumulate="
            f"{recipe.accumulate}"
        )
    parts, reads = world.size * recipe.accumulate, OBJECTIVES[recipe.objective].reads
    for name in {"diagonal", "jump"} & reads:
        share = getattr(recipe.options, name)
        whole = Fraction(repr(share)).denominator  # the smallest batch of which this share is whole
        if (parts > 1 and recipe.batch % (parts * whole)) or 0 < share * recipe.batch < 1:
            raise InvalidInput(
                f"batch is {recipe.batch}; expected a multiple of {parts * whole}, so that {name}={share:g} of each of "
                f"{parts} parts is the same whole number of samples"
            )

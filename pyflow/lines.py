"""The Lines study: DDIM pairs of a DDPM teacher, a student that learns them along whole lines, one at the noise alone.

Every stage leaves an artefact in the run's folder; a second run reuses what is finished and resumes what is not.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint, commands, drawing, native
from .core import PATHS
from .errors import InvalidInput
from .latency import calls
from .lines_page import LINES, METHODS, MOMENTS, NAIVE, SHOWN, STATE, STEPS, TEACHER, Found, Measure, Setting, write
from .loading import load
from .quality import PICTURES, Judge
from .sampler import Flow
from .timing import interleave, machine
from .training import pairs as pairs_files
from .training.data import LAWS
from .training.recipes import recipe

TIMES = tuple(index / 10 for index in range(11))  # of the error's curve
# A prediction of the noise comes into the image divided by alpha(0), 152 times larger with linear betas, and so do the
# roundings of a single step, of which certificates have some: a sound engine was 1.2e-5 off, 1e-5 is allowed.
TEACHER_BOUND = 60.0  # dB
SEED, HELD_OUT_SEED = 2**31, 2**31 + 1
TIMED_BATCH = 16
TRAJECTORIES = 4


def run(setting: Setting, folder: Path, report_folder: Path) -> Found:
    started = time.perf_counter()
    _refuse_misfits(setting)
    judge = _judge(setting, folder)
    flows = _made(setting, folder, judge)
    held_out, _ = pairs_files.load(folder / "held-out")
    nets = {name: checkpoint.load(folder / name)[0].eval() for name in (LINES, NAIVE)}
    measures, pictures = _measured(setting, flows, judge, held_out)
    found = Found(
        setting,
        measures,
        {name: _along(net, held_out) for name, net in nets.items()},
        pictures,
        _trajectory(nets, held_out),
        judge.floor,
        _protocol(setting, flows, judge),
        {"command": _command(setting), "seconds": round(time.perf_counter() - started), **machine()},
    )
    write(found, report_folder)
    return found


def _refuse_misfits(setting: Setting) -> None:
    """What a later stage would refuse."""
    drawing.refuse_missing()
    if setting.data in LAWS:
        raise InvalidInput(f"data is {setting.data!r}, points; this study expected pictures that have classes")
    recipe("ddpm", setting.data, size=setting.size, **setting.changes)
    for name in (LINES, NAIVE):
        recipe(name, setting.data, size=setting.size, **setting.changes)


def _judge(setting: Setting, folder: Path) -> Judge:
    _say("classifier", commands.train_judge(folder / "classifier", setting.data), folder / "classifier")
    return Judge.of(folder / "classifier", setting.data)


def _made(setting: Setting, folder: Path, judge: Judge) -> dict[str, Flow]:
    """Train and export what is missing; a flow a method."""
    teacher, device, changes = folder / TEACHER, setting.device, setting.changes
    own = setting.changes
    made = commands.train_teacher("ddpm", setting.data, teacher, size=setting.size, device=device, **own)
    _say(TEACHER, made, teacher)
    judge.refuse_misfit(checkpoint.load_spec(teacher))
    source = _engine(teacher, setting)
    for name, count, seed in (("pairs", setting.pairs, SEED), ("held-out", setting.held_out, HELD_OUT_SEED)):
        plan: dict[str, Any] = {"steps": setting.ddim, "solver": "ddim", "guidance": setting.guidance}
        shards = commands.make_pairs(source, folder / name, count=count, seed=seed, device=device, **plan)
        _say(name, shards > 0, folder / name)
    for name in (LINES, NAIVE):
        made = commands.distil(name, teacher, folder / "pairs", folder / name, device=device, **changes)
        _say(name, made, folder / name)
    return {name: load(_engine(folder / name, setting), device=device) for name in METHODS}


def _engine(source: Path, setting: Setting) -> Path:
    """What runs a checkpoint: a native engine on the CPU, torch on a GPU."""
    if setting.device != "cpu":
        return source
    engine = source.with_suffix(".engine")
    psnr = TEACHER_BOUND if source.name == TEACHER else None
    _say(engine.name, commands.export_engine(source, engine, "native", psnr=psnr), engine)
    return engine


def _plans(setting: Setting) -> list[tuple[str, int, float]]:
    """(method, steps, guidance)."""
    teacher = [(TEACHER, steps, setting.guidance) for steps in (setting.ddim, *reversed(STEPS))]
    return [*teacher, *((name, steps, 1.0) for name in (LINES, NAIVE) for steps in reversed(STEPS))]


def _measured(
    setting: Setting, flows: Mapping[str, Flow], judge: Judge, held_out: Sequence[Tensor]
) -> tuple[list[Measure], dict[tuple[str, int], np.ndarray]]:
    """Each plan judged and timed; the pictures are of one seed and the same labels."""
    judged: dict[tuple[str, int], tuple[float, float]] = {}
    errors: dict[tuple[str, int], float] = {}
    pictures: dict[tuple[str, int], np.ndarray] = {}
    plans = _plans(setting)
    for name, steps, guidance in tqdm(plans, desc="judged", unit="plan"):
        distance, accuracy, images = judge.of_flow(flows[name], steps, guidance)
        judged[name, steps], pictures[name, steps] = (distance, accuracy), images[:SHOWN]
        errors[name, steps] = _sampled_error(flows[name], steps, guidance, held_out)
    seconds = interleave(
        {
            (name, *case): call
            for name, steps, guidance in plans
            for case, call in calls(flows[name], (steps,), (1, TIMED_BATCH), guidance).items()
        },
        rounds=9,
        warmup=1,
        budget=60.0,
    )
    slowest = seconds[TEACHER, setting.ddim, TIMED_BATCH].median
    measures = [
        Measure(
            name,
            steps,
            ms_per_image=1e3 * seconds[name, steps, TIMED_BATCH].median / TIMED_BATCH,
            first_image_ms=1e3 * seconds[name, steps, 1].median,
            speedup=slowest / seconds[name, steps, TIMED_BATCH].median,
            held_out=errors[name, steps],
            distance=judged[name, steps][0],
            label_accuracy=judged[name, steps][1],
        )
        for name, steps, _ in plans
    ]
    return measures, pictures


def _sampled_error(flow: Flow, steps: int, guidance: float, held_out: Sequence[Tensor]) -> float:
    """Against the teacher's own pictures, which are the held-out pairs."""
    _, labels, images = held_out
    asked = labels.tolist() if flow.spec.network.classes else None
    plan: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": HELD_OUT_SEED}
    states = flow.sample(len(labels), label=asked, **plan).states
    return float(np.square(states - images.numpy()).mean())


@torch.inference_mode()
def _told(net: nn.Module, held_out: Sequence[Tensor], t: float) -> tuple[Tensor, Tensor]:
    """The points of the lines at time t, and the images that the network tells there."""
    noise, labels, images = held_out
    states = PATHS["linear"].mix(images, noise, t)
    times = torch.full((len(states),), t)
    parts = zip(*(tensor.split(128) for tensor in (states, times, labels)))
    return states, torch.cat([net(x, at, at, label) for x, at, label in parts])


def _along(net: nn.Module, held_out: Sequence[Tensor]) -> dict[float, float]:
    return {t: float((_told(net, held_out, t)[1] - held_out[2]).square().mean()) for t in TIMES}


def _trajectory(nets: Mapping[str, nn.Module], held_out: Sequence[Tensor]) -> dict[str, np.ndarray]:
    few = [tensor[:TRAJECTORIES] for tensor in held_out]
    told = {name: [_told(net, few, t)[1] for t in MOMENTS] for name, net in nets.items()}
    told[STATE] = [_told(nets[LINES], few, t)[0] for t in MOMENTS]
    return {name: np.stack([native.to_uint8(one.numpy()) for one in images], axis=1) for name, images in told.items()}


def _protocol(setting: Setting, flows: Mapping[str, Flow], judge: Judge) -> str:
    backend = flows[LINES].backend
    return (
        f"Times: {backend}, ms/image and speed-up at batch {TIMED_BATCH}, first image at batch 1, medians of rounds in "
        f"which all plans take turns. The teacher runs with guidance {setting.guidance:g}, which the students have in "
        f"their weights. Held-out error: mean square, in -1..1, against what {setting.ddim} steps of the teacher make "
        f"of {setting.held_out} noises that no student saw. Distance: Fréchet, in {judge.real.shape[1]} features of a "
        f"classifier ({judge.accuracy:.1%} right on held-out pictures), {PICTURES} pictures against {len(judge.real)} "
        f"real ones; held-out real pictures are at {judge.floor:.3f}."
    )


def _command(setting: Setting) -> str:
    plain = Setting()
    named = {name: value for name, value in asdict(setting).items() if value != getattr(plain, name)}
    named |= {"data": Path(setting.data).name, **named.pop("changes", {})}
    return " ".join(["pyflow report lines", *(f"--{name.replace('_', '-')} {value}" for name, value in named.items())])


def _say(name: str, made: bool, folder: Path) -> None:
    print(f"{name:>15}  {f'made: {folder}' if made else f'reused: {folder} was finished already'}", flush=True)

"""The inpainting study: a base network and one fine-tuned with masks fill the same holes from the same noise."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import commands, drawing, masks, native
from .errors import InvalidInput
from .inpaint_page import AREAS, BASE, HOLE, NAMES, SHOWN, TUNED, WHOLE, Errors, Found, Plan, write
from .loading import load
from .pictures import hidden
from .sampler import STEPS_LIMIT, Flow, Known
from .similarity import mse, ssim, ssim_every_pixel
from .timing import machine
from .training import perceptual
from .training.data import LAWS, Dataset, class_names, load_dataset, values

BATCH = 50  # pictures a call
SEED, MASKS_SEED = 5, 6


@dataclass(frozen=True)
class Setting:
    """What is compared, on what. `changes` are fields of both recipes, where a network is trained."""

    data: str = "digits"
    base: Path | None = None
    tuned: Path | None = None
    each: int = 10  # pictures a class
    masks: tuple[str, ...] = ("centre", "boxes", "irregular", "half")
    calls: tuple[int, ...] = (1, 2, 4, 50)
    guidance: float = 1.0
    size: str | None = None
    device: str = "cpu"
    threads: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [*masks.KINDS, *masks.GROUPS]
        for name, came, fits, expected in (
            ("data", self.data, self.data not in LAWS, "pictures: points have no holes"),
            ("each", self.each, self.each >= 1, "1 or more pictures a class"),
            ("masks", self.masks, self.masks and set(self.masks) <= set(known), f"some of {', '.join(known)}"),
            (
                "calls",
                self.calls,
                self.calls and all(1 <= n <= STEPS_LIMIT for n in self.calls),
                "step counts, 1 or more",
            ),
            ("guidance", self.guidance, 0 <= self.guidance <= 100, "0 to 100, 1 for none"),
        ):
            if not fits:
                raise InvalidInput(f"{name} is {came!r}; expected {expected}")
        for name, listed in (("masks", self.masks), ("calls", self.calls)):
            if len(set(listed)) < len(listed):
                raise InvalidInput(f"{name} is {listed!r}; expected each once")


@dataclass(frozen=True)
class Pictures:
    """The held-out pictures that are masked: the network's values, and as uint8."""

    values: np.ndarray
    labels: np.ndarray
    images: np.ndarray


def run(setting: Setting, folder: Path, report_folder: Path) -> Found:
    drawing.refuse_missing()
    started = time.perf_counter()
    held_out = load_dataset(setting.data, "test")
    flows = {
        name: load(source, threads=setting.threads, device=setting.device) for name, source in _made(setting, folder)
    }
    for name, flow in flows.items():
        _refuse_misfit(name, flow, held_out)
    pictures = _chosen(held_out, setting.each)
    height, width = pictures.images.shape[1:3]
    drawn = {kind: masks.draw(kind, height, width, len(pictures.labels), seed=MASKS_SEED) for kind in setting.masks}
    measured = _measured(setting, flows, pictures, drawn)
    names, present = class_names(setting.data, held_out.classes), np.unique(pictures.labels).tolist()
    shown = slice(SHOWN)  # one of each class while there are classes
    found = Found(
        data=held_out.name,
        classes={label: names[label] for label in present},
        labels=pictures.labels,
        masks=setting.masks,
        steps=setting.calls,
        errors={plan: errors for plan, (errors, _) in measured.items()},
        real=pictures.images[shown],
        masked={kind: hidden(pictures.images[shown], of_kind[shown]) for kind, of_kind in drawn.items()},
        made={plan: images for plan, (_, images) in measured.items()},
        shares={kind: float(of_kind.mean()) for kind, of_kind in drawn.items()},
        protocol=_protocol(setting, flows, len(pictures.labels)),
        facts={
            "command": _command(setting),
            "seconds": round(time.perf_counter() - started),
            **{name: flow.identity for name, flow in flows.items()},
            **machine(),
        },
    )
    write(found, report_folder)
    return found


def _made(setting: Setting, folder: Path) -> list[tuple[str, Path]]:
    """The two networks; what is not named is trained."""
    own: dict[str, Any] = {"device": setting.device, **setting.changes}
    base, tuned = setting.base, setting.tuned
    if base is None:
        base = folder / "base"
        _say(BASE, commands.train_teacher("cfm", setting.data, base, size=setting.size, **own), base)
    if tuned is None:
        tuned = folder / "fine-tuned"
        _say(TUNED, commands.train_teacher("inpaint", setting.data, tuned, start=base, **own), tuned)
    return [(BASE, base), (TUNED, tuned)]


def _refuse_misfit(name: str, flow: Flow, held_out: Dataset) -> None:
    network = flow.spec.network
    if network.shape != held_out.shape or network.classes not in (0, held_out.classes):
        raise InvalidInput(
            f"the {name} network makes {network.shape} of {network.classes} classes; expected {held_out.shape} of "
            f"{held_out.classes}, which {held_out.name!r} holds: name other --data"
        )


def _chosen(held_out: Dataset, each: int) -> Pictures:
    """The first `each` pictures of every class, the classes in turn."""
    labels = held_out.labels.numpy()
    of_class = [np.flatnonzero(labels == label)[:each] for label in range(held_out.classes)]
    chosen = np.array([one[turn] for turn in range(each) for one in of_class if turn < len(one)])
    if not len(chosen):
        raise InvalidInput(f"data {held_out.name!r} has no labelled pictures to mask; expected a class or more")
    shown = values(held_out.images[torch.from_numpy(chosen)]).numpy().astype(np.float32)
    images = native.to_uint8(shown)
    return Pictures(shown, labels[chosen], images)


def _measured(
    setting: Setting, flows: Mapping[str, Flow], pictures: Pictures, drawn: Mapping[str, np.ndarray]
) -> dict[Plan, tuple[dict[str, Errors], np.ndarray]]:
    found = {}
    plans = [Plan(name, kind, steps) for kind in setting.masks for name in flows for steps in setting.calls]
    with tqdm(total=sum(plan.steps for plan in plans) * len(pictures.labels), desc="filled", unit="call") as bar:
        for plan in plans:
            errors, shown = [], []
            for first in range(0, len(pictures.labels), BATCH):
                part = slice(first, first + BATCH)
                made = _filled(setting, flows[plan.method], plan.steps, pictures, drawn[plan.mask], part)
                errors.append(_errors(pictures.images[part], made, drawn[plan.mask][part]))
                shown.append(made[: max(0, SHOWN - first)])
                bar.update(plan.steps * len(made))
            found[plan] = {area: Errors.joined([of[area] for of in errors]) for area in AREAS}, np.concatenate(shown)
    return found


def _filled(setting: Setting, flow: Flow, steps: int, pictures: Pictures, drawn: np.ndarray, part: slice) -> np.ndarray:
    known, labels = Known(pictures.values[part], drawn[part]), pictures.labels[part].tolist()
    output = flow.sample(
        len(labels),
        steps=steps,
        label=labels if flow.spec.network.classes else None,
        guidance=setting.guidance if flow.spec.null_label else 1.0,
        seed=SEED,
        first=part.start,
        solver=flow.inpaint_solver,
        known=known,
    )
    return np.asarray(output.images)


def _errors(real: np.ndarray, made: np.ndarray, drawn: np.ndarray) -> dict[str, Errors]:
    power, lpips = mse(np.zeros_like(real), real), None
    if os.environ.get(perceptual.WEIGHTS):
        x, y = (torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1 for images in (real, made))
        with torch.inference_mode():
            lpips = perceptual.lpips_distance(x, y).numpy()
    return {
        WHOLE: Errors(mse(real, made), power, ssim(real, made), ssim_every_pixel(real, made), lpips),
        HOLE: Errors(mse(real, made, drawn), power, ssim(real, made, drawn)),
    }


def _protocol(setting: Setting, flows: Mapping[str, Flow], count: int) -> str:
    solver = {flow.inpaint_solver or flow.spec.solver for flow in flows.values()}
    sees = [name for name, flow in flows.items() if flow.spec.network.sees_mask]
    return (
        f"{count} held-out pictures, {setting.each} a class at most; masks, labels and noise are the same for both "
        f"networks. Solver {' and '.join(sorted(solver))}, guidance {setting.guidance:g} where a network takes it. "
        f"{'Told the mask: ' + ', '.join(sees) if sees else 'No network is told the mask'}. "
        f"Figures of the {AREAS[0]} hold the kept pixels, those of the {AREAS[1]} do not. PSNR is that of the mean "
        "squared error over the set, never above the mean of the pictures' PSNRs; NMSE is that error over the mean "
        "square of the real pictures, black being 0, in the hole too. SSIM has a Gaussian window of 11x11, sigma 1.5; "
        f"of the whole picture, over the windows inside it; {NAMES['ssim_every_pixel']}: over a window around each of "
        "its pixels, the picture mirrored at its borders, so that a hole in the middle weighs no more than its share."
    )


def _command(setting: Setting) -> str:
    plain, words = Setting(), ["pyflow report inpaint"]
    for name, value in asdict(setting).items():
        if name == "changes" or value == getattr(plain, name):
            continue
        told = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words.append(f"--{name} {Path(told).name if isinstance(value, Path) or name == 'data' else told}")
    return " ".join([*words, *(f"--{name} {value}" for name, value in setting.changes.items())])


def _say(name: str, made: bool, folder: Path) -> None:
    print(f"{name:>15}  {f'made: {folder}' if made else f'reused: {folder} was finished already'}", flush=True)

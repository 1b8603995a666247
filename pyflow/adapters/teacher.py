"""The other end: what diffusers trained, in pyflow's loop. A DDIMScheduler's steps are rows; its table is a path."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from .. import core, native
from ..artefact import json_bytes, sha256
from ..engines.runner import LoopRunner
from ..errors import InvalidArtefact, InvalidInput
from ..sampler import Flow
from ..spec import Spec, UNet
from .convention import PREDICTION_TYPES, index_of_time, safe_arguments, time_of_index


def path_of(scheduler: DDIMScheduler) -> core.Path:
    """alpha and sigma out of the scheduler's table: exact at its timesteps, refused between them.

    At t=1 stands the scheduler's final alpha, so sigma(1) is zero only with set_alpha_to_one.
    """
    table = [*scheduler.alphas_cumprod.tolist(), float(scheduler.final_alpha_cumprod)]  # the last is entry -1

    def alpha(t: float) -> float:
        return table[index_of_time(t, len(table) - 1)] ** 0.5

    def sigma(t: float) -> float:
        return (1 - table[index_of_time(t, len(table) - 1)]) ** 0.5

    def rate(t: float) -> float:
        raise InvalidInput(f"a table of {len(table) - 1} timesteps has no rates; expected ddim, ddpm or renoise on it")

    return core.Path(type(scheduler).__name__, alpha, sigma, rate, rate)


def plan_of(scheduler: DDIMScheduler, steps: int, eta: float = 0.0) -> core.Plan:
    """The steps of `DDIMScheduler.step` as rows; `scheduler` is left as it is.

    A row ends where diffusers says it does, one stride below its timestep. Where the stride does not divide the table
    (linspace, trailing) that is not quite the next row's timestep: diffusers' pictures have this in them.
    """
    config = scheduler.config
    _refuse_clamps(config)
    indices = config.num_train_timesteps
    if not 1 <= steps <= indices:
        raise InvalidInput(f"steps is {steps}; expected 1 to {indices}, the scheduler's timesteps")
    visited = copy.copy(scheduler)
    visited.set_timesteps(steps)
    path, plan = path_of(scheduler), []
    for index in visited.timesteps.tolist():
        s, t = (time_of_index(k, indices) for k in (index, max(index - indices // steps, -1)))
        plan.append(_row(path, config.prediction_type, (s, t) if t == 1.0 else (s, t, 1.0), eta))
    plan[-1] = plan[-1]._replace(ka=1.0, ks=0.0)  # what a mask keeps comes back unchanged, wherever the table ends
    return plan


def _row(path: core.Path, prediction_type: str, grid: tuple[float, ...], eta: float) -> core.Row:
    if prediction_type != "v_prediction":
        return core.ddim(path, PREDICTION_TYPES[prediction_type], grid, eta)[0]
    # v = alpha*noise - sigma*image is a velocity by the angle, not by time, and the table has no rates to tell one by
    # the other: it is read as image = alpha*x - sigma*v.
    row = core.ddim(path, core.IMAGE, grid, eta)[0]
    return row._replace(a=row.a + row.b * path.alpha(grid[0]), b=-row.b * path.sigma(grid[0]))


def _refuse_clamps(config: Any) -> None:
    for name in ("clip_sample", "thresholding"):
        if config[name]:
            raise InvalidInput(
                f"{name} is True: a step that clamps the image is not linear, so no row can say it; set it to False: "
                f"DDIMScheduler.from_config(scheduler.config, {name}=False)"
            )
    if config.prediction_type not in PREDICTION_TYPES:
        raise InvalidInput(
            f"prediction_type is {config.prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}"
        )


class Teacher(Flow):
    """A UNet2DModel in pyflow's loop, with the rows of its own table. Of its spec's network, shape and classes hold."""

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, identity: str) -> None:
        _refuse_clamps(scheduler.config)
        config = unet.config
        if config.out_channels != config.in_channels:
            raise InvalidInput(
                f"out_channels is {config.out_channels}; expected in_channels={config.in_channels}: "
                "a network that also predicts its variance is no denoiser here"
            )
        if config.class_embed_type is not None:
            raise InvalidInput(
                f"class_embed_type is {config.class_embed_type!r}; expected None: classes, or none at all"
            )
        size = config.sample_size
        shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
        network = UNet(shape, 8, (1,), attention=(), heads=1, classes=config.num_class_embeds or 0)
        spec = Spec(network, "vp-linear", PREDICTION_TYPES[scheduler.config.prediction_type], "ddim")
        super().__init__(_runner(unet.eval(), shape, scheduler), spec, "diffusers", identity)
        self.scheduler = scheduler

    def plan(self, steps: int | None = None, solver: str | None = None, grid: Any = "uniform") -> core.Plan:
        """solver: ddim or ddpm. The timesteps are the scheduler's."""
        if solver not in (None, "ddim", "ddpm"):
            raise InvalidInput(f"solver is {solver!r}; expected ddim or ddpm, which need no rates")
        if grid != "uniform":
            raise InvalidInput(f"grid is {grid!r}; expected none: the timesteps are the scheduler's own")
        return plan_of(self.scheduler, steps or 1, eta=1.0 if solver == "ddpm" else 0.0)


def _runner(unet: UNet2DModel, shape: tuple[int, ...], scheduler: DDIMScheduler) -> LoopRunner:
    indices, classes = scheduler.config.num_train_timesteps, unet.config.num_class_embeds

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        labels = torch.from_numpy(label.copy()) if classes else None
        with torch.inference_mode():
            told = unet(torch.from_numpy(x.copy()), index_of_time(float(s[0]), indices), class_labels=labels).sample
            torch.from_numpy(out).copy_(told)

    return LoopRunner(native.callable_denoiser(predict, shape))


def load_teacher(folder: str | Path, clip_sample: bool | None = None) -> Teacher:
    """Open a folder of DDIMPipeline or DDPMPipeline (model_index.json, a UNet2DModel in safetensors, a scheduler).

    clip_sample False turns off the clamping that most of these folders ask for, and that no row can say.
    """
    if not Path(folder).is_dir():
        raise InvalidArtefact(f"{folder} is no folder; expected a pipeline that diffusers saved: download it first")
    pipeline = DDIMPipeline.from_pretrained(folder, **safe_arguments(folder, {}), local_files_only=True)
    if not isinstance(pipeline.unet, UNet2DModel):
        raise InvalidInput(f"{folder} holds a {type(pipeline.unet).__name__}; expected a UNet2DModel")
    told = {} if clip_sample is None else {"clip_sample": clip_sample}
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **told)
    return Teacher(pipeline.unet, scheduler, _identity(Path(folder), pipeline.unet.config, scheduler.config))


def _identity(folder: Path, *configs: Mapping[str, Any]) -> str:
    """Of the weights and of all that says how they run, but not of the diffusers that wrote it."""
    weights = [sha256(path.read_bytes()) for path in sorted(folder.rglob("*.safetensors"))]
    said = [{name: value for name, value in config.items() if not name.startswith("_")} for config in configs]
    return sha256(json_bytes({"weights": weights, "configs": said}))

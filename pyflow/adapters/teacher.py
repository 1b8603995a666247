"""The other end: what diffusers trained, in pyflow's loop. A DDIMScheduler's steps are rows; its table is a path."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from .. import core, native
from ..artefact import json_bytes, sha256
from ..engines.runner import Request
from ..errors import BackendUnavailable, InvalidArtefact, InvalidInput, PyflowError
from ..native import Samples
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
    _refuse_unknown(scheduler.config)
    if scheduler.config.clip_sample:
        raise InvalidInput(
            "clip_sample is True: a step that clamps the image is not linear, so no row can say it; a Teacher clamps "
            "in its network call, or set it to False: DDIMScheduler.from_config(scheduler.config, clip_sample=False)"
        )
    path, prediction = path_of(scheduler), PREDICTION_TYPES[scheduler.config.prediction_type]
    grids = [(s, t) if t == 1.0 else (s, t, 1.0) for s, t in _times(scheduler, steps)]
    plan = [core.ddim(path, prediction, grid, eta)[0] for grid in grids]
    return _ended(plan)


def _times(scheduler: DDIMScheduler, steps: int) -> list[tuple[float, float]]:
    """Where each step begins and ends."""
    indices = scheduler.config.num_train_timesteps
    if not 1 <= steps <= indices:
        raise InvalidInput(f"steps is {steps}; expected 1 to {indices}, the scheduler's timesteps")
    visited = copy.copy(scheduler)
    visited.set_timesteps(steps)
    ends = ((index, max(index - indices // steps, -1)) for index in visited.timesteps.tolist())
    return [(time_of_index(index, indices), time_of_index(end, indices)) for index, end in ends]


def _ended(rows: list[core.Row]) -> core.Plan:
    """What a mask keeps comes back unchanged, wherever the table ends."""
    return core.Plan([*rows[:-1], rows[-1]._replace(ka=1.0, ks=0.0)])


def _clamped_plan(scheduler: DDIMScheduler, steps: int, eta: float) -> core.Plan:
    """Rows whose prediction is the next state itself, but for its fresh noise; they tell where they end."""
    path, plan = path_of(scheduler), []
    for s, t in _times(scheduler, steps):
        fresh = core.ddim(path, core.IMAGE, (s, t) if t == 1.0 else (s, t, 1.0), eta)[0].n
        plan.append(core.Row(s, t, 0.0, 1.0, 0.0, fresh, path.alpha(t), path.sigma(t)))
    return _ended(plan)


def _refuse_unknown(config: Any) -> None:
    if config.thresholding:
        raise InvalidInput(
            "thresholding is True: how far it clamps depends on the picture; set it to False: "
            "DDIMScheduler.from_config(scheduler.config, thresholding=False)"
        )
    if config.prediction_type not in PREDICTION_TYPES:
        raise InvalidInput(
            f"prediction_type is {config.prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}"
        )


class Teacher(Flow):
    """A UNet2DModel in pyflow's loop, with the rows of its own table. Of its spec's network, shape and classes hold.

    Where the scheduler clips the image that the network tells, so does each step here.
    """

    inpaint_solver = None

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, identity: str, device: str = "cpu") -> None:
        _refuse_unknown(scheduler.config)
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
        if size is None:
            raise InvalidInput("sample_size is None; expected the size of a picture, in the config of the UNet2DModel")
        shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
        network = UNet(shape, 8, (1,), attention=(), heads=1, classes=config.num_class_embeds or 0)
        prediction = PREDICTION_TYPES[scheduler.config.prediction_type]
        told = {"scheduler": json.loads(scheduler.to_json_string())}
        spec = Spec(network, "vp-linear", prediction, "ddim", provenance=told)
        super().__init__(_Runner(unet.eval().to(device), shape, scheduler), spec, "diffusers", identity)
        self.scheduler = scheduler

    def plan(
        self,
        steps: int | None = None,
        solver: str | None = None,
        grid: Any = "uniform",
        resamples: int = 1,
        jump: int = 1,
    ) -> core.Plan:
        """solver: ddim or ddpm. The timesteps are the scheduler's."""
        if solver not in (None, "ddim", "ddpm"):
            raise InvalidInput(f"solver is {solver!r}; expected ddim or ddpm, which need no rates")
        if grid != "uniform":
            raise InvalidInput(f"grid is {grid!r}; expected none: the timesteps are the scheduler's own")
        if resamples != 1:
            raise InvalidInput(f"resamples is {resamples}; expected 1: the rows are the scheduler's own")
        rows = _clamped_plan if self.scheduler.config.clip_sample else plan_of
        return rows(self.scheduler, steps or 1, 1.0 if solver == "ddpm" else 0.0)


class _Runner:
    """The UNet2DModel under the C++ loop. Clamped, it makes the next state of a row, less the row's fresh noise."""

    def __init__(self, unet: UNet2DModel, shape: tuple[int, ...], scheduler: DDIMScheduler) -> None:
        self.unet, self.shape, self.config = unet, shape, scheduler.config
        self.path = path_of(scheduler)

    def run(self, request: Request) -> Samples:
        fresh = {self._index(row.s): row.n for row in request.plan}

        def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
            index = self._index(float(s[0]))
            with torch.inference_mode():
                state = torch.from_numpy(x.copy()).to(self.unet.device)
                labels = torch.from_numpy(label.copy()).to(state.device) if self.unet.config.num_class_embeds else None
                told = self.unet(state, index, class_labels=labels).sample
                if self.config.clip_sample:
                    told = self._next(state, told, float(s[0]), float(t[0]), fresh[index])
                torch.from_numpy(out).copy_(told)

        return native.sample(native.callable_denoiser(predict, self.shape), **vars(request))

    def _index(self, t: float) -> int:
        return index_of_time(t, self.config.num_train_timesteps)

    def _next(self, x: Tensor, p: Tensor, s: float, t: float, fresh: float) -> Tensor:
        """`DDIMScheduler.step`: the noise stays what the network says, whatever becomes of the image."""
        told = core.split(self.path, PREDICTION_TYPES[self.config.prediction_type], s)
        reach = self.config.clip_sample_range
        image = (told.image_x * x + told.image_p * p).clamp(-reach, reach)
        kept = max(self.path.sigma(t) ** 2 - fresh**2, 0.0) ** 0.5
        return self.path.alpha(t) * image + kept * (told.noise_x * x + told.noise_p * p)


def load_teacher(folder: str | Path, clip_sample: bool | None = None, threads: int = 0, device: str = "cpu") -> Teacher:
    """Open a folder of DDIMPipeline or DDPMPipeline (model_index.json, a UNet2DModel in safetensors, a scheduler).

    clip_sample: None for what the folder asks for.
    """
    if not Path(folder).is_dir():
        raise InvalidArtefact(f"{folder} is no folder; expected a pipeline that diffusers saved: download it first")
    if device not in ("cpu", "cuda"):
        raise InvalidInput(f"device is {device!r}; a teacher of diffusers runs on cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"device is 'cuda' and torch {torch.__version__} sees no GPU; expected one, or cpu")
    if threads:
        torch.set_num_threads(threads)
    arguments = safe_arguments(folder, {})
    try:
        pipeline = DDIMPipeline.from_pretrained(folder, **arguments, local_files_only=True)
    except PyflowError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # diffusers' own
        sentence = " ".join(str(error).split())
        raise InvalidArtefact(
            f"{folder} is no pipeline that diffusers opens ({sentence}); download it again"
        ) from error
    if not isinstance(pipeline.unet, UNet2DModel):
        raise InvalidInput(f"{folder} holds a {type(pipeline.unet).__name__}; expected a UNet2DModel")
    told = {} if clip_sample is None else {"clip_sample": clip_sample}
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **told)
    return Teacher(pipeline.unet, scheduler, _identity(Path(folder), pipeline.unet.config, scheduler.config), device)


def _identity(folder: Path, *configs: Mapping[str, Any]) -> str:
    """Of the weights and of all that says how they run, but not of the diffusers that wrote it."""
    weights = [sha256(path.read_bytes()) for path in sorted(folder.rglob("*.safetensors"))]
    said = [{name: value for name, value in config.items() if not name.startswith("_")} for config in configs]
    return sha256(json_bytes({"weights": weights, "configs": said}))

"""A pyflow plan as a scheduler of diffusers: each `step` is one row through `core.fused_step`."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .. import core
from ..errors import InvalidInput
from .convention import time_of, timestep_of, turned

_SAME_TIMESTEP = 1e-4  # float32 keeps timesteps up to 1000 within 3e-5


class PyflowScheduler(SchedulerMixin, ConfigMixin):
    """path, prediction: as the network was trained. solver: of `core.SOLVERS`. eta: of ddim.

    grid: of `core.GRIDS`, or rising times from 0 to 1 in pyflow's direction. heun has two rows, so two timesteps, a
    step. Noise comes from torch's generators, as elsewhere in diffusers: pyflow's own seeds give other pictures.
    """

    __module__ = "pyflow.adapters"  # what a saved model_index.json names: files in here may move
    order = 1
    step_index: int | None
    begin_index: int | None
    _previous: Tensor | None

    @register_to_config
    def __init__(
        self,
        path: str = "linear",
        prediction: str = core.VELOCITY,
        solver: str = "euler",
        grid: str | list[float] = "uniform",
        eta: float = 0.0,
    ) -> None:
        _one_of("path", path, core.PATHS)
        _one_of("prediction", prediction, core.PREDICTIONS)
        _one_of("solver", solver, core.SOLVERS)
        if isinstance(grid, str):
            _one_of("grid", grid, core.GRIDS)
        if eta and solver != "ddim":
            raise InvalidInput(f"eta is {eta} and solver is {solver!r}; expected solver='ddim', or no eta")
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.plan = core.Plan()
        self.timesteps = self.next_timesteps = torch.empty(0, dtype=torch.float64)
        self._restart()

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Make the plan and forget the run before; `next_timesteps` is what a network with two times is told."""
        config = self.config
        grid = _grid(config.grid, num_inference_steps)
        extra = {"eta": config.eta} if config.eta else {}
        self.plan = core.SOLVERS[config.solver](core.PATHS[config.path], config.prediction, grid, **extra)
        self.num_inference_steps = len(grid) - 1
        # float64: the network's times then round to float32 as the plan's own do
        rows = torch.tensor(self.plan, dtype=torch.float64, device=device)
        self.timesteps, self.next_timesteps = timestep_of(rows[:, 0]), timestep_of(rows[:, 1])
        self._restart()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this row instead of the one whose timestep the first `step` names."""
        self.begin_index = begin_index

    def _restart(self) -> None:
        self.step_index = self.begin_index = self._previous = None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next row. variance_noise: taken instead of the generator's where the row has noise."""
        row = self._row(float(timestep))
        noise = variance_noise
        if row.n != 0.0 and noise is None:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        wide = torch.promote_types(sample.dtype, torch.float32)
        p = turned(self.config.prediction, model_output.to(wide))
        moved, self._previous = core.fused_step(row, x=sample.to(wide), cond=p, previous=self._previous, noise=noise)
        moved = moved.to(sample.dtype)
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def _row(self, timestep: float) -> core.Row:
        index = self._start(timestep) if self.step_index is None else self.step_index
        if index >= len(self.plan):
            raise InvalidInput(
                f"step {index + 1} of a plan of {len(self.plan)} rows; expected set_timesteps before each run"
            )
        row = self.plan[index]
        if not _tells(row, timestep):
            raise InvalidInput(
                f"timestep is {timestep:g}; expected {timestep_of(row.s):g} at row {index + 1}: hand over "
                "scheduler.timesteps one after the other, and call set_timesteps before each run"
            )
        if row.h != 0.0 and self._previous is None:
            raise InvalidInput(
                f"row {index + 1} of {self.config.solver} needs the prediction before it; expected a run from the "
                "start: use euler or ddim to begin in the middle"
            )
        self.step_index = index + 1
        return row

    def _start(self, timestep: float) -> int:
        if self.begin_index is not None:
            return self.begin_index
        # heun tells a timestep twice: a run starts at the row that asks for no prediction before it
        return next((k for k, row in enumerate(self.plan) if row.h == 0.0 and _tells(row, timestep)), 0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The state at these timesteps, one a picture."""
        t = time_of(timesteps.to(original_samples.device, torch.float64)).to(original_samples.dtype)
        return core.PATHS[self.config.path].mix(original_samples, noise, t.reshape(-1, *[1] * (noise.ndim - 1)))


def _tells(row: core.Row, timestep: float) -> bool:
    return abs(timestep_of(row.s) - timestep) < _SAME_TIMESTEP


def _grid(grid: str | Sequence[float], steps: Any) -> Sequence[float]:
    if not isinstance(grid, str):
        if steps not in (None, len(grid) - 1):
            raise InvalidInput(f"num_inference_steps is {steps}; expected {len(grid) - 1}, the grid has its own times")
        return grid
    try:
        return core.GRIDS[grid](operator.index(steps))
    except TypeError:
        raise InvalidInput(f"num_inference_steps is {steps!r}; expected an integer") from None


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise InvalidInput(f"{name} is {value!r}; expected one of {', '.join(known)}")

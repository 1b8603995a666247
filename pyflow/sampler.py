"""The public face: a `Flow`, which `sample`s and `inpaint`s.

Everything that a caller can get wrong is checked here, before native code sees it. The parameter names of diffusers
are accepted beside pyflow's own.
"""

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from . import core, resampling
from .engines.runner import Request, Runner
from .errors import InvalidInput, NotFinite
from .noise import PICTURE_LIMIT, SEED_LIMIT
from .pictures import OUTPUT_TYPES, Output, model_values, read_image, read_mask
from .spec import Spec

STEPS_LIMIT, BATCH_LIMIT = 10_000, 65_536
PLANS_KEPT = 16  # of a flow: one of 200 rows takes 90 us to make, as long as 14 rows of an MLP take to run
SEARCHED = "searched"


class Known(NamedTuple):
    """The known picture as the network's values, and the mask: 1 is generated, 0 is kept; one for all or one a picture.

    Each stretch of `jump` steps is passed `resamples` times.
    """

    image: np.ndarray
    mask: np.ndarray
    resamples: int = 1
    jump: int = 1


class Timings(NamedTuple):
    """Seconds of a network's operations, over all calls since the last look."""

    by_op: dict[str, float]


Callback = Callable[["Flow", int, float, dict[str, Any]], object]


class Flow:
    """A loaded generator. Safe to call from several threads; picture i of a seed is the same in every call."""

    inpaint_solver: str | None = core.renoise.__name__  # where `inpaint` is told none; None is the spec's own

    def __init__(self, runner: Runner, spec: Spec, backend: str, identity: str) -> None:
        self.runner = runner
        self.spec = spec
        self.backend = backend
        self.identity = identity  # tells the weights and the graph that run
        self._planned = lru_cache(PLANS_KEPT)(partial(_planned, spec))

    def __repr__(self) -> str:
        network = self.spec.network
        return f"Flow({self.backend}, shape={network.shape}, classes={network.classes}, path={self.spec.path!r})"

    @property
    def timings(self) -> Timings:
        """Where the network's time went since this was last read; of a flow loaded with `profile=True`."""
        take = getattr(self.runner, "take_profile", None)
        if take is None:
            raise InvalidInput("this flow keeps no profile; load a native engine with profile=True")
        return Timings(take())

    def sample(
        self,
        batch: int = 1,
        *,
        steps: int | None = None,
        label: int | Sequence[int] | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        first: int = 0,
        solver: str | None = None,
        grid: str | Sequence[float] = "uniform",
        callback: Callable[[int], object] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Any = None,
        output_type: str | None = None,
        callback_on_step_end: Callback | None = None,
        known: Known | None = None,
    ) -> Any:
        """Make pictures `first`, `first`+1, ... of this seed, `batch` of them.

        steps: network calls (twice as many for heun). label: one class for all, one a picture, or None for no label.
        guidance: 1 is none; above 1 follows the label more closely. solver: of `core.SOLVERS`. grid: of `core.GRIDS`,
        "searched" for what `pyflow eval --search-grid` found, or the times themselves, which then tell the steps.
        callback(row) is called after every row, by a whole sampler after its last. known: what `inpaint` keeps.
        """
        steps = _either("steps", steps, "num_inference_steps", num_inference_steps, None)
        guidance = _either("guidance", guidance, "guidance_scale", guidance_scale, 1.0)
        seed = _either("seed", seed, "generator", _seed_of(generator), 0)
        batch = count("batch", batch, 1, BATCH_LIMIT)
        self.check_guidance(guidance, label)
        self._check_output_type(output_type)
        plan = self.plan(steps, solver, grid, *((known.resamples, known.jump) if known else ()))
        request = Request(
            plan,
            batch,
            seed=count("seed", seed, 0, SEED_LIMIT - 1),
            first=count("first", first, 0, PICTURE_LIMIT - batch),
            guidance=guidance,
            label=self._labels(label, batch),
            null_label=self.spec.network.classes,
            mask=known.mask if known else None,
            image=known.image if known else None,
            on_row=self._on_row(plan, callback, callback_on_step_end),
        )
        samples = self.runner.run(request)
        finite = np.isfinite(samples.states)
        if np.count_nonzero(finite) != finite.size:
            broken = int(finite.reshape(batch, -1).all(1).argmin())
            raise NotFinite(
                f"picture {first + broken} of seed {seed} holds a NaN or an infinity after {len(plan)} "
                f"rows at guidance {guidance:g}: the weights are broken or the guidance is too high"
            )
        output = Output(samples.states, samples.row_seconds, samples.denoiser_seconds)
        return output if output_type is None else output.of_type(output_type)

    def warm(
        self,
        batch: int = 1,
        steps: int | None = None,
        *,
        guidance: float = 1.0,
        solver: str | None = None,
        grid: str | Sequence[float] = "uniform",
    ) -> None:
        """Have done what the first call of such a sample would have to do: compile, capture a graph, allocate."""
        batch, classes = count("batch", batch, 1, BATCH_LIMIT), self.spec.network.classes
        label = 0 if classes else None
        self.check_guidance(guidance, label)
        request = Request(
            self.plan(steps, solver, grid),
            batch,
            guidance=guidance,
            label=self._labels(label, batch),
            null_label=classes,
        )
        getattr(self.runner, "warm", self.runner.run)(request)

    def inpaint(
        self,
        image: Any,
        mask_image: Any,
        *,
        batch: int = 1,
        resamples: int = 1,
        jump: int = 1,
        **arguments: Any,
    ) -> Any:
        """Repaint where `mask_image` is white; the pixels where it is black come back unchanged.

        image: a PIL image or uint8 array (height, width[, channels]). mask_image: the same size, black and white only,
        as a PIL image, a uint8 array of 0 and 255, or a boolean array (True repaints). resamples: how often each
        stretch of `jump` steps is passed, so that what is new fits what is kept (RePaint); that many times the calls.
        The rest as in `sample`, with 4 steps where none are named. Where no solver is named it is `renoise`: each step
        goes to the image and noises it anew, beside the kept pixels. DESIGN.md tells how much that gains.
        """
        shape = self.picture_shape
        if arguments.get("solver") is None:
            arguments["solver"] = self.inpaint_solver
        given = arguments.get("num_inference_steps"), arguments.get("steps")
        if given == (None, None) and isinstance(arguments.get("grid", "uniform"), str):
            arguments["steps"] = 4
        known = Known(model_values(read_image(image, shape)), read_mask(mask_image, shape), resamples, jump)
        return self.sample(batch, **arguments, known=known)

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of what is repainted."""
        shape = self.spec.network.shape
        if len(shape) != 3:
            raise InvalidInput(f"this network makes points of shape {shape}; inpainting needs one that makes pictures")
        return shape

    def plan(
        self,
        steps: int | None = None,
        solver: str | None = None,
        grid: str | Sequence[float] = "uniform",
        resamples: int = 1,
        jump: int = 1,
    ) -> core.Plan:
        """The rows that `sample` would run, or `inpaint` with these resampling jumps."""
        if steps is not None:
            steps = count("steps", steps, 1, STEPS_LIMIT)
        name = self.spec.solver if solver is None else solver
        if name not in core.SOLVERS:
            raise InvalidInput(f"solver is {name!r}; expected one of {', '.join(core.SOLVERS)}")
        times = self._named_grid(grid, steps or 1) if isinstance(grid, str) else _times(grid, steps)
        jump, resamples = count("jump", jump, 1, STEPS_LIMIT), count("resamples", resamples, 1, STEPS_LIMIT)
        return self._planned(name, core.SOLVERS[name], tuple(times), resamples, jump)

    def _named_grid(self, grid: str, steps: int) -> Sequence[float]:
        if grid in core.GRIDS:
            return core.GRIDS[grid](steps)
        if grid != SEARCHED:
            known = ", ".join([*core.GRIDS, SEARCHED])
            raise InvalidInput(f"grid is {grid!r}; expected one of {known}, or rising times from 0 to 1")
        grids = self.spec.grids
        if str(steps) not in grids:
            raise InvalidInput(
                f"grid is {SEARCHED!r} for {steps} steps; expected steps out of those searched, "
                f"{', '.join(grids) or 'none yet'}: `pyflow eval SOURCE --search-grid --steps {steps}` searches"
            )
        return grids[str(steps)]

    def _labels(self, label: int | Sequence[int] | None, batch: int) -> np.ndarray | None:
        classes = self.spec.network.classes
        if not classes:
            if label is not None:
                raise InvalidInput(f"label is {label!r}; this network knows no classes, expected None")
            return None
        if label is None:
            if not self.spec.null_label:
                raise InvalidInput(
                    f"label is None; this network was only trained with labels, expected 0 to {classes - 1}"
                )
            return np.full(batch, classes, np.int64)
        if type(label) is int and 0 <= label < classes:
            return np.full(batch, label, np.int64)
        try:
            labels = np.asarray(label)
        except ValueError:  # a list of lists of several lengths
            labels = np.empty(0)
        if labels.dtype.kind not in "iu" or labels.shape not in ((), (batch,)):
            raise InvalidInput(f"label is {label!r}; expected one integer, or {batch} of them, one a picture")
        if labels.min() < 0 or labels.max() >= classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise InvalidInput(f"label is {wrong}; expected 0 to {classes - 1}, this network has {classes} classes")
        return np.broadcast_to(labels, (batch,)).astype(np.int64)

    def check_guidance(self, guidance: float, label: Any) -> None:
        if not isinstance(guidance, float | Real) or not 0 <= guidance <= 100:
            raise InvalidInput(f"guidance is {guidance!r}; expected a number from 0 to 100, 1 for none")
        if guidance == 1.0:
            return
        if not self.spec.null_label:
            raise InvalidInput(
                f"guidance is {guidance}; expected 1: this network never learnt to predict without a label "
                "(a student has its teacher's guidance in its weights already)"
            )
        if label is None:
            raise InvalidInput(f"guidance is {guidance} and label is None; guidance needs a label to follow")

    def _check_output_type(self, output_type: str | None) -> None:
        if output_type is None:
            return
        if output_type not in OUTPUT_TYPES:
            raise InvalidInput(f"output_type is {output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}")
        if len(self.spec.network.shape) != 3:
            raise InvalidInput(f"output_type is {output_type!r}; this network makes points, expected None")

    def _on_row(
        self, plan: core.Plan, callback: Callable[[int], object] | None, on_step_end: Callback | None
    ) -> Callable[[int], object] | None:
        if callback is not None and on_step_end is not None:
            raise InvalidInput("both callback and callback_on_step_end are given; expected one")
        for name, given in (("callback", callback), ("callback_on_step_end", on_step_end)):
            if given is not None and not callable(given):
                raise InvalidInput(f"{name} is a {type(given).__name__}; expected something to call")
        if on_step_end is None:
            return callback
        return lambda row: on_step_end(self, row, plan[row].s, {})


def count(name: str, value: Any, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidInput(f"{name} is {value!r}; expected an integer") from None
    if not low <= number <= high:
        raise InvalidInput(f"{name} is {number}; expected {low} to {high}")
    return number


def _planned(
    spec: Spec,
    solver: str,
    rows_of: Callable[..., Sequence[core.Row]],
    times: tuple[float, ...],
    resamples: int,
    jump: int,
) -> core.Plan:
    """`rows_of` is what the name stands for now: a solver that takes a name over has plans of its own."""
    plan = core.Plan(rows_of(spec.math_path, spec.prediction, times))
    if resamples == 1:
        return plan
    if solver not in resampling.SOLVERS:
        raise InvalidInput(
            f"resamples is {resamples} and solver {solver!r}, whose rows build on the row before; "
            f"a resampling jump expected one of {', '.join(resampling.SOLVERS)}"
        )
    count("steps times resamples", len(plan) * resamples, 1, STEPS_LIMIT)
    return resampling.resampled(spec.math_path, plan, times, resamples, jump)


def _times(grid: Sequence[float], steps: int | None) -> list[float]:
    """A grid's own times, which tell the steps."""
    try:
        times = [float(time) for time in grid]
    except (TypeError, ValueError):
        raise InvalidInput(f"grid is {grid!r}; expected {', '.join(core.GRIDS)}, or rising times from 0 to 1") from None
    if len(times) > STEPS_LIMIT + 1 or (steps is not None and steps != len(times) - 1):
        expected = f"{STEPS_LIMIT} at most" if steps is None else f"steps={steps}, or none"
        raise InvalidInput(f"grid has {len(times)} times, so {len(times) - 1} steps; expected {expected}")
    return times


def _either(name: str, value: Any, alias: str, other: Any, default: Any) -> Any:
    if other is None:
        return default if value is None else value
    if value is not None:
        raise InvalidInput(f"both {name} and {alias} are given; expected one, they mean the same")
    return other


def _seed_of(generator: Any) -> int | None:
    """The seed of a torch generator; pyflow's noise is its own, so the same seed gives other pictures than torch's."""
    if generator is None or isinstance(generator, int):
        return generator
    if not hasattr(generator, "initial_seed"):
        raise InvalidInput(f"generator is a {type(generator).__name__}; expected a torch.Generator or a seed")
    return generator.initial_seed() % SEED_LIMIT

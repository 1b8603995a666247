"""The certificate of an engine: sampled beside the float32 reference, on fresh noise, over all that it will be asked.

The reference is `core.sample` on the torch model. Its first pictures are kept in the engine as its proof, so that
`pyflow verify` can repeat the comparison where there is neither torch nor the checkpoint.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import core, native
from .engines.manifest import SAMPLER, Bound, Certificate, Manifest, PlanRecord
from .engines.runner import Request, Runner, SamplerRunner, told_of
from .errors import InvalidArtefact, InvalidInput, PyflowError
from .noise import normal
from .spec import Spec

if TYPE_CHECKING:
    from torch import nn

BATCHES, STEPS, GUIDANCES = (1, 3, 16), (1, 2, 4), (1.0, 4.0)
LONG_STEPS, LONG_BATCH = 50, 3
OTHER_STEPS, OTHER_GUIDANCE = 3, 2.5
PROOF_PICTURES = 3
OFF_BY_ONE_BOUND = 1e-3
NO_DIFFERENCE_DB = 200.0
PICTURE_MARGIN = 6.0  # dB that a single picture may lie below the bound of its batch: four times the squared error

Progress = Callable[[Sequence["Case"]], Any]


class ParityError(PyflowError, ArithmeticError):
    """The engine differs from the reference by more than its bound."""


@dataclass(frozen=True)
class Case:
    """One run to compare. Picture i has label (i + shift), counted over the classes and, unguided, the null label."""

    plan: core.Plan
    batch: int
    guidance: float
    masked: bool
    shift: int = 0

    @property
    def steps(self) -> int:
        return len(self.plan)

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.steps} rows, guidance {self.guidance:g}{', masked' * self.masked}"


def cases(spec: Spec, plans: Sequence[PlanRecord] = ()) -> list[Case]:
    """All runs that an engine is proved at; for whole samplers, given as their plans, those plans alone."""
    if plans:
        made = [Case(record.plan(spec), batch, record.guidance, False) for record in plans for batch in BATCHES]
    else:
        made = [*_of_the_own_solver(spec), *_of_other_solvers(spec)]
    beyond = range(max(BATCHES), spec.network.classes + 1, max(BATCHES))  # so that every label is seen
    return made + [replace(made[0], batch=max(BATCHES), shift=shift) for shift in beyond]


def _of_the_own_solver(spec: Spec) -> Iterator[Case]:
    sizes = [(steps, batch) for steps in STEPS for batch in BATCHES] + [(LONG_STEPS, LONG_BATCH)]
    for steps, batch in sizes:
        for guidance in GUIDANCES if spec.null_label else (1.0,):
            for masked in (False, True):
                yield Case(_plan(spec, spec.solver, steps), batch, guidance, masked)


def _of_other_solvers(spec: Spec) -> Iterator[Case]:
    """Rows that the own solver may not have (a other than 1, h and n other than 0, s equal to t), another guidance."""
    for solver in core.SOLVERS:
        try:
            plan = _plan(spec, solver, OTHER_STEPS)
        except InvalidInput:  # not every solver takes every prediction and path
            continue
        for guidance in (1.0, OTHER_GUIDANCE) if spec.null_label else (1.0,):
            yield Case(plan, LONG_BATCH, guidance, masked=spec.network.sees_mask)


def _plan(spec: Spec, solver: str, steps: int) -> core.Plan:
    return spec.plan(core.uniform_grid(steps), solver)


def request_of(case: Case, spec: Spec, seed: int) -> Request:
    classes = spec.network.classes
    count = classes + (spec.null_label and case.guidance == 1.0)
    label = (np.arange(case.batch) + case.shift) % count if count else None
    mask, image = _known(spec, seed, case.batch) if case.masked else (None, None)
    return Request(case.plan, case.batch, seed, 0, case.guidance, label, classes, mask, image)


def _known(spec: Spec, seed: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask and something to keep; of each picture its own where the network is told them."""
    shape = spec.network.shape
    if not spec.network.sees_mask:
        return _boxes(shape, np.random.default_rng(seed))
    each = [_boxes(shape, np.random.default_rng([seed, picture])) for picture in range(batch)]
    return np.stack([mask for mask, _ in each]), np.stack([image for _, image in each])


def _boxes(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random boxes to generate, as a mask, and a random picture."""
    mask = np.zeros(shape[-2:], np.float32)
    for _ in range(2):
        corners = [sorted(rng.integers(0, side + 1, 2)) for side in mask.shape]
        mask[tuple(slice(low, high + 1) for low, high in corners)] = 1.0
    return np.broadcast_to(mask, shape), rng.uniform(-1, 1, shape).astype(np.float32)


class Expected:
    """The reference's final states, computed once for each plan, guidance and mask, at the largest batch that asks."""

    def __init__(self, spec: Spec, made: Sequence[Case], seed: int) -> None:
        self.spec, self.seed = spec, seed
        self.largest: dict[tuple[Any, ...], Case] = {}
        for case in made:
            known = self.largest.setdefault(_key(case), case)
            if case.batch > known.batch:
                self.largest[_key(case)] = case
        self.states: dict[tuple[Any, ...], np.ndarray] = {}

    def of(self, case: Case) -> np.ndarray:
        return self.states[_key(case)][: case.batch]

    @property
    def extent(self) -> float:
        """From the least to the greatest value: what points are measured against."""
        return float(max(states.max() for states in self.states.values()) - min(s.min() for s in self.states.values()))

    def compute(self, model: "nn.Module", progress: Progress = iter) -> "Expected":
        for case in progress(list(self.largest.values())):
            states = reference(model, self.spec, request_of(case, self.spec, self.seed))
            if not np.isfinite(states).all():
                raise ParityError(f"{case}, seed {self.seed}: the checkpoint itself makes a NaN or an infinity")
            self.states[_key(case)] = states
        return self

    def _kept(self) -> dict[tuple[Any, ...], int]:
        """How many pictures of each go into the proof: of the first case all, and so of those with further labels."""
        first = _key(next(iter(self.largest.values())))[:-1]
        return {
            key: case.batch if key[:-1] == first else min(case.batch, PROOF_PICTURES)
            for key, case in self.largest.items()
        }

    def proof(self) -> bytes:
        """The pictures that are kept, one case after the other, as an .npy file."""
        file = io.BytesIO()
        kept = np.concatenate([self.states[key][:count] for key, count in self._kept().items()])
        np.save(file, kept, allow_pickle=False)
        return file.getvalue()

    def read_proof(self, content: bytes) -> "Expected":
        counts = self._kept()
        expected = (sum(counts.values()), *self.spec.network.shape)
        file = io.BytesIO(content)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, EOFError) as error:
            raise InvalidArtefact(f"the engine's proof is no .npy file ({error}); export it again") from error
        pictures = np.frombuffer(content, np.float32, offset=file.tell()) if dtype == np.float32 else np.empty(0)
        if shape != expected or pictures.size != math.prod(expected) or not np.isfinite(pictures).all():
            raise InvalidArtefact(
                f"the engine's proof is {dtype} {shape}; expected finite float32 {expected}: export it again"
            )
        ends = np.cumsum(list(counts.values()))[:-1]
        self.states = dict(zip(counts, np.split(pictures.reshape(expected), ends)))
        return self


def _key(case: Case) -> tuple[Any, ...]:
    return tuple(case.plan), case.guidance, case.masked, case.shift


def reference(model: "nn.Module", spec: Spec, request: Request) -> np.ndarray:
    """The final states of `core.sample` on the torch model, with the NumPy noise."""
    import torch

    from .engines.eager import denoise_function

    batch, shape = request.batch, spec.network.shape

    def noise(row: int) -> torch.Tensor:
        drawn = normal(request.seed, request.first, batch, int(np.prod(shape)), row)
        return torch.from_numpy(drawn).reshape(batch, *shape)

    label = torch.zeros(batch, dtype=torch.int64) if request.label is None else torch.from_numpy(request.label)
    known = {
        name: None if value is None else torch.from_numpy(value.copy())
        for name, value in (("mask", request.mask), ("image", request.image))
    }
    told = torch.from_numpy(told_of(request, shape)) if spec.network.sees_mask else None
    denoise = denoise_function(model, spec, label, told)
    return core.sample(denoise, request.plan, noise, guidance=request.guidance, **known).numpy()


def measure(
    runner: Runner, spec: Spec, made: Sequence[Case], expected: Expected, bound: Bound, progress: Progress = iter
) -> Certificate:
    """Run every case; ParityError, which names it, at the first that is beyond the bound."""
    worst, lowest, differing, values = 0.0, NO_DIFFERENCE_DB, 0, 0
    where = f"seed {expected.seed}"
    for case in progress(made):
        truth = expected.of(case)
        request = request_of(case, spec, expected.seed)
        states = runner.run(request).states
        if states.shape != (case.batch, *spec.network.shape):
            raise ParityError(f"{case}, {where}: the engine made {states.shape}, one state a picture was asked for")
        came = states[: len(truth)]
        error = float(np.abs(came - truth).max() / np.abs(truth).max()) / max(1.0, case.guidance)
        peak = 2.0 if truth.ndim == 4 else expected.extent
        likeness = psnr(came, truth, peak)
        worst_picture = min(psnr(came[i : i + 1], truth[i : i + 1], peak) for i in range(len(truth)))
        differences = _pixel_differences(came, truth)
        _hold(f"{case}, {where}", bound, error, min(likeness, worst_picture + PICTURE_MARGIN), differences)
        if not np.isfinite(states).all():
            raise ParityError(f"{case}, {where}: the engine made a NaN or an infinity")
        worst, lowest = max(worst, error), min(lowest, likeness)
        differing, values = differing + int((differences > 0).sum()), values + differences.size
        _hold_images(f"{case}, {where}", runner, request, states)
    # Over all cases: in one small picture a single value at a rounding border is more than the bound.
    if bound.relative is not None and differing > OFF_BY_ONE_BOUND * values:
        raise ParityError(
            f"{where}: {differing / values:.2%} of uint8 values are off by one; allowed: {OFF_BY_ONE_BOUND:.1%}"
        )
    return Certificate(
        bound=bound,
        worst=worst,
        psnr=lowest,
        off_by_one=differing / values,
        batches=tuple(sorted({case.batch for case in made})),
        steps=tuple(sorted({case.steps for case in made})),
        guidance=tuple(sorted({case.guidance for case in made})),
        masks=any(case.masked for case in made),
        cases=len(made),
        seed=expected.seed,
    )


def _hold(where: str, bound: Bound, error: float, likeness: float, differences: np.ndarray) -> None:
    """Refuse what is beyond the bound; a NaN is beyond any."""
    if bound.relative is not None and (not error <= bound.relative or differences.max() > 1):
        raise ParityError(
            f"{where}: relative error {error:.2e}, uint8 values off by up to {differences.max()}; "
            f"allowed: {bound.relative:.0e}, 1"
        )
    if bound.psnr is not None and not likeness >= bound.psnr:
        raise ParityError(f"{where}: PSNR {likeness:.1f} dB against float32; allowed: {bound.psnr:g} dB or more")


def _hold_images(where: str, runner: Runner, request: Request, states: np.ndarray) -> None:
    """A whole sampler's graph makes the uint8 pictures too; they are what its states say, but for a rounding."""
    images = runner.images(request) if isinstance(runner, SamplerRunner) else None
    if images is None:
        return
    expected = native.to_uint8(states)
    if images.shape != expected.shape or np.abs(images.astype(int) - expected).max() > 1:
        raise ParityError(f"{where}: the graph's images are {images.dtype} {images.shape} and not what its states say")


def psnr(came: np.ndarray, truth: np.ndarray, peak: float = 2.0) -> float:
    """In dB; pictures are clamped to -1..1, as they are seen. A NaN for what is not finite."""
    if not np.isfinite(came).all():
        return float("nan")
    if truth.ndim == 4:
        came, truth = came.clip(-1, 1), truth.clip(-1, 1)
    error = float(np.square(came.astype(np.float64) - truth).mean())
    return min(NO_DIFFERENCE_DB, 10 * math.log10(peak**2 / error)) if error else NO_DIFFERENCE_DB


def _pixel_differences(came: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How far the uint8 pictures lie apart, value by value; one 0 for points, and for what has no pictures, NaN."""
    if came.ndim != 4 or not np.isfinite(came).all():
        return np.zeros(1, int)
    return np.abs(native.to_uint8(came).astype(int) - native.to_uint8(expected).astype(int))


def prove(
    runner: Runner,
    model: "nn.Module",
    spec: Spec,
    bound: Bound,
    plans: Sequence[PlanRecord] = (),
    progress: Progress = iter,
) -> tuple[Certificate, bytes]:
    """The certificate on fresh noise, and the proof to keep in the engine."""
    made = cases(spec, plans)
    expected = Expected(spec, made, fresh_seed()).compute(model, progress)
    return measure(runner, spec, made, expected, bound, progress), expected.proof()


def repeat(
    runner: Runner, manifest: Manifest, proof: bytes, model: "nn.Module | None" = None, progress: Progress = iter
) -> Certificate:
    """The certificate again, here and now: on fresh noise where the model is given, else against the engine's proof."""
    made = cases(manifest.spec, manifest.plans if manifest.what == SAMPLER else ())
    if model is not None:
        expected = Expected(manifest.spec, made, fresh_seed()).compute(model, progress)
    else:
        expected = Expected(manifest.spec, made, manifest.proved.seed).read_proof(proof)
    again = measure(runner, manifest.spec, made, expected, manifest.proved.bound, progress)
    return replace(again, distances=manifest.proved.distances)


def fresh_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])

"""The one protocol between the sampler and whoever runs a network: a request goes in, states come out.

Three kinds of engine answer it. A denoiser is one network call, and the C++ loop runs the plan around it. A step is one
row of the plan in one graph. A sampler is a whole plan in one graph.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pyflow import masks, native
from pyflow.core import Plan
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.native import Samples
from pyflow.spec import extra_of

from .manifest import DENOISER, STEP, Manifest

Graph = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]
"""A loaded graph: named inputs to its outputs, in order."""
GUIDED = "step-guided"
STEP_INPUTS = ("row", "x", "previous", "noise", "mask", "image", "noise0")


@dataclass(frozen=True)
class Request:
    """What to sample; `pyflow.sampler` has checked every field."""

    plan: Plan
    batch: int
    seed: int = 0
    first: int = 0
    guidance: float = 1.0
    label: np.ndarray | None = None
    null_label: int = 0
    mask: np.ndarray | None = None
    image: np.ndarray | None = None
    on_row: Callable[[int], object] | None = None


IMAGES = "images"  # what a whole sampler makes of its states, for those who run it without pyflow


@dataclass(frozen=True)
class Signature:
    """The names that a graph's runner gives it and reads of it, the outputs in their order."""

    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def refuse_others(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        made = tuple(name for name in outputs if name != IMAGES)
        if set(inputs) != set(self.inputs) or made != self.outputs:
            raise InvalidArtefact(
                f"the graph {self.graph} takes {', '.join(inputs)} and makes {', '.join(outputs)}; expected "
                f"{', '.join(self.inputs)} and {', '.join(self.outputs)}: export it again"
            )


def signature(manifest: Manifest, graph: str) -> Signature | None:
    """What the graph of a step or of a whole sampler must be; a denoiser's inputs are its manifest's."""
    label = ("label",) if "label" in manifest.inputs else ()
    if manifest.what == DENOISER:
        return None
    if manifest.what == STEP:
        guidance = ("guidance",) if graph == GUIDED else ()
        return Signature(graph, (*STEP_INPUTS, *guidance, *label), ("next", "guided"))
    return Signature(graph, ("noise", *label), ("states",))


class Runner(Protocol):
    def run(self, request: Request) -> Samples: ...


class LoopRunner:
    """A denoiser under the C++ loop."""

    def __init__(self, denoiser: native.Denoiser) -> None:
        self.denoiser = denoiser

    def run(self, request: Request) -> Samples:
        told = told_of(request, self.denoiser.shape) if self.denoiser.extra else None
        return native.sample(self.denoiser, **vars(request), told=told)


def told_of(request: Request, shape: Sequence[int]) -> np.ndarray:
    """What a network that sees the mask is told of each picture; without a mask, that all of it is generated."""
    full = (request.batch, *shape)
    if request.mask is None:
        return masks.told(np.zeros(full, np.float32), np.ones((request.batch, 1, *shape[1:]), np.float32))
    if request.image is None:
        raise InvalidInput("mask is given and image is None; this network is told the kept picture, expected one")
    image, mask = np.broadcast_to(request.image, full), np.broadcast_to(request.mask, full)
    if (mask != mask[:, :1]).any():
        raise InvalidInput("mask differs between the channels of a pixel; this network is told one for all of them")
    return masks.told(image, mask[:, :1])


def refuse_misfit(denoiser: native.Denoiser, manifest: Manifest) -> None:
    """A denoiser that tells what it is, beside what its manifest says."""
    network = manifest.spec.network
    said = (set(manifest.inputs), network.shape, extra_of(network))
    if (set(denoiser.inputs), denoiser.shape, denoiser.extra) != said:
        raise InvalidArtefact(
            f"the network takes {denoiser.inputs}, makes {denoiser.shape} and is told {denoiser.extra} channels more; "
            f"its manifest says {manifest.inputs}, {network.shape} and {extra_of(network)}: export it again"
        )


def denoiser_of(graph: Graph, inputs: Sequence[str], shape: Sequence[int], extra: int = 0) -> native.Denoiser:
    """A denoiser's graph as a denoiser of the C++ loop, called through Python."""

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        given = {"x": x, "s": s, "t": t, "label": label}
        prediction = graph({name: given[name] for name in inputs})[0]
        if prediction.shape != out.shape or prediction.dtype != np.float32:
            raise InvalidInput(
                f"the graph made {prediction.dtype} {prediction.shape}; expected float32 {out.shape}: export it again"
            )
        out[...] = prediction

    return native.callable_denoiser(predict, shape, extra)


class StepRunner:
    """A loop over a graph that holds the network, guidance, update and mask of one row, which it takes as an input.

    `plain` calls the network once a row, `guided` twice; a network that knows no null label has no guided step.
    """

    def __init__(self, plain: Graph, guided: Graph | None, shape: Sequence[int]) -> None:
        self.plain, self.guided, self.shape = plain, guided, tuple(shape)

    def run(self, request: Request) -> Samples:
        full = (request.batch, *self.shape)
        graph, guidance = self._graph(request.guidance)
        noise0 = _noise(request, self.shape, 0)
        mask = np.ones(full, np.float32) if request.mask is None else _spread(request.mask, full)
        image = np.zeros(full, np.float32) if request.image is None else _spread(request.image, full)
        nothing = np.zeros(full, np.float32)
        fixed = {"mask": mask, "image": image, "noise0": noise0, **guidance, **_label(request)}
        x, previous, clock = noise0, nothing, _Clock()
        for k, row in enumerate(request.plan):
            clock.start()
            noise = _noise(request, self.shape, k + 1) if row.n != 0.0 else nothing
            changing = {"row": np.array(row, np.float32), "x": x, "previous": previous, "noise": noise}
            x, previous = clock.called(graph, {**changing, **fixed})
            clock.end()
            if request.on_row:
                request.on_row(k)
        return clock.samples(x)

    def _graph(self, guidance: float) -> tuple[Graph, dict[str, np.ndarray]]:
        if guidance == 1.0:
            return self.plain, {}
        if self.guided is None:
            raise InvalidInput(f"guidance is {guidance}; this engine holds no guided step, expected 1")
        return self.guided, {"guidance": np.array([guidance], np.float32)}


@dataclass(frozen=True)
class WholePlan:
    """A plan that a sampler's graph holds."""

    plan: Plan
    guidance: float
    graph: Graph


class SamplerRunner:
    """Graphs that hold whole plans: noise and labels in, states out, and of pictures uint8 images after them."""

    def __init__(self, plans: Sequence[WholePlan], shape: Sequence[int]) -> None:
        self.plans, self.shape = tuple(plans), tuple(shape)

    def run(self, request: Request) -> Samples:
        clock = _Clock()
        clock.start()
        states = clock.called(self._graph(request), self._feed(request))[0]
        clock.end()
        if request.on_row:
            request.on_row(len(request.plan) - 1)
        return clock.samples(states)

    def images(self, request: Request) -> np.ndarray | None:
        """What those see who run the graph without pyflow; None where the backend makes states alone."""
        outputs = self._graph(request)(self._feed(request))
        return outputs[1] if len(outputs) > 1 else None

    def _graph(self, request: Request) -> Graph:
        if request.mask is not None:
            raise InvalidInput(
                "this engine holds whole samplers, which know no mask; expected a sample: export a denoiser or a step"
            )
        wanted = [tuple(row) for row in request.plan]
        for whole in self.plans:
            if [tuple(row) for row in whole.plan] == wanted and whole.guidance == request.guidance:
                return whole.graph
        held = ", ".join(f"{len(whole.plan)} rows at guidance {whole.guidance:g}" for whole in self.plans)
        raise InvalidInput(
            f"asked for {len(wanted)} rows at guidance {request.guidance:g}; this engine holds whole samplers for "
            f"{held}, each with the solver and grid that it was exported with: ask for one, or export a denoiser"
        )

    def _feed(self, request: Request) -> dict[str, np.ndarray]:
        return {"noise": _noise(request, self.shape, 0), **_label(request)}


def runner_of(manifest: Manifest, graph: Callable[[str], Graph]) -> Runner:
    """The runner of an engine's graphs; `graph(name)` loads one."""
    shape = manifest.spec.network.shape
    if manifest.what == DENOISER:
        return LoopRunner(denoiser_of(graph("denoiser"), manifest.inputs, shape, extra_of(manifest.spec.network)))
    if manifest.what == STEP:
        return StepRunner(graph("step"), graph(GUIDED) if manifest.spec.null_label else None, shape)
    plans = [WholePlan(record.plan(manifest.spec), record.guidance, graph(record.graph)) for record in manifest.plans]
    return SamplerRunner(plans, shape)


class _Clock:
    """Seconds a row, and those of its graph."""

    def __init__(self) -> None:
        self.rows: list[float] = []
        self.calls: list[float] = []

    def start(self) -> None:
        self.began = time.perf_counter()

    def called(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> Sequence[Any]:
        before = time.perf_counter()
        outputs = graph(feed)
        self.calls.append(time.perf_counter() - before)
        return outputs

    def end(self) -> None:
        self.rows.append(time.perf_counter() - self.began)

    def samples(self, states: np.ndarray) -> Samples:
        return Samples(np.ascontiguousarray(states, np.float32), np.array(self.rows), np.array(self.calls))


def _noise(request: Request, shape: tuple[int, ...], row: int) -> np.ndarray:
    drawn = native.normal(request.seed, request.first, request.batch, int(np.prod(shape)), row)
    return drawn.reshape(request.batch, *shape)


def _label(request: Request) -> dict[str, np.ndarray]:
    return {} if request.label is None else {"label": request.label}


def _spread(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(value, shape))

"""How long each layer of a native network takes in each of its ways: the whole network runs with every way in turn."""

import mmap
from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn
from tqdm import tqdm

from pyflow import core, native
from pyflow.certificate import Case, request_of
from pyflow.engines.graph import Graph, Kind
from pyflow.engines.runner import LoopRunner
from pyflow.spec import Spec
from pyflow.timing import interleave

from .lowering import lower
from .packing import Range
from .ways import ATTENTION, WAYS, Layer, Way, preferring

BATCHES = (1, 16)  # one way serves both: were it chosen by the batch, a picture would change with its batch
ROUNDS, SECONDS = 15, 10.0  # at most, but for three rounds
ALIKE = 1.03  # times that differ by less are taken for equal

Times = Mapping[str, Mapping[Way, tuple[float, ...]]]
"""Of each layer, in each of its ways, the seconds at each batch."""


def measure(model: nn.Module, spec: Spec, precision: str, ranges: Mapping[str, Range]) -> Times:
    """The least of some rounds, of each layer with what prepares its input; on one thread.

    Another process on the machine adds to a time and never takes from it: the least is what the layer itself needs.
    """
    variants = [Variant(model, spec, precision, way, ranges) for way in WAYS[precision]]
    with tqdm(desc="tuning", unit="call", leave=False) as bar:

        def run(variant: Variant, batch: int) -> None:
            variant.run(batch)
            bar.update()

        calls = {(n, batch): partial(run, variant, batch) for n, variant in enumerate(variants) for batch in BATCHES}
        interleave(calls, rounds=ROUNDS, warmup=1, budget=SECONDS)
    return {layer: _times(layer, variants) for layer in variants[0].taken}


def fastest(times: Times, without: Sequence[Way] = ()) -> dict[str, Way]:
    """For each layer the way with the least sum of its times over the best ones; of ways alike, the most precise.

    No layer takes a way of `without` that has another.
    """
    return {
        layer: _fastest({way: known[way] for way in known if way not in without} or known)
        for layer, known in times.items()
    }


class Variant:
    """The network with one way wherever a layer may take it."""

    def __init__(self, model: nn.Module, spec: Spec, precision: str, way: Way, ranges: Mapping[str, Range]) -> None:
        choose = preferring(way, precision, spec.network)
        self.spec, self.taken = spec, dict[str, Way]()

        def record(layer: Layer) -> Way:
            self.taken[layer.name] = choose(layer)
            return self.taken[layer.name]

        graph = lower(model, spec, record, ranges, ATTENTION[precision])
        self.operations = _operations(graph)
        self.denoiser = native.network_denoiser(_mapped(graph.to_bytes()), threads=1, profile=True)
        self.seconds: dict[tuple[str, int], list[float]] = {}  # of a layer at a batch, call by call

    def run(self, batch: int) -> None:
        case = Case(self.spec.plan(core.uniform_grid(1)), batch, guidance=1.0, masked=False)
        LoopRunner(self.denoiser).run(request_of(case, self.spec, seed=0))
        spent = [seconds for *_, seconds, _ in self.denoiser.take_profile()]
        for layer, operations in self.operations.items():
            self.seconds.setdefault((layer, batch), []).append(sum(spent[index] for index in operations))


def _operations(graph: Graph) -> dict[str, list[int]]:
    """Of each layer its convolution, and what prepares its input."""
    records = graph.operations
    makers = {record.output: index for index, record in enumerate(records) if record.kind == Kind.PREPARE}
    return {
        record.name: [index, *([makers[record.input]] if record.input in makers else [])]
        for index, record in enumerate(records)
        if record.kind == Kind.CONVOLVE
    }


def _mapped(content: bytes) -> mmap.mmap:
    """Where an engine's weights lie too, at the start of a page."""
    mapping = mmap.mmap(-1, len(content))
    mapping.write(content)
    return mapping


def _times(layer: str, variants: list[Variant]) -> dict[Way, tuple[float, ...]]:
    """Over the calls of all variants in which the layer took the same way, but for their first, which warms up."""
    same: dict[Way, list[Variant]] = {}
    for variant in variants:
        same.setdefault(variant.taken[layer], []).append(variant)
    return {
        way: tuple(min(time for one in alike for time in one.seconds[layer, batch][1:]) for batch in BATCHES)
        for way, alike in same.items()
    }


def _fastest(times: Mapping[Way, tuple[float, ...]]) -> Way:
    best = [min(seconds) for seconds in zip(*times.values())]
    score = {way: sum(time / least for time, least in zip(seconds, best)) for way, seconds in times.items()}
    alike = [way for way in score if score[way] <= ALIKE * min(score.values())]
    return max(alike, key=WAYS["int8"].index)  # which names all ways: int8, then bfloat16, then float32

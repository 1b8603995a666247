"""Seconds of whole samples, by step count and batch; needs no torch."""

from functools import partial

from .sampler import Flow
from .timing import Timing, interleave


def latency(
    flow: Flow, steps: tuple[int, ...], batches: tuple[int, ...], guidance: float
) -> dict[tuple[int, int], Timing]:
    """Seconds of `sample` for each (steps, batch), interleaved; `sample` itself refuses values that are not finite."""
    label = 0 if flow.spec.network.classes else None
    calls = {
        (count, batch): partial(flow.sample, batch, steps=count, label=label, guidance=guidance)
        for count in steps
        for batch in batches
    }
    return interleave(calls, budget=10.0)

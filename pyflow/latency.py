"""Seconds of whole samples, by step count and batch; needs no torch."""

from collections.abc import Callable
from functools import partial

from .sampler import Flow
from .timing import Timing, interleave


def latency(
    flow: Flow, steps: tuple[int, ...], batches: tuple[int, ...], guidance: float
) -> dict[tuple[int, int], Timing]:
    """Seconds of `sample` for each (steps, batch), interleaved; `sample` itself refuses values that are not finite."""
    return interleave(calls(flow, steps, batches, guidance), budget=10.0)


def calls(
    flow: Flow, steps: tuple[int, ...], batches: tuple[int, ...], guidance: float
) -> dict[tuple[int, int], Callable[[], object]]:
    """What `latency` times: those of several flows may be interleaved too."""
    label = 0 if flow.spec.network.classes else None
    return {
        (count, batch): partial(flow.sample, batch, steps=count, label=label, guidance=guidance)
        for count in steps
        for batch in batches
    }

"""Work on a GPU as one CUDA graph: launched once, however many kernels it holds."""

from collections.abc import Callable

import torch

Work = Callable[[], None]
Recorder = Callable[[Work, torch.device], Callable[[], object]]
"""Runs the work, whose tensors keep their addresses, and returns what runs it again."""

WARMUPS = 2  # the first compiles kernels and lets cuDNN choose, the second goes the way that the capture will


def capture(work: Work, device: torch.device) -> Callable[[], object]:
    """The work as a CUDA graph. What it allocates while it is captured belongs to the graph and lives as long."""
    with torch.cuda.device(device):
        # Neither a warm-up nor a capture may run on the default stream.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUPS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread of the process may allocate meanwhile, which would else end the capture.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            work()
    return graph.replay


def repeat(work: Work, device: torch.device) -> Callable[[], object]:
    """The same promise kept by doing the work again: how a CPU, which has no graphs, rehearses what surrounds one."""
    work()
    return work

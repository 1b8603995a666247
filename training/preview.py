"""Samples of a network while it trains: the same noise and labels each time, by the sampler's own plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pyflow.core import sample, uniform_grid
from pyflow.noise import normal
from pyflow.spec import Spec

from .batch import Batch

if TYPE_CHECKING:
    import PIL.Image

SEED, CELLS, REACH, SCALE = 0, 96, 1.1, 3


def states(net: nn.Module, spec: Spec, steps: int, like: Batch, size: int = 64) -> Tensor:
    """Final states of pictures 0, 1, ... of the preview's seed, with the labels of these samples and what they keep."""
    starts = range(0, len(like.label), size)
    return torch.cat([_states(net, spec, steps, like.between(at, at + size), at) for at in starts])


@torch.no_grad()
def _states(net: nn.Module, spec: Spec, steps: int, like: Batch, first: int) -> Tensor:
    shape, count, device = spec.network.shape, len(like.label), like.label.device
    told = (torch.ones(count, device=device),) if spec.network.guided else ()

    def noise(row: int) -> Tensor:
        drawn = normal(SEED, first, count, int(np.prod(shape)), row)
        return torch.from_numpy(drawn).reshape(count, *shape).to(device)

    def denoise(x: Tensor, s: float, t: float, labelled: bool) -> Tensor:
        times = (torch.full((count,), time, device=device) for time in (s, t))
        return net(like.joined(x), *times, like.label, *told).float()

    return sample(denoise, spec.plan(uniform_grid(steps)), noise, mask=like.mask, image=like.image)


def picture(rows: Sequence[Tensor], real: Tensor) -> "PIL.Image.Image | None":
    """Rows of pictures; or panels of points, and the real ones last. None without Pillow, or of anything else."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        return None
    from pyflow.native import to_uint8
    from pyflow.pictures import grid_of

    if real.ndim == 4 and real.shape[1] in (1, 3):
        shown = to_uint8(torch.cat([*rows]).nan_to_num().clamp(-4, 4).cpu().numpy())
        return grid_of(shown, columns=len(rows[0]), scale=max(1, 48 // real.shape[-1]))
    if real.ndim != 2 or real.shape[1] < 2:
        return None
    reach = REACH * float(real[:, :2].abs().max())
    panels = np.stack([_scatter(points[:, :2].cpu().numpy(), reach) for points in (*rows, real)])
    return grid_of(panels, columns=len(panels), scale=SCALE)


def _scatter(points: np.ndarray, reach: float) -> np.ndarray:
    """uint8 (cells, cells, 1), the darker the more points: a picture of points in a millisecond, without matplotlib."""
    span = [[-reach, reach]] * 2
    counts, _, _ = np.histogram2d(-points[:, 1], points[:, 0], CELLS, span)
    return (255 * (1 - np.sqrt(counts / max(1.0, counts.max())))).astype(np.uint8)[:, :, None]

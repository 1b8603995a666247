"""How times are drawn: each from one coin, by the inverse of its cumulative distribution."""

import math

import torch
from torch import Tensor

from .batch import Batch
from .settings import Options


def draw_time(coin: Tensor, times: str, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """A time a coin. u-shaped is p ~ e^{4t} + e^{4(1-t)} (Lee et al. 2024); logit-normal Esser et al. 2024's."""
    if times == "u-shaped":
        return 0.5 + ((2 * coin - 1) * math.sinh(2)).asinh() / 4
    if times == "logit-normal":
        return (mean + deviation * torch.special.ndtri(coin)).sigmoid()
    return coin


def draw_interval(batch: Batch, options: Options) -> tuple[Tensor, Tensor]:
    """s and t, s <= t. The logit-normal ones are those that did best for MeanFlow on CIFAR-10 in public code, whose
    -0.6 and -4 count from the data; uniform ones fill the triangle evenly."""
    first = draw_time(batch.coins[:, 0], options.times, 0.6, 1.6)
    second = draw_time(batch.coins[:, 1], options.times, 4.0, 1.6)
    return torch.minimum(first, second), torch.maximum(first, second)

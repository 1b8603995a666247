"""A weight of the loss that is learnt beside the network: no time's loss drowns another's."""

import math

import torch
from torch import Tensor, nn

from .batch import Losses

WAVES, WIDTH = 8, 64


class LearnedWeight(nn.Module):
    """w(s, t), the logarithm of the loss at these times: e^-w L + w is least there (Karras et al. 2024, eq. 21; Boffi
    et al. 2025). It starts at 0, where it changes nothing. Train it with the network, at the network's rate."""

    waves: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", math.pi * torch.arange(1, WAVES + 1) / 2, persistent=False)
        self.hidden, self.leave = nn.Linear(4 * WAVES, WIDTH), nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        angles = torch.cat([s[:, None] * self.waves, t[:, None] * self.waves], dim=1)
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.leave(nn.functional.silu(self.hidden(features)))[:, 0]

    def weigh(self, losses: Losses) -> Tensor:
        """e^-w L + w, a sample."""
        w = self(losses.s, losses.t)
        return (-w).exp() * losses.each + w

"""The smallest networks that have every part of the real ones, with weights that make each part count."""

from pathlib import Path

import torch
from torch import nn

from pyflow import checkpoint
from pyflow.engines import eager
from pyflow.models import build
from pyflow.sampler import Flow
from pyflow.spec import MLP, Network, Spec, UNet

UNET = UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, classes=3)
POINTS = MLP(shape=(2,), width=16, depth=2, classes=3, times=2)


def network(spec: Network, seed: int, spread: float = 1.0) -> nn.Module:
    """Layers that start at zero, and would hide a fault behind them, get weights too."""
    torch.manual_seed(seed)
    net = build(spec)
    with torch.no_grad():
        for weight in net.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 1
            weight.add_(torch.randn_like(weight) * spread * (0.5 * fan_in**-0.5 if weight.ndim > 1 else 0.1))
    return net.eval()


def save(folder: Path, spec: Spec, seed: int = 0) -> Path:
    checkpoint.save(folder, network(spec.network, seed), spec)
    return folder


def flow_of(spec: Spec, seed: int = 0) -> Flow:
    """A flow of a network that was never saved."""
    return Flow(eager.runner(network(spec.network, seed), spec), spec, eager.BACKEND, "none")

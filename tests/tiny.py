"""The smallest networks that have every part of the real ones, with weights that make each part count."""

from pathlib import Path

from pyflow import checkpoint
from pyflow.engines import eager
from pyflow.models import random_network as network
from pyflow.sampler import Flow
from pyflow.spec import MLP, Spec, UNet

__all__ = ["POINTS", "UNET", "flow_of", "network", "save"]

UNET = UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, classes=3)
POINTS = MLP(shape=(2,), width=16, depth=2, classes=3, times=2)


def save(folder: Path, spec: Spec, seed: int = 0) -> Path:
    checkpoint.save(folder, network(spec.network, seed), spec)
    return folder


def flow_of(spec: Spec, seed: int = 0) -> Flow:
    """A flow of a network that was never saved."""
    return Flow(eager.runner(network(spec.network, seed), spec), spec, eager.BACKEND, "none")

"""A tiny network that learns from a mixture's draws, or from pairs of its exact flow, ends near the closed form."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import Mixture
from pyflow.training.batch import Draw, paired, unpaired
from pyflow.training.objectives import OBJECTIVES
from pyflow.training.settings import Options
from torch import Tensor, nn

from pyflow.core import IMAGE, LINEAR, NOISE, PATHS, VELOCITY, V
from pyflow.spec import MLP, Spec

MIXTURE = Mixture((0.4, 0.6), (-0.8, 0.7), (0.4, 0.3))
STEPS, BATCH, JUDGED = 800, 512, 1000


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([x, s[:, None], t[:, None]], dim=1))


def trained(name: str, spec: Spec, draw: Draw) -> Callable[..., np.ndarray]:
    """What the network says after its steps, of x and two times."""
    net, options = Tiny(), Options(adaptive=0.0, diagonal=0.5)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        loss = OBJECTIVES[name].loss(net, spec, draw(BATCH), options).each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    def said(x: np.ndarray, s: np.ndarray | float, t: np.ndarray | float) -> np.ndarray:
        times = (torch.from_numpy(np.broadcast_to(time, x.shape).astype(np.float32).copy()) for time in (s, t))
        with torch.no_grad():
            at = torch.from_numpy(x).float()[:, None]
            return net(at, *times, torch.zeros(len(x), dtype=torch.int64))[:, 0].double().numpy()

    return said


def data(rng: np.random.Generator) -> Draw:
    images = torch.from_numpy(MIXTURE.draw(rng, 100_000)).float()[:, None]
    return unpaired(images, torch.zeros(len(images), dtype=torch.int64))


def off(name: str, missed: np.ndarray, within: float, seed: int) -> None:
    error = float(np.sqrt(np.mean(missed**2)))
    print(f"{name}: {error:.3f}")
    assert error < within, f"seed {seed}: {name} is off by {error}"


INSTANT = {"cfm": (VELOCITY, "linear", 0.25), "ddpm": (NOISE, "vp-cosine", 0.15), "ddpm of v": (V, "vp-cosine", 0.15)}


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTANT)
def test_a_tiny_network_learns_the_conditional_mean(name, rng, seed):
    """At states and times of fresh draws; what is regressed on is off by 0.8 to 1.1 of it."""
    prediction, path, within = INSTANT[name]
    said = trained(name.partition(" ")[0], Spec(MLP(shape=(1,)), path, prediction), data(rng))
    t, image, noise = rng.random(JUDGED), MIXTURE.draw(rng, JUDGED), rng.standard_normal(JUDGED)
    truth = MIXTURE.says(prediction)
    x = np.array([PATHS[path].mix(*each) for each in zip(image, noise, t)])
    expected = np.array([truth(PATHS[path], *each) for each in zip(x, t)])
    off(name, said(x, t, t) - expected, within, seed)


def jump(said: Callable[..., np.ndarray], noise: np.ndarray) -> np.ndarray:
    return noise + said(noise, 0.0, 1.0)


MAPS = {"lsd": 0.15, "esd": 0.15, "meanflow": 0.15, "improved-meanflow": 0.15, "consistency": 0.15}
MAPS |= {"psd-midpoint": 0.2, "psd-uniform": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_a_tiny_network_learns_the_map(name, rng, seed):
    """Its one jump, over noise; saying the mean of the pictures would miss .82."""
    said = trained(name, Spec(MLP(shape=(1,), times=1 + OBJECTIVES[name].two_times)), data(rng))
    noise = rng.standard_normal(JUDGED)
    off(name, jump(said, noise) - MIXTURE.flow(LINEAR, noise, 0.0, 1.0), MAPS[name], seed)


PAIRS = {"reflow": (VELOCITY, 0.1), "grid": (VELOCITY, 0.1), "lines": (IMAGE, 0.1), "naive": (IMAGE, 0.1)}
assert {name.partition(" ")[0] for name in (*INSTANT, *MAPS, *PAIRS)} == OBJECTIVES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_a_tiny_network_learns_the_pairs_of_the_flow(name, rng, seed):
    """Its one step from noise, and what it says along the lines: those of one dimension never cross."""
    prediction, within = PAIRS[name]
    learnt, noise = rng.standard_normal((2, 4000))
    pictures, picture = (MIXTURE.flow(LINEAR, each, 0.0, 1.0) for each in (learnt, noise))
    columns = (torch.from_numpy(each).float()[:, None] for each in (learnt, pictures))
    first, last = columns
    said = trained(name, Spec(MLP(shape=(1,)), "linear", prediction), paired((first, torch.zeros(4000).long(), last)))
    for t in {"naive": (0.0,), "grid": (0.0, 0.25, 0.5, 0.75)}.get(name, (0.0, 0.3, 0.6, 0.9)):
        expected = picture if prediction == IMAGE else picture - noise
        off(f"{name} at {t}", said(t * picture + (1 - t) * noise, t, t) - expected, within, seed)

"""The exact solutions of Gaussian data as torch modules, and the checks that an objective has to pass at them."""

import math
from collections.abc import Callable

import torch
from oracles import Gaussian
from pyflow.training.batch import COINS, Batch, Losses
from torch import Tensor, nn

from pyflow.core import LINEAR, Path

SIZE, DEVIATION = 3, 0.4
MEANS = (0.7, -0.5, 0.2)  # of two classes and of what has no label
NULL = len(MEANS) - 1
LAW = Gaussian(MEANS[0], DEVIATION)


def draw(count: int) -> Batch:
    """Samples of the first class in float64, and coins."""
    image = MEANS[0] + DEVIATION * torch.randn(count, SIZE, dtype=torch.float64)
    label, coins = torch.zeros(count, dtype=torch.int64), torch.rand(count, COINS, dtype=torch.float64)
    return Batch(torch.randn_like(image), label, image, coins)


def draw_labelled(count: int) -> Batch:
    """Samples of both classes and of neither, each of its own law."""
    batch, label = draw(count), torch.randint(len(MEANS), (count,))
    return batch._replace(label=label, image=batch.image - MEANS[0] + means()[label][:, None])


def draw_pairs(count: int) -> Batch:
    """Pairs of the exact flow: its pictures are affine in their noise."""
    batch = draw(count)
    return batch._replace(image=MEANS[0] + DEVIATION * batch.noise)


def means() -> Tensor:
    return torch.tensor(MEANS, dtype=torch.float64)


class Bent(nn.Module):
    """An exact solution, and a bent part whose weights are zero at the solution."""

    def __init__(self) -> None:
        super().__init__()
        self.bend = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def exact(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor, *guidance: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor, *guidance: Tensor) -> Tensor:
        s, t = s.double()[:, None], t.double()[:, None]
        bends = (torch.ones_like(x), x, x * s, x.square(), (t - s) * x.sin())
        return self.exact(x, s, t, label, *guidance) + torch.stack(bends, dim=-1) @ self.bend


class Instant(Bent):
    """E[what is predicted | x_t], `says` being a method of the law."""

    def __init__(self, path: Path = LINEAR, says: Callable = LAW.velocity) -> None:
        super().__init__()
        self.path, self.says = path, says

    def exact(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.says(self.path, x, s)


class Straight(Bent):
    """What a straight line through x says of `draw_pairs`: its noise is known from x, and so is its picture."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.image = image

    def exact(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        noise = (x - s * MEANS[0]) / (1 - s + s * DEVIATION)
        picture = MEANS[0] + DEVIATION * noise
        return picture if self.image else picture - noise


def variance(t: Tensor) -> Tensor:
    """Var[x_t] on the linear path."""
    return (t * DEVIATION) ** 2 + (1 - t) ** 2


class Average(Bent):
    """The average velocity over s..t on the linear path, smooth where s=t too; guidance moves the mean of the law.

    All classes deviate alike, so w b(label) + (1-w) b(no label) is the velocity of a law whose mean is mixed so.
    """

    def __init__(self, guidance: float = 1.0) -> None:
        super().__init__()
        self.guidance = guidance

    def exact(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor, *told: Tensor) -> Tensor:
        w = told[0].double() if told else self.guidance
        mean = torch.where(label == NULL, MEANS[NULL], w * means()[label] + (1 - w) * MEANS[NULL])[:, None]
        slope = (s + t) * DEVIATION**2 - 2 + s + t
        return mean + slope / (variance(s) + (variance(s) * variance(t)).sqrt()) * (x - s * mean)


def unexplained(path: Path, t: Tensor) -> Tensor:
    """Var[velocity of a sample | x_t], an element: the floor of flow matching."""
    alpha, sigma, alpha_rate, sigma_rate = path.alpha(t), path.sigma(t), path.alpha_rate(t), path.sigma_rate(t)
    told = (alpha * alpha_rate * DEVIATION**2 + sigma * sigma_rate) ** 2 / ((alpha * DEVIATION) ** 2 + sigma**2)
    return alpha_rate**2 * DEVIATION**2 + sigma_rate**2 - told


def assert_zero(values: Tensor, error_below: float, what: str) -> None:
    """The mean is zero within five of its standard errors, and that says something."""
    mean, error = values.mean().item(), values.std().item() / math.sqrt(len(values))
    assert abs(mean) <= 5 * error + 1e-9, f"{what}: {mean} +- {error}, expected 0"
    assert error < error_below, f"{what}: the error {error} hides everything"


def assert_solved(
    loss: Callable[[nn.Module, Batch], Losses], net: Bent, draw: Callable[[int], Batch], floor: Callable, seed: int
) -> None:
    """The loss stands on its floor, a function of its times, and its gradient there is zero."""
    above, slopes = [], []
    for _ in range(64):
        batch = draw(512)
        losses = loss(net, batch)
        above.append((losses.each - floor(losses.s, losses.t, batch)).detach().mean())
        slopes.append(torch.autograd.grad(losses.each.mean(), net.bend)[0])
    assert_zero(torch.stack(above), 0.04, f"seed {seed}, the loss above its floor")
    for bend, slope in enumerate(torch.stack(slopes).T):
        assert_zero(slope, 0.04, f"seed {seed}, the gradient of bend {bend}")

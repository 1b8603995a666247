"""The networks: an MLP for points and a UNet for pictures, both called as `net(x, s, t, label)`.

s and t are float32 (batch,) times, label is int64 (batch,) with `classes` itself as the null label. A network with
`times=1` looks at s only; one with `classes=0` looks at no label. A guided one is called
`net(x, s, t, label, guidance)` with float32 (batch,) guidance above 0; `baked` makes an ordinary one of it.
"""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InvalidInput
from .spec import MLP, Network, Own, UNet


def build(network: Network) -> "MLPNet | UNetNet":
    if isinstance(network, Own):
        raise InvalidInput(
            f"the network is your own {network.name}, and no file names code to run; expected the module too, as in "
            f"pyflow.load(folder, model={network.name}())"
        )
    return UNetNet(network) if isinstance(network, UNet) else MLPNet(network)


def refuse_misfit(model: nn.Module, network: Own) -> None:
    """Call a network of one's own once: a prediction of another shape would be broadcast, in a loss and in a step."""
    device = next((weight.device for weight in model.parameters()), None)
    x = torch.zeros(2, *network.shape, device=device)
    s, label = torch.zeros(2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    try:
        with torch.no_grad():
            said = model(x, s, s + 0.5, label)
    except (TypeError, RuntimeError, IndexError, ValueError) as error:
        raise InvalidInput(f"{type(model).__name__} cannot be called net(x, s, t, label): {error}") from error
    if not isinstance(said, Tensor) or said.shape != x.shape:
        came = tuple(said.shape) if isinstance(said, Tensor) else type(said).__name__
        raise InvalidInput(f"{type(model).__name__} made {came} of x {tuple(x.shape)}; expected a tensor of x's shape")


def fresh(network: Network, start: nn.Module | None = None) -> nn.Module:
    """A network to train, with the weights of `start` if one is given; of one's own, a copy of `start`."""
    if isinstance(network, Own) and start is not None:
        refuse_misfit(start, network)
        return copy.deepcopy(start)
    made = build(network)
    if start is not None:
        made.load_state_dict(start.state_dict())
    return made


def random_network(network: Network, seed: int = 0, spread: float = 1.0) -> "MLPNet | UNetNet":
    """A network to test and time with: weights of their own for the layers that start at zero too.

    It moves a state by a third of its deviation. Beside one that says next to nothing, a wrong one would pass.
    """
    torch.manual_seed(seed)
    model = build(network)
    with torch.no_grad():
        for weight in model.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 1
            weight.add_(torch.randn_like(weight) * spread * (0.5 * fan_in**-0.5 if weight.ndim > 1 else 0.1))
    return model.eval()


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


SLOWEST_WAVE, WAVES = 0.1, 32


class Condition(nn.Module):
    """Times and class to one vector: sinusoids of each time, two linear layers, a row of the class table added.

    The sinusoids are float32 whatever the dtype of the layers. Guidance is added as two linear layers of its logarithm.
    """

    waves: Tensor
    phases: Tensor

    def __init__(self, spec: MLP | UNet, hidden: int, width: int) -> None:
        super().__init__()
        classes, times = spec.classes, spec.times
        waves = torch.logspace(math.log10(SLOWEST_WAVE), math.log10(spec.fastest_wave), WAVES)
        # A cosine is a sine with a phase: one operation for both. On a small network the number of them is the cost.
        self.register_buffer("waves", waves.repeat(2), persistent=False)
        self.register_buffer("phases", torch.tensor([0, math.pi / 2]).repeat_interleave(WAVES), persistent=False)
        self.times = times
        self.project = nn.Sequential(nn.Linear(2 * WAVES * times, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.guide = nn.Sequential(nn.Linear(1, hidden), nn.SiLU(), nn.Linear(hidden, width)) if spec.guided else None

    def forward(self, s: Tensor, t: Tensor, label: Tensor, guidance: Tensor | None = None) -> Tensor:
        told = (s, t)[: self.times]
        sinusoids = [torch.sin(time[:, None] * self.waves + self.phases) for time in told]
        waves = torch.cat(sinusoids, dim=1) if self.times > 1 else sinusoids[0]
        vector = self.project(waves.to(next(self.project.parameters()).dtype))
        if self.guide is not None:
            if guidance is None:
                raise InvalidInput("guidance is None; expected float32 (batch,) numbers above 0: the network is guided")
            vector = vector + self.guide(guidance.log()[:, None].to(vector.dtype))
        return vector if self.label is None else vector + self.label(label)


class MLPNet(nn.Module):
    def __init__(self, spec: MLP) -> None:
        super().__init__()
        self.spec = spec
        self.condition = Condition(spec, 64, spec.width)
        self.enter = nn.Linear(spec.shape[0], spec.width, bias=False)  # the condition has a bias
        self.hidden = nn.ModuleList(nn.Linear(spec.width, spec.width) for _ in range(spec.depth - 1))
        self.leave = nn.Linear(spec.width, spec.shape[0])

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor, guidance: Tensor | None = None) -> Tensor:
        h = F.silu(torch.addmm(self.condition(s, t, label, guidance), x, self.enter.weight.T))
        for layer in self.hidden:
            h = F.silu(layer(h))
        return self.leave(h)


def baked(model: nn.Module, guidance: float) -> "MLPNet | UNetNet":
    """A guided network at one guidance, as an ordinary one: what a constant guidance adds goes into a bias."""
    if not isinstance(model, MLPNet | UNetNet) or model.condition.guide is None:
        raise InvalidInput("the network is not guided; expected one that takes the guidance as an input")
    made = build(replace(model.spec, guided=False))
    weights = {name: weight for name, weight in model.state_dict().items() if ".guide." not in name}
    with torch.no_grad():
        added = model.condition.guide(torch.tensor([[guidance]]).log())[0]
    weights["condition.project.2.bias"] = weights["condition.project.2.bias"] + added
    made.load_state_dict(weights)
    return made.train(model.training)


def lowered(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in `dtype`, but for the waves of the times: at 100 radians bfloat16 keeps no digit of an angle."""
    ours = copy.deepcopy(model).to(dtype)
    for copied, original in zip(ours.modules(), model.modules()):
        if isinstance(copied, Condition) and isinstance(original, Condition):
            copied.waves, copied.phases = original.waves.clone(), original.phases.clone()
    return ours


class Norm(nn.GroupNorm):
    """A group norm that is float32 under autocast on the CPU too, as it is on CUDA.

    On the CPU its output would be bfloat16 and its derivative along a direction float32, which convolutions refuse.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if torch.is_autocast_enabled("cpu") else x)


def _norm(channels: int) -> nn.GroupNorm:
    return Norm(8, channels)


class Block(nn.Module):
    """norm, SiLU, conv, norm, FiLM, SiLU, conv, added to the (1x1-projected) input; attention after it if asked."""

    def __init__(self, inputs: int, outputs: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs, heads) if heads else nn.Identity()
        self.outputs = outputs
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = self.conv2(self.dropout(F.silu(h * (1 + scale) + shift)))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return x + self.out(attended)


class UNetNet(nn.Module):
    """Down, middle, up. One linear layer makes the FiLM scale and shift of all blocks at once."""

    def __init__(self, spec: UNet) -> None:
        super().__init__()
        self.spec = spec
        condition_width = 4 * spec.channels
        self.condition = Condition(spec, condition_width, condition_width)
        self.enter = nn.Conv2d(spec.shape[0] + spec.extra, spec.channels, 3, padding=1)

        widths = [spec.channels * m for m in spec.multipliers]
        heights = [spec.shape[1] // 2**level for level in range(len(widths))]
        heads = [spec.heads if height in spec.attention else 0 for height in heights]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, width = [spec.channels], spec.channels
        for level, next_width in enumerate(widths):
            for _ in range(spec.blocks):
                self.down.append(Block(width, next_width, heads[level], spec.dropout))
                width = next_width
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.middle = nn.ModuleList(Block(width, width, h, spec.dropout) for h in (spec.heads, 0))
        for level, next_width in reversed(list(enumerate(widths))):
            for _ in range(spec.blocks + 1):
                self.up.append(Block(width + kept.pop(), next_width, heads[level], spec.dropout))
                width = next_width
            if level > 0:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm, self.leave = _norm(width), nn.Conv2d(width, spec.shape[0], 3, padding=1)
        nn.init.zeros_(self.leave.weight)

        order = (*self.down, *self.middle, *self.up)
        self.film_widths = [2 * block.outputs for block in order if isinstance(block, Block)]
        self.film = nn.Linear(condition_width, sum(self.film_widths))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor, guidance: Tensor | None = None) -> Tensor:
        films = iter(self.film(F.silu(self.condition(s, t, label, guidance))).split(self.film_widths, dim=1))
        h = self.enter(x)
        kept = [h]
        for layer in self.down:
            h = layer(h, next(films)) if isinstance(layer, Block) else layer(h)
            kept.append(h)
        for layer in self.middle:
            h = layer(h, next(films))
        for layer in self.up:
            if isinstance(layer, Block):
                h = layer(torch.cat([h, kept.pop()], dim=1), next(films))
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.leave(F.silu(self.norm(h)))

"""What moves the weights: AdamW, or Muon for the hidden matrices and AdamW for the rest; and how fast."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from .settings import Recipe


def optimizers(net: nn.Module, weight: nn.Module | None, recipe: Recipe, data_channels: int) -> list[Optimizer]:
    """Those that train `net`, and beside it the learned weight, which does not decay."""
    hidden = _hidden(net, data_channels) if recipe.optimizer == "muon" else []
    taken = {id(matrix) for matrix in hidden}
    groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if id(p) not in taken]}]
    if weight is not None:
        groups.append({"params": [*weight.parameters()], "weight_decay": 0.0})
    fused = all(p.is_cuda for p in net.parameters())
    adamw = AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=fused or None
    )
    return [adamw, _muon(hidden, recipe)] if hidden else [adamw]


def _hidden(net: nn.Module, data_channels: int) -> list[Tensor]:
    """Weights of linear layers and convolutions of which neither side is the data: those directions are of its own."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [layer.weight for layer in layers if min(layer.weight.shape[:2]) > data_channels]


def _muon(weights: Sequence[Tensor], recipe: Recipe) -> Muon:
    """Muon over matrices (outputs, everything else): a convolution's are views of it, with the taps first if that is
    how they lie. Orthogonal rows do not depend on the order of the columns."""
    views = [_matrix(weight.detach()) for weight in weights]

    def hand_gradients(*_: object) -> None:
        for view, weight in zip(views, weights):
            view.grad = None if weight.grad is None else _ordered(weight.grad, weight).flatten(1)

    # With this rule of the rate one learning_rate and one weight_decay serve both optimizers.
    muon = Muon(views, recipe.learning_rate, recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    muon.register_step_pre_hook(hand_gradients)
    return muon


def _ordered(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if like.ndim == 4 and not like.is_contiguous() else tensor


def _matrix(weight: Tensor) -> Tensor:
    return _ordered(weight, weight).view(len(weight), -1)  # `view`, which never copies: its updates are the weight's


def rate(step: int, recipe: Recipe) -> float:
    """The share of the learning rate: a linear warm-up, then what the schedule makes of what is left of the run."""
    warmup = max(1.0, recipe.warmup * recipe.steps)
    left = min(1.0, (recipe.steps - step) / (recipe.steps - warmup + 1))
    falls = {"linear": left, "cosine": math.sin(math.pi / 2 * left) ** 2, "constant": 1.0}
    return min((step + 1) / warmup, falls[recipe.schedule])


def set_rate(optimizers: Sequence[Optimizer], value: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value

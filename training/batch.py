"""Batches: what an objective is given, and where it comes from. All of a sample's chance comes with the sample.

An objective draws nothing itself: its times and coin flips are `coins`, uniform numbers that travel with the sample. So
a batch cut over processes or over accumulation steps has the loss and the gradient of the whole.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyflow.masks import draw as draw_masks
from pyflow.masks import told
from pyflow.noise import SEED_LIMIT
from pyflow.spec import Spec

from .data import values

COINS = 4  # an objective uses the first ones; the last one drops the label
MASKS, FAR = 4096, 2**31  # how many a teacher learns from; their numbers, which are no picture's that it is judged by


class Batch(NamedTuple):
    noise: Tensor
    label: Tensor  # int64 (B,)
    image: Tensor
    coins: Tensor  # float32 (B, COINS), uniform in 0..1
    mask: Tensor | None = None  # float32 (B, 1, H, W), 1 is generated and 0 is kept; of a network that sees it
    whole: Tensor | None = None  # the images of the batch that this is a part of; None is its own

    @property
    def pool(self) -> Tensor:
        """The images of the whole batch."""
        return self.image if self.whole is None else self.whole

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with all that it holds changed so."""
        noise, label, image, coins = map(change, self[:4])
        return Batch(noise, label, image, coins, *(None if held is None else change(held) for held in self[4:]))

    def part(self, index: int, count: int) -> "Batch":
        """Every `count`-th sample from `index` on: the first share of each part is in the first share of the whole."""
        if count == 1:
            return self
        return self._replace(whole=None).each(lambda tensor: tensor[index::count])._replace(whole=self.pool)

    def between(self, first: int, end: int | None) -> "Batch":
        """The samples from `first` up to `end`, a batch of their own."""
        return self._replace(whole=None).each(lambda tensor: tensor[first:end])

    def to(self, device: torch.device) -> "Batch":
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def joined(self, x: Tensor) -> Tensor:
        """What a network is given of the states x: beside them, where there are masks, what is kept and the mask."""
        return x if self.mask is None else torch.cat([x, told(self.image, self.mask)], dim=1)

    def share(self, share: float) -> int:
        """How many samples are this share of the batch: its first ones, so that parts of it agree with the whole."""
        return _share(share, len(self.label))

    def cut(self, share: float) -> tuple["Batch", "Batch"]:
        """The first share of the batch, and the rest; of a part, they are parts of the whole's first share and rest."""
        at = self.share(share)
        first, rest = self.between(0, at), self.between(at, None)
        if self.whole is None:
            return first, rest
        at = _share(share, len(self.whole))
        return first._replace(whole=self.whole[:at]), rest._replace(whole=self.whole[at:])


def _share(share: float, count: int) -> int:
    return int(round(share * count, 6))  # .29 of 100 is 29


class Losses(NamedTuple):
    """A loss a sample, the times that it was taken at, and its square alone: what a log shows of any weighting."""

    each: Tensor  # (B,)
    s: Tensor
    t: Tensor
    square: Tensor  # the mean over elements of what was missed, squared


def joined(first: Losses, rest: Losses) -> Losses:
    return Losses(*(torch.cat(both) for both in zip(first, rest)))


Draw = Callable[[int], Batch]  # a batch of this many, drawn with torch's generator


def over(t: Tensor, like: Tensor) -> Tensor:
    """Times (batch,) shaped to multiply a batch of pictures."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def drop_labels(batch: Batch, spec: Spec, share: float) -> Batch:
    """Give each sample, by its own coin, the null label."""
    if share == 0.0 or spec.network.classes == 0:
        return batch
    return batch._replace(label=torch.where(batch.coins[:, -1] < share, spec.network.classes, batch.label))


def unpaired(
    images: Tensor, labels: Tensor, flip: bool = False, masks: Tensor | None = None, masked: float = 1.0
) -> Draw:
    """Batches of pictures with fresh noise: what a teacher learns from; with `flip`, half of them mirrored.

    `masks` (N, 1, H, W) are those to choose from, for this share of the samples; the others have nothing kept.
    """

    def draw(count: int) -> Batch:
        device = images.device
        chosen = torch.randint(len(images), (count,), device=device)
        picked = values(images[chosen])
        if flip:
            picked = torch.where(over(torch.rand(count, device=device) < 0.5, picked), picked.flip(-1), picked)
        noise = torch.randn(count, *images.shape[1:], device=device)
        coins = torch.rand(count, COINS, device=device)
        return Batch(noise, labels[chosen], picked, coins, None if masks is None else _some(masks, count, masked))

    return draw


def mask_bank(shape: Sequence[int], seed: int) -> Tensor:
    """Masks of every kind for pictures of this shape, the same for the same seed."""
    drawn = draw_masks("mixed", shape[1], shape[2], MASKS, seed=seed % SEED_LIMIT, first=FAR)
    return torch.from_numpy(drawn)


def _some(masks: Tensor, count: int, share: float) -> Tensor:
    chosen = masks[torch.randint(len(masks), (count,), device=masks.device)]
    keeps = torch.rand(count, device=masks.device) < share
    return torch.where(over(keeps, chosen), chosen, torch.ones_like(chosen))


def endless(points: Callable[[int], Tensor]) -> Draw:
    """Batches of a law that is known: fresh points each time, no labels."""

    def draw(count: int) -> Batch:
        image = points(count)
        label = torch.zeros(count, dtype=torch.int64, device=image.device)
        return Batch(torch.randn_like(image), label, image, torch.rand(count, COINS, device=image.device))

    return draw


def paired(pairs: Sequence[Tensor]) -> Draw:
    """Batches of a teacher's (noise, label, picture) or (noise, label, picture, mask): what a student learns from."""
    noise, labels, images, *masks = pairs

    def draw(count: int) -> Batch:
        chosen = torch.randint(len(images), (count,), device=images.device)
        coins = torch.rand(count, COINS, device=images.device)
        return Batch(noise[chosen], labels[chosen], images[chosen], coins, masks[0][chosen] if masks else None)

    return draw

"""Masks for inpainting, drawn by seed: 1 is generated, 0 is kept. A mask belongs to its picture, as noise does.

All in integers, from Philox with key (seed, picture): the same mask on every machine, whatever the batch. The third
word of the counter is 1 here and 0 in `pyflow.noise`, so no mask shares a number with a noise.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import InvalidInput
from .noise import PICTURE_LIMIT, SEED_LIMIT, philox

Array = Any  # a NumPy array or a torch tensor

HALVES = ("left", "right", "top", "bottom")
KINDS = ("centre", "boxes", "irregular", *HALVES)
GROUPS = {"half": HALVES, "mixed": ("centre", "boxes", "irregular", "half")}
SMALLEST, LARGEST = 8, 4096  # sides of a picture

BOXES, STROKES, BENDS = 3, 5, 8
MOST = 0.75  # the share of a picture that a hole may have
_DIRECTIONS, _FRACTION = 64, 256  # a stroke's directions, and the parts of a pixel that its points are counted in
_TURNS = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
_WAYS = np.rint(_FRACTION * np.stack([np.sin(_TURNS), np.cos(_TURNS)], axis=-1)).astype(np.int64)
_OF_MASKS = 1


def draw(kind: str, height: int, width: int, count: int, *, seed: int = 0, first: int = 0) -> np.ndarray:
    """Masks first, first+1, ... of this seed: float32 (count, 1, height, width), 1 is generated and 0 is kept.

    kind: of KINDS, or of GROUPS, each of whose parts is as likely as the others. No mask is empty or full.
    """
    if kind not in KINDS and kind not in GROUPS:
        raise InvalidInput(f"kind is {kind!r}; expected one of {', '.join([*KINDS, *GROUPS])}")
    for name, side in (("height", height), ("width", width)):
        if not SMALLEST <= side <= LARGEST:
            raise InvalidInput(f"{name} is {side}; expected {SMALLEST} to {LARGEST} pixels to draw a mask on")
    if count < 0 or not 0 <= seed < SEED_LIMIT or not 0 <= first <= PICTURE_LIMIT - count:
        raise InvalidInput(
            f"masks {first} to {first + count - 1} of seed {seed} are asked for; "
            "expected seeds and numbers in 0..2**32-1"
        )
    pictures = np.arange(first, first + count, dtype=np.uint32)
    return _holes(kind, height, width, seed, pictures)[:, None].astype(np.float32)


def told(image: Array, mask: Array) -> Array:
    """What a mask-conditioned network is told beside the state: the kept pixels and the mask, joined as channels."""
    return sys.modules[type(image).__module__.partition(".")[0]].concatenate([(1 - mask) * image, mask], axis=1)


def _holes(kind: str, height: int, width: int, seed: int, pictures: np.ndarray) -> np.ndarray:
    """Boolean (pictures, height, width)."""
    if kind not in GROUPS:
        return _DRAWN[kind](_Numbers(seed, pictures, 1 + KINDS.index(kind)), height, width)
    parts = GROUPS[kind]
    stream = 1 + len(KINDS) + list(GROUPS).index(kind)
    chosen = _Numbers(seed, pictures, stream).below(np.array([len(parts)]))[:, 0]
    holes = np.empty((len(pictures), height, width), bool)
    for index, part in enumerate(parts):
        holes[chosen == index] = _holes(part, height, width, seed, pictures[chosen == index])
    return holes


class _Numbers:
    """The random integers of each picture, for one kind of mask."""

    def __init__(self, seed: int, pictures: np.ndarray, stream: int) -> None:
        self.count = len(pictures)
        self.stream = stream
        self.key = np.empty((self.count, 1, 2), np.uint32)
        self.key[..., 0] = seed
        self.key[..., 1] = pictures[:, None]

    def below(self, limits: np.ndarray) -> np.ndarray:
        """int64 (pictures, *limits.shape): each from 0 to its limit, without it."""
        blocks = -(-limits.size // 4)
        counter = np.zeros((1, blocks, 4), np.uint32)
        counter[..., 0] = np.arange(blocks, dtype=np.uint32)
        counter[..., 1:3] = self.stream, _OF_MASKS
        words = philox(counter, self.key).reshape(self.count, 4 * blocks)[:, : limits.size].astype(np.uint64)
        scaled = (words * limits.ravel().astype(np.uint64)) >> np.uint64(32)
        return scaled.astype(np.int64).reshape(self.count, *limits.shape)


def _rectangles(top: Array, left: Array, tall: Array, wide: Array, height: int, width: int) -> np.ndarray:
    """Boolean (..., height, width) of corners and sides (...)."""
    top, left, tall, wide = (np.asarray(side)[..., None] for side in (top, left, tall, wide))
    rows, columns = np.arange(height), np.arange(width)
    inside_rows = (rows >= top) & (rows < top + tall)
    inside_columns = (columns >= left) & (columns < left + wide)
    return inside_rows[..., :, None] & inside_columns[..., None, :]


def _same(top: int, left: int, tall: int, wide: int, height: int, width: int, count: int) -> np.ndarray:
    one = _rectangles(top, left, tall, wide, height, width)
    return np.broadcast_to(one, (count, height, width))


def _centre(numbers: _Numbers, height: int, width: int) -> np.ndarray:
    """A square of half the shorter side: a quarter of a square picture."""
    side = min(height, width) // 2
    return _same((height - side) // 2, (width - side) // 2, side, side, height, width, numbers.count)


def _boxes(numbers: _Numbers, height: int, width: int) -> np.ndarray:
    """One to BOXES rectangles with sides of a quarter to a half of the picture's."""
    smallest = np.array([height // 4, width // 4])
    limits = np.tile([*(np.array([height // 2, width // 2]) - smallest + 1), 2**16, 2**16], (BOXES, 1))
    drawn = numbers.below(np.concatenate([limits.ravel(), [BOXES]]))
    boxes = drawn[:, :-1].reshape(-1, BOXES, 4)
    sides = smallest + boxes[..., :2]
    corners = (boxes[..., 2:] * (np.array([height, width]) - sides + 1)) >> 16
    sides = sides * (np.arange(BOXES) <= drawn[:, -1:])[..., None]  # a box that is not wanted has no pixels
    each = _rectangles(corners[..., 0], corners[..., 1], sides[..., 0], sides[..., 1], height, width)
    holes: np.ndarray = np.logical_or.reduce(each, axis=1)
    return holes


def _irregular(numbers: _Numbers, height: int, width: int) -> np.ndarray:
    """Two to STROKES strokes of a brush that turns as it goes, a tenth to a fifth of the picture wide.

    Where they would cover more than MOST, the first one stays alone.
    """
    side = min(height, width)
    thinnest, thickest = max(1, side // 20), max(1, side // 10)
    of_stroke = [height, width, _DIRECTIONS, side // 2 + 1, *[_DIRECTIONS // 4] * BENDS]
    drawn = numbers.below(np.concatenate([np.tile(of_stroke, STROKES), [STROKES - 1, thickest - thinnest + 1]]))
    strokes = drawn[:, :-2].reshape(-1, STROKES, len(of_stroke))
    wanted, radius = 2 + drawn[:, -2], thinnest + drawn[:, -1]
    lengths = (side - side // 2 + strokes[..., 3]) * (np.arange(STROKES) < wanted[:, None])

    points = np.arange(side)
    turns = np.cumsum(strokes[..., 4:] - _DIRECTIONS // 8, axis=-1)[..., points * BENDS // side]
    ways = _WAYS[(strokes[..., 2:3] + turns) % _DIRECTIONS]
    walked = strokes[..., None, :2] * _FRACTION + np.cumsum(ways, axis=-2)
    picture = np.arange(numbers.count)[:, None, None]
    at = picture * height * width + (_folded(walked[..., 0], height) * width + _folded(walked[..., 1], width))

    def painted(which: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        dots = np.zeros((numbers.count, height, width), bool)
        dots.reshape(-1)[at[points < lengths[..., None]]] = True
        return _grown(dots[which], radius[which])

    holes = painted(np.ones(numbers.count, bool), lengths)
    crowded = holes.mean(axis=(1, 2)) > MOST
    if crowded.any():
        holes[crowded] = painted(crowded, lengths * (np.arange(STROKES) == 0))
    return holes


def _folded(walked: np.ndarray, side: int) -> np.ndarray:
    """The pixel of a walk that bounces off both borders."""
    around = walked % (2 * side * _FRACTION)
    return np.minimum(around, 2 * side * _FRACTION - 1 - around) // _FRACTION


def _grown(holes: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Each point becomes an octagon of its picture's radius: by turns a cross and a square of 3x3 pixels are added."""
    for turn in range(radius.max(initial=0)):
        wider = holes.copy()
        wider[:, 1:] |= holes[:, :-1]
        wider[:, :-1] |= holes[:, 1:]
        beside = wider.copy() if turn % 2 else holes
        wider[:, :, 1:] |= beside[:, :, :-1]
        wider[:, :, :-1] |= beside[:, :, 1:]
        holes = holes | (wider & (turn < radius)[:, None, None])
    return holes


def _left(numbers: _Numbers, height: int, width: int) -> np.ndarray:
    return _same(0, 0, height, width // 2, height, width, numbers.count)


def _right(numbers: _Numbers, height: int, width: int) -> np.ndarray:
    return _same(0, width - width // 2, height, width // 2, height, width, numbers.count)


def _top(numbers: _Numbers, height: int, width: int) -> np.ndarray:
    return _same(0, 0, height // 2, width, height, width, numbers.count)


def _bottom(numbers: _Numbers, height: int, width: int) -> np.ndarray:
    return _same(height - height // 2, 0, height // 2, width, height, width, numbers.count)


_DRAWN: dict[str, Callable[[_Numbers, int, int], np.ndarray]] = dict(
    zip(KINDS, (_centre, _boxes, _irregular, _left, _right, _top, _bottom), strict=True)
)

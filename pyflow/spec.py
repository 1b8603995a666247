"""What a network is, as frozen dataclasses that go to JSON and come back: the part of a checkpoint that people read."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .core import PATHS, PREDICTIONS, SOLVERS, Path, Plan
from .errors import InvalidArtefact, InvalidInput
from .records import from_json, refuse_other_types

# The fastest wave turns 100 radians from t=0 to 1: enough to tell 200 steps apart, and a float32 angle is then within
# 4e-6, whether or not a compiler contracts wave*t + phase. At DDPM's 1000 radians it would be 3e-5, and exports differ.
# What learns from its own derivative in time wants slower ones: in the plane MeanFlow's one jump missed .221 at 100
# radians and .096 at 5.
FASTEST_WAVE = 100.0


@dataclass(frozen=True)
class MLP:
    """A plain network for points: `shape` is (dimensions,). A `guided` network is told the guidance too."""

    shape: tuple[int, ...] = (2,)
    width: int = 256
    depth: int = 4
    classes: int = 0
    times: int = 1
    guided: bool = False
    fastest_wave: float = FASTEST_WAVE  # radians from t=0 to 1, of the sinusoids that tell the times
    sees_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_other_types(self)
        _expect(len(self.shape) == 1, "an MLP's shape", self.shape, "one number, the dimensions of a point")
        _expect_common(self)
        _expect(self.width >= 1, "width", self.width, "1 or more")
        _expect(self.depth >= 1, "depth", self.depth, "1 or more")


@dataclass(frozen=True)
class UNet:
    """A picture network: `shape` is (channels, height, width), `channels` the width at full resolution.

    `multipliers` scale the width at each resolution, halving from one to the next; `attention` names the heights at
    which blocks attend; `extra` is the number of conditioning channels joined to the input: of a picture's channels and
    one more, it is told what is kept and the mask; a `guided` network is told the guidance too.
    """

    shape: tuple[int, ...] = (3, 32, 32)
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (8,)
    heads: int = 2
    classes: int = 10
    times: int = 1
    extra: int = 0
    dropout: float = 0.0
    guided: bool = False
    fastest_wave: float = FASTEST_WAVE

    def __post_init__(self) -> None:
        refuse_other_types(self)
        _expect(len(self.shape) == 3, "a UNet's shape", self.shape, "(channels, height, width)")
        _expect_common(self)
        smallest = 2 ** (len(self.multipliers) - 1)
        fits = all(side % smallest == 0 for side in self.shape[1:])
        _expect(fits, "height and width", self.shape[1:], f"multiples of {smallest} for {len(self.multipliers)} levels")
        heights = [self.shape[1] // 2**level for level in range(len(self.multipliers))]
        _expect(set(self.attention) <= set(heights), "attention", self.attention, f"heights out of {heights}")
        _expect(self.blocks >= 1, "blocks", self.blocks, "1 or more")
        _expect(self.heads >= 1, "heads", self.heads, "1 or more")
        _expect(self.extra >= 0, "extra", self.extra, "0 or more")
        groups_fit = self.channels >= 8 and self.channels % 8 == 0 and self.channels % self.heads == 0
        _expect(groups_fit, "channels", self.channels, f"a multiple of 8 and of heads={self.heads}")
        _expect(0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")

    @property
    def sees_mask(self) -> bool:
        """Whether it is told, beside the state, the kept picture and the mask."""
        return self.extra == self.shape[0] + 1


@dataclass(frozen=True)
class Own:
    """A network of one's own: any torch module called `net(x, s, t, label)`. `name` is for people, no code to look up.

    x is (batch, *shape), s and t float32 (batch,), label int64 (batch,), `classes` itself being the null label. With
    times=1 the network looks at s only, with classes=0 at no label, which may then be None.
    """

    name: str
    shape: tuple[int, ...]
    classes: int = 0
    times: int = 1
    sees_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_other_types(self)
        _expect(self.name.isidentifier(), "name", self.name, "the name of a class")
        _expect_common(self)

    @property
    def guided(self) -> bool:
        return False


Network = MLP | UNet | Own
NETWORKS: dict[str, type[MLP] | type[UNet] | type[Own]] = {"mlp": MLP, "unet": UNet, "own": Own}


@dataclass(frozen=True)
class Spec:
    """Everything that sampling needs to know of a checkpoint, and where it came from.

    `null_label` tells whether the network also learnt to predict without a label, which guidance needs; a student
    with its guidance baked in did not. `solver` makes the plan when the caller names none. `grids` are the times that a
    search found best, by their number of steps; they tell no other network.
    """

    network: Network
    path: str = "linear"
    prediction: str = "velocity"
    solver: str = "euler"
    null_label: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    grids: dict[str, tuple[float, ...]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        refuse_other_types(self)
        _expect(self.path in PATHS, "path", self.path, f"one of {', '.join(PATHS)}")
        _expect(self.prediction in PREDICTIONS, "prediction", self.prediction, f"one of {', '.join(PREDICTIONS)}")
        _expect(self.solver in SOLVERS, "solver", self.solver, f"one of {', '.join(SOLVERS)}")
        known = self.network.classes > 0 or not self.null_label
        _expect(known, "null_label", self.null_label, "False, the network knows no classes")
        for steps, grid in self.grids.items():
            _expect(steps == str(len(grid) - 1), f"grids[{steps!r}]", grid, f"{steps} + 1 times")
            self.plan(grid)

    @property
    def math_path(self) -> Path:
        return PATHS[self.path]

    def plan(self, grid: Sequence[float], solver: str | None = None) -> Plan:
        """The rows over these times, of its own solver where none is named."""
        return SOLVERS[solver or self.solver](self.math_path, self.prediction, grid)

    def with_grid(self, times: tuple[float, ...]) -> "Spec":
        """The same, with the times that a search found."""
        return dataclasses.replace(self, grids={**self.grids, str(len(times) - 1): times})

    def to_json(self) -> dict[str, Any]:
        kind = next(name for name, network in NETWORKS.items() if isinstance(self.network, network))
        return {**dataclasses.asdict(self), "network": {"kind": kind, **dataclasses.asdict(self.network)}}

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Spec":
        """A spec from JSON; `where` names the file in the errors."""
        try:
            rest, network = {**data}, {**data["network"]}
            del rest["network"]
            kind = network.pop("kind")
        except (KeyError, TypeError) as error:
            raise InvalidArtefact(
                f"{where} is not a pyflow spec ({type(error).__name__}: {error}); export it again"
            ) from error
        if kind not in list(NETWORKS):
            raise InvalidArtefact(f"{where}: network kind is {kind!r}; this pyflow knows {', '.join(NETWORKS)}")
        return from_json(cls, rest, where, network=from_json(NETWORKS[kind], network, where))


def extra_of(network: Network) -> int:
    """The channels that the network is told beside the state."""
    return network.extra if isinstance(network, UNet) else 0


def input_shape(network: Network) -> tuple[int, ...]:
    """Of what the network is given of a picture: the state, with what it is told joined to the channels."""
    channels, *size = network.shape
    return (channels + extra_of(network), *size)


def refuse_other_inputs(spec: Spec) -> None:
    """For what runs a network on a state, its times and a label, and on what is kept where it sees the mask."""
    if spec.network.guided:
        raise InvalidInput(
            "the network takes the guidance as an input; expected one of a fixed guidance: "
            "`pyflow bake CHECKPOINT --guidance G --out FOLDER` makes that"
        )
    extra = extra_of(spec.network)
    if extra and not spec.network.sees_mask:
        told = spec.network.shape[0] + 1
        raise InvalidInput(
            f"the network takes extra={extra} channels beside the state; expected 0, or {told} for the kept picture "
            "and its mask: the sampler and the exporter have nothing else to give it there, call the model itself"
        )


def _expect_common(network: Network) -> None:
    for name in ("shape", "multipliers"):
        sizes = getattr(network, name, (1,))
        _expect(sizes and all(size >= 1 for size in sizes), name, sizes, "positive sizes")
    _expect(network.classes >= 0, "classes", network.classes, "0 or more")
    waves = getattr(network, "fastest_wave", FASTEST_WAVE)
    _expect(1 <= waves <= 1000, "fastest_wave", waves, "1 to 1000 radians")
    _expect(network.times in (1, 2), "times", network.times, "1 (an instant) or 2 (an average over s..t)")


def _expect(holds: Any, name: str, came: Any, expected: str) -> None:
    if not holds:
        raise InvalidInput(f"{name} is {came}; expected {expected}")

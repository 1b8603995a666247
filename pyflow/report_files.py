"""What `pyflow report` is given: the JSONs of `pyflow eval` and `pyflow bench --json`, read and checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .artefact import read_json
from .errors import InvalidArtefact, InvalidInput
from .records import from_json

FORMAT = 1
WAY_OUT = "expected JSON files of `pyflow eval` or `pyflow bench --json`"
_LARGEST = 1e300
_PNG = b"\x89PNG\r\n\x1a\n"


class _Numbers:
    """What a record of figures refuses: numbers that are not finite, by the names of their fields."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _refuse_infinite(name, value)


@dataclass(frozen=True)
class Interval(_Numbers):
    """A mean; of a single seed without `low` and `high`."""

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.low is None) != (self.high is None):
            raise InvalidInput(f"low is {self.low} and high {self.high}; expected both or none")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise InvalidInput(f"value is {self.value}; expected one in its interval, {self.low} to {self.high}")

    def times(self, factor: float) -> "Interval":
        bounds = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Interval(self.value * factor, *bounds)


@dataclass(frozen=True)
class Against(_Numbers):
    name: str
    ssim: float
    lpips: float | None = None


@dataclass(frozen=True)
class Row(_Numbers):
    """One plan of an evaluation."""

    steps: int
    calls: int
    grid: Any
    frechet: Interval
    kernel: Interval
    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval
    per_class: dict[str, dict[str, Interval]]
    images_per_second: float
    ms_per_image: float
    seconds: float
    denoiser_share: float
    extractor_share: float
    label_accuracy: Interval | None = None
    straightness: float | None = None
    no_straightness: str | None = None  # why
    against: Against | None = None
    sheet: str | None = None
    cell: tuple[int, ...] = ()  # (height, width) of a picture of the sheet
    gap: int = 0  # pixels around it
    scale: int = 0  # pixels of the sheet for each of these

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "calls", "ms_per_image", "images_per_second"):
            _refuse_below(name, getattr(self, name))
        if self.sheet is not None:
            self._refuse_unmeasured()

    def _refuse_unmeasured(self) -> None:
        missing = [name for name in ("cell", "gap", "scale") if not getattr(self, name)]
        if missing:
            raise InvalidInput(f"sheet {self.sheet!r} has no {' and no '.join(missing)} beside it; evaluate again")
        if len(self.cell) != 2:
            raise InvalidInput(f"cell is {self.cell}; expected the height and width of the sheet's pictures")
        for name, value in (("height of a cell", self.cell[0]), ("width of a cell", self.cell[1])):
            _refuse_below(name, value)
        for name in ("gap", "scale"):
            _refuse_below(name, getattr(self, name))

    @property
    def plan(self) -> tuple[int, str]:
        return self.steps, json.dumps(self.grid)

    @property
    def grid_name(self) -> str:
        """Nothing where it is the usual one."""
        return "" if self.grid == "uniform" else self.grid if isinstance(self.grid, str) else "own"

    @property
    def label(self) -> str:
        return f"{self.steps} {self.grid_name}".rstrip()


@dataclass(frozen=True)
class Subject:
    source: str
    backend: str
    identity: str


@dataclass(frozen=True)
class Reference:
    """The real pictures."""

    count: int
    sha256: str


@dataclass(frozen=True)
class Step(_Numbers):
    """Of a training curve."""

    step: int
    loss: float


@dataclass(frozen=True)
class Eval(_Numbers):
    """A file of `pyflow eval`."""

    path: Path
    name: str
    method: str
    subject: Subject
    data: str
    features: str
    num_samples: int
    seeds: tuple[int, ...]
    guidance: float
    solver: str | None
    floor: dict[str, float]
    reference: Reference
    rows: tuple[Row, ...]
    training: tuple[Step, ...]
    classes: tuple[str, ...]
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_twice("rows", [row.plan for row in self.rows])
        if not self.name:
            raise InvalidInput("name is ''; expected the method's name")
        known = {str(label) for label in range(len(self.classes))}
        for row in self.rows:
            strangers = sorted(set(row.per_class) - known)
            if strangers:
                raise InvalidInput(f"per_class names the class {strangers[0]}; expected numbers below {len(known)}")
            if row.sheet is not None:
                _refuse_sheet(self.path.parent, row.sheet)

    @property
    def setting(self) -> tuple[object, ...]:
        """Figures are comparable where this is equal."""
        return self.data, self.features, self.reference, self.num_samples, self.classes


@dataclass(frozen=True)
class Times(_Numbers):
    """One row of a latency table."""

    steps: int
    batch: int
    median_ms: float
    p99_ms: float
    ms_per_image: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch", "median_ms", "p99_ms", "ms_per_image"):
            _refuse_below(name, getattr(self, name))


@dataclass(frozen=True)
class Bench(_Numbers):
    """A file of `pyflow bench --json`."""

    path: Path
    name: str
    subject: Subject
    guidance: float
    rows: tuple[Times, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_twice("rows", [(row.steps, row.batch) for row in self.rows])


def read(paths: Sequence[Path]) -> tuple[list[Eval], list[Bench]]:
    """Every file, in the order that they came."""
    if not paths:
        raise InvalidInput(f"no file came; {WAY_OUT}")
    found = [_read(path) for path in paths]
    benches = [one for one in found if isinstance(one, Bench)]
    for at, bench in enumerate(benches):
        for other in benches[:at]:
            if bench.name == other.name:
                raise InvalidInput(
                    f"{other.path} and {bench.path} are both named {bench.name!r}; expected one latency table a name: "
                    "leave one away, or give it another --name"
                )
    return [one for one in found if isinstance(one, Eval)], benches


def _read(path: Path) -> Eval | Bench:
    if not path.is_file():
        raise InvalidInput(f"{path} is no file; {WAY_OUT}")
    data = read_json(path, constant=float)  # a NaN is refused with the name of its field
    _refuse_unwritable(path, data)
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in ("eval", "bench"):
        raise InvalidArtefact(f"{path}: kind is {json.dumps(kind)}; {WAY_OUT}")
    if data.get("format") != FORMAT:
        raise InvalidArtefact(f"{path}: format is {json.dumps(data.get('format'))}; this pyflow reads format {FORMAT}")
    cls, row = (Eval, Row) if kind == "eval" else (Bench, Times)
    rows = data.get("rows")
    if not isinstance(rows, list) or not rows:
        raise InvalidArtefact(f"{path}: rows is {json.dumps(rows)[:80]}; expected a list of one row or more")
    built = tuple(_known(row, one, f"{path}: rows[{at}]") for at, one in enumerate(rows))
    return _known(cls, {**data, "rows": None}, str(path), rows=built, path=path)


def _known(cls: type, data: Any, where: str, **built: Any) -> Any:
    """A `cls` of those fields that a report needs; what else is in the file belongs to who wrote it."""
    if not isinstance(data, Mapping):
        return from_json(cls, data, where)
    names = {one.name for one in fields(cls)} - set(built)
    return from_json(cls, {name: value for name, value in data.items() if name in names}, where, **built)


def _refuse_unwritable(path: Path, data: Any) -> None:
    try:
        f"{path}{json.dumps(data, ensure_ascii=False)}".encode()
    except UnicodeEncodeError as error:
        wrong = error.object[error.start : error.start + 1]
        raise InvalidArtefact(
            f"{ascii(str(path))[1:-1]} has {wrong!a} in its text or its name, half of a character that no page "
            "can hold; expected whole ones: name it anew"
        ) from error


def _refuse_infinite(name: str, value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_infinite(f"{name}.{key}", inner)
    elif isinstance(value, (int, float)) and not abs(value) < _LARGEST:
        raise InvalidInput(f"{name} is {str(value)[:40]}; expected a finite number")


def _refuse_below(name: str, value: float) -> None:
    if not value > 0:
        raise InvalidInput(f"{name} is {value}; expected a number above 0")


def _refuse_twice(name: str, keys: Sequence[object]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise InvalidInput(f"{name} holds {key} twice; expected one row a plan")


def _refuse_sheet(folder: Path, name: str) -> None:
    if Path(name).name != name:
        raise InvalidInput(f"sheet is {name!r}; expected the plain name of a PNG beside the file")
    try:
        with (folder / name).open("rb") as file:
            begins = file.read(len(_PNG))
    except OSError:
        raise InvalidInput(f"sheet {name!r} is not beside the file; copy it there, or evaluate again") from None
    if begins != _PNG:
        raise InvalidInput(f"sheet {name!r} is no PNG; evaluate again")

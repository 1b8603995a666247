"""The front of the C++ room, and the only importer of `_C`: here every argument is checked, there none is.

Arrays are float32 NumPy arrays; one that is not contiguous is copied once. `mask`, `image` and `noise0` may be given
in any shape that broadcasts to the batch.
"""

import importlib.util
import mmap
import operator
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .core import Plan, Row
from .errors import BackendUnavailable, InvalidInput
from .noise import PICTURE_LIMIT, SEED_LIMIT

try:
    from . import _C
except ImportError as error:
    raise BackendUnavailable(
        f"pyflow's C++ extension cannot be imported ({error}); build it from the source tree with: pip install -e ."
    ) from error

Denoiser = _C.Denoiser
NetworkDenoiser = _C.NetworkDenoiser
Floats = npt.NDArray[np.float32]

_WORD_LIMIT = 2**32
_FLOAT32 = np.dtype(np.float32)
_FLOAT32_END = (2 - 2**-24) * 2.0**127  # what rounds to infinity begins here
_H, _KA = Row._fields.index("h"), Row._fields.index("ka")
_NOT_FINITE = "expected a number that is finite in float32"


class Samples(NamedTuple):
    """The states after the last row, and for each row the seconds that it took and those that its network call took."""

    states: Floats
    row_seconds: npt.NDArray[np.float64]
    denoiser_seconds: npt.NDArray[np.float64]


def isa() -> str:
    """The instruction set that runs the loops: the CPU's best, or the one that PYFLOW_ISA names."""
    return _C.isa()


def supported_isas() -> list[str]:
    """What PYFLOW_ISA may name on this machine, worst first."""
    return _C.supported_isas()


# ---- checks
def _count(name: str, value: int, low: int, limit: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidInput(f"{name} is {value!r}; expected an integer") from None
    if not low <= number < limit:
        raise InvalidInput(f"{name} is {number}; expected {low} to {limit - 1}")
    return number


def _floats(name: str, value: Floats, shape: tuple[int, ...] | None = None) -> Floats:
    if not isinstance(value, np.ndarray) or value.dtype != _FLOAT32:
        came = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise InvalidInput(f"{name} is {came}; expected a NumPy array of float32")
    if shape is not None and value.shape != shape:
        raise InvalidInput(f"{name} has shape {value.shape}; expected {shape}")
    return np.ascontiguousarray(value)


def _spread(name: str, value: Floats | None, shape: tuple[int, ...]) -> Floats | None:
    if value is None:
        return None
    value = _floats(name, value)
    if value.shape == shape:
        return value
    try:
        return np.ascontiguousarray(np.broadcast_to(value, shape))
    except ValueError:
        raise InvalidInput(f"{name} has shape {value.shape}; expected one that broadcasts to {shape}") from None


def _finite(name: str, value: Floats | None, shape: tuple[int, ...]) -> Floats | None:
    value = _spread(name, value, shape)
    if value is not None and np.count_nonzero(np.isfinite(value)) != value.size:
        raise InvalidInput(f"{name} holds a NaN or an infinity; expected finite values")
    return value


def _scalar(name: str, value: float) -> float:
    number = float(value)
    if not abs(number) < _FLOAT32_END:
        raise InvalidInput(f"{name} is {value}; {_NOT_FINITE}")
    return number


def _table(plan: Sequence[Row]) -> npt.NDArray[np.float64]:
    """The rows as a table that the loop can run; of a Plan it is made once."""
    if isinstance(plan, Plan) and plan.table is not None:
        return plan.table
    table = _rows(plan)
    if table[0, _H] != 0.0:
        raise InvalidInput("row 1 has h != 0, and there is no prediction before it; expected h=0 in the first row")
    if isinstance(plan, Plan):
        table.flags.writeable = False
        plan.table = table
    return table


def _rows(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """The rows as a table; refuses one that no step can run."""
    try:
        table = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(f"the plan is {rows!r}; expected a list of rows {Row._fields}") from None
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] != len(Row._fields):
        raise InvalidInput(f"the plan has shape {table.shape}; expected rows {Row._fields}, at least one")
    if not np.abs(table).max() < _FLOAT32_END:
        k, column = np.argwhere(~(np.abs(table) < _FLOAT32_END))[0].tolist()
        raise InvalidInput(f"{Row._fields[column]} of row {k + 1} is {table[k, column]}; {_NOT_FINITE}")
    for k in np.flatnonzero(~table[:, 2:_KA].any(axis=1))[:1].tolist():
        raise InvalidInput(f"row {k + 1} has a=b=h=n=0; expected at least one term for the new state")
    return table


def _refuse_mask(table: npt.NDArray[np.float64], image: Floats | None) -> None:
    """Rows that say nothing of the kept pixels, or speak of an image that is not there."""
    for k in np.flatnonzero(~table[:, _KA:].any(axis=1))[:1].tolist():
        raise InvalidInput(f"row {k + 1} has ka=ks=0; a mask needs at least one term for the kept pixels")
    for k in np.flatnonzero(table[:, _KA])[:1].tolist():
        _need(f"row {k + 1}", "ka", table[k, _KA], "image", image)


def _need(row: str, coefficient: str, value: float, operand: str, array: Floats | None) -> None:
    if value != 0.0 and array is None:
        raise InvalidInput(f"{row} has {coefficient}={value} and {operand} is None; expected an array")


# ---- the step, the noise, the picture
def fused_step(
    row: Row,
    *,
    x: Floats,
    cond: Floats,
    uncond: Floats | None = None,
    guidance: float = 1.0,
    previous: Floats | None = None,
    noise: Floats | None = None,
    mask: Floats | None = None,
    image: Floats | None = None,
    noise0: Floats | None = None,
    isa: str | None = None,
) -> tuple[Floats, Floats]:
    """core.fused_step in C++, equal to it bit for bit; `isa` runs one instruction set instead of the chosen one."""
    table = _rows([row])
    row = Row(*table[0].tolist())
    x = _floats("x", x)
    cond = _floats("cond", cond, x.shape)
    uncond, previous, noise = (
        None if value is None else _floats(name, value, x.shape)
        for name, value in (("uncond", uncond), ("previous", previous), ("noise", noise))
    )
    mask, image, noise0 = (
        _spread(name, value, x.shape) for name, value in (("mask", mask), ("image", image), ("noise0", noise0))
    )
    _need("the row", "h", row.h, "previous", previous)
    _need("the row", "n", row.n, "noise", noise)
    if mask is not None:
        _refuse_mask(table, image)
        _need("the row", "ks", row.ks, "noise0", noise0)
    out = np.empty_like(x)
    guided = None if uncond is None else np.empty_like(x)
    _C.fused_step(
        row, x, cond, uncond, _scalar("guidance", guidance), previous, noise, mask, image, noise0, out, guided, isa
    )
    return out, cond if guided is None else guided


def normal(seed: int, first: int, pictures: int, size: int, row: int, *, isa: str | None = None) -> Floats:
    """float32 (pictures, size): the noise of pictures first, first+1, ... of this seed for row `row` (0: the start)."""
    seed, first = _picture_numbers(seed, first, _count("pictures", pictures, 0, PICTURE_LIMIT + 1))
    out = np.empty((pictures, _count("size", size, 0, 4 * _WORD_LIMIT + 1)), np.float32)
    _C.normal(seed, first, pictures, size, _count("row", row, 0, _WORD_LIMIT), out, isa)
    return out


def _picture_numbers(seed: int, first: int, pictures: int) -> tuple[int, int]:
    seed, first = _count("seed", seed, 0, SEED_LIMIT), _count("first", first, 0, PICTURE_LIMIT)
    if first + pictures > PICTURE_LIMIT:
        raise InvalidInput(f"first is {first} with {pictures} pictures; picture numbers end at {PICTURE_LIMIT - 1}")
    return seed, first


def to_uint8(pictures: Floats) -> npt.NDArray[np.uint8]:
    """float32 NCHW in -1..1 to uint8 NHWC, clamped and rounded to nearest; a NaN or infinity anywhere is refused."""
    pictures = _floats("pictures", pictures)
    if pictures.ndim != 4:
        raise InvalidInput(f"pictures has shape {pictures.shape}; expected (pictures, channels, height, width)")
    return _C.to_uint8(pictures)


# ---- denoisers
def onnx_denoiser(model: bytes, threads: int = 0) -> Denoiser:
    """An ONNX model, given as the bytes of its file, on ONNX Runtime's CPU provider; 0 threads: one a physical core.

    The model reads x and any of s, t (float32) and label (int64), batch first; its first output is the prediction.
    """
    if not isinstance(model, bytes):
        raise InvalidInput(f"model is a {type(model).__name__}; expected the bytes of an .onnx file")
    threads = _count("threads", threads, 0, 2**15)
    # Wheels from 1.29 on send telemetry and write below ~/.cache unless this is set before the library is opened.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return _C.OnnxDenoiser(str(_onnx_runtime_library()), model, threads)


def _onnx_runtime_library() -> Path:
    """The library inside the installed wheel; importing the package itself would take 100 ms and give nothing."""
    package = importlib.util.find_spec("onnxruntime")
    folders = package.submodule_search_locations if package else None
    libraries = [path for folder in folders or () for path in Path(folder, "capi").glob("libonnxruntime.so.*")]
    if not libraries:
        where = f"no libonnxruntime.so in {', '.join(folders)}" if folders else "onnxruntime is not installed"
        raise BackendUnavailable(f'ONNX Runtime is not here: {where}; pip install "pyflow-engine[onnx]"')
    return max(libraries)


def aoti_denoiser(
    library: Path,
    *,
    torch_library: Path,
    shape: Sequence[int],
    extra: int = 0,
    inputs: Sequence[str],
    classes: int,
    device: str,
) -> Denoiser:
    """A network that AOTInductor compiled to `library`, run by the loaded libtorch_cpu.so; see pyflow.engines.aoti."""
    if "x" not in inputs or len(set(inputs)) < len(inputs) or not {*inputs} <= {"x", "s", "t", "label"}:
        raise InvalidInput(f"inputs is {inputs!r}; expected x and any of s, t, label, each once")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise InvalidInput(f"device is {device!r}; expected cpu, cuda or cuda:0")
    device = "cuda:0" if device == "cuda" else device
    classes, extra = _count("classes", classes, 0, 2**31), _count("extra", extra, 0, 2**31)
    return _C.AotiDenoiser(str(library), str(torch_library), _extents(shape), extra, list(inputs), classes, device)


def network_denoiser(
    content: bytes | bytearray | memoryview | mmap.mmap, threads: int = 0, isa: str | None = None, profile: bool = False
) -> NetworkDenoiser:
    """A native network, given as the bytes of its file or a mapping of it; 0 threads: one a processor.

    `content` is read where it lies, and kept; its kernels are fastest where it starts at a multiple of 64, as a mapping
    does and bytes may not. `isa` runs one instruction set instead of the chosen one. With `profile`, `take_profile()`
    tells the seconds of each operation.
    """
    try:
        view = memoryview(content)
    except TypeError:
        raise InvalidInput(f"content is a {type(content).__name__}; expected bytes or another buffer") from None
    if not view.c_contiguous:
        raise InvalidInput(f"content is a buffer with strides {view.strides}; expected a contiguous one")
    if not isinstance(isa, str | None):
        raise InvalidInput(f"isa is {isa!r}; expected None or one of {', '.join(supported_isas())}")
    return _C.NetworkDenoiser(content, isa, _count("threads", threads, 0, 2**15), bool(profile))


def callable_denoiser(
    function: Callable[[Floats, Floats, Floats, npt.NDArray[np.int64], Floats], object],
    shape: Sequence[int],
    extra: int = 0,
) -> Denoiser:
    """A Python function as the network: `function(x, s, t, label, out)` fills `out`, (batch, *shape), in place.

    The arrays are views of the sampler's memory, good for one call; with guidance the batch holds every picture twice,
    labelled first. x has `extra` channels behind those of the state, with what `sample` is given as `told`.
    """
    if not callable(function):
        raise InvalidInput(f"function is a {type(function).__name__}; expected something to call")
    return _C.CallableDenoiser(function, _extents(shape), _count("extra", extra, 0, 2**31))


def _extents(shape: Sequence[int]) -> list[int]:
    return [_count("an extent of shape", extent, 1, 2**31) for extent in shape]


# ---- the loop
def sample(
    denoiser: Denoiser,
    plan: Sequence[Row],
    *,
    batch: int,
    seed: int = 0,
    first: int = 0,
    guidance: float = 1.0,
    label: int | Sequence[int] | npt.NDArray[np.int64] | None = None,
    null_label: int = 0,
    mask: Floats | None = None,
    image: Floats | None = None,
    noise0: Floats | None = None,
    told: Floats | None = None,
    on_row: Callable[[int], object] | None = None,
) -> Samples:
    """Run a plan in C++, without the GIL but inside Python callbacks; Ctrl-C is honoured between rows.

    `label` is one for all or one a picture; None means `null_label` everywhere. `noise0` replaces the noise that seed
    and first tell. `told` are the channels beside the state, of a network that is told any. `on_row(k)` is called after
    row k, from 0; what it raises ends the run.
    """
    if not isinstance(denoiser, _C.Denoiser):
        raise InvalidInput(f"denoiser is a {type(denoiser).__name__}; expected one that this module makes")
    batch = _count("batch", batch, 1, PICTURE_LIMIT + 1)
    seed, first = _picture_numbers(seed, first, batch)
    guidance = _scalar("guidance", guidance)
    shape = (batch, *denoiser.shape)
    table = _table(plan)
    if guidance != 1.0 and (label is None or "label" not in denoiser.inputs):
        why = "label is None" if label is None else f"this network reads {', '.join(denoiser.inputs)}"
        raise InvalidInput(f"guidance is {guidance} and {why}; guidance needs a label and a network that reads it")
    labels = None if label is None else _labels(label, batch)
    if labels is not None and "label" not in denoiser.inputs:
        raise InvalidInput(f"label is {label!r} and the network reads {', '.join(denoiser.inputs)}; expected None")
    mask, image = _finite("mask", mask, shape), _finite("image", image, shape)
    noise0 = _finite("noise0", noise0, shape)
    if mask is not None:
        if mask.min() < 0 or mask.max() > 1:
            raise InvalidInput(f"mask runs from {mask.min()} to {mask.max()}; expected 0 (kept) to 1 (generated)")
        _refuse_mask(table, image)
    elif image is not None:
        raise InvalidInput("image is given and mask is None; expected a mask that says what is kept")
    null_label, told = _count("null_label", null_label, 0, 2**63), _told(told, denoiser, batch)
    return Samples(
        *_C.sample(
            *(denoiser, table, batch, seed, first, guidance, labels, null_label, mask, image, noise0, told, on_row)
        )
    )


def _told(told: Floats | None, denoiser: Denoiser, batch: int) -> Floats | None:
    if denoiser.extra == 0:
        if told is not None:
            raise InvalidInput(f"told is a {type(told).__name__}; expected None: this network is told the state alone")
        return None
    shape = (batch, denoiser.extra, *denoiser.shape[1:])
    if told is None:
        raise InvalidInput(f"told is None; expected {shape}: this network is told {denoiser.extra} channels more")
    return _finite("told", told, shape)


def _labels(label: int | Sequence[int] | npt.NDArray[np.int64], batch: int) -> npt.NDArray[np.int64]:
    given = np.asarray(label)
    labels = given.astype(np.int64, copy=False) if given.dtype.kind in "iu" else None
    if labels is None or labels.shape not in ((), (batch,)) or np.count_nonzero(labels < 0):
        raise InvalidInput(f"label is {label!r}; expected an integer, 0 or more, or {batch} of them")
    return np.ascontiguousarray(labels if labels.shape else np.full(batch, labels))

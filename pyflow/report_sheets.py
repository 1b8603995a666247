"""The sheets of pictures that lie beside evaluations: shown whole, and cut for a row a plan of the same seeds."""

import numpy as np

from . import page
from .errors import InvalidArtefact
from .report_files import Eval, Row
from .report_groups import Group, Method
from .report_plots import Press
from .report_words import figure


def same_seeds(group: Group, press: Press) -> str:
    """A row a plan: one picture of each class, of the same noise all the way down."""
    shown = [(method, row, _sheet(method, row)) for method, row in group.plans if row.sheet]
    if not shown:
        return ""
    shape = shown[0][2].shape
    for method, row, sheet in shown:
        if sheet.shape != shape:
            raise InvalidArtefact(
                f"{_file(method, row).path}: sheet {row.sheet!r} holds pictures {sheet.shape}; expected {shape} as in "
                f"{_file(*shown[0][:2]).path}"
            )
    names = [method.called(row) for method, row, _ in shown]
    classes = group.about.classes[: shape[0]]
    pictures = np.stack([sheet[:, 0] if classes else sheet[0] for _, _, sheet in shown])
    return press.rows("same-seeds", pictures, names, classes)


def sheets(group: Group) -> str:
    shown = [
        (_file(method, row).path.parent / row.sheet, f"{method.called(row)}, distance {figure(row.frechet.value)}")
        for method, row in group.plans
        if row.sheet
    ]
    return page.figures(shown) + page.text("A row a class, a column a seed; uncurated.") if shown else ""


def _file(method: Method, row: Row) -> Eval:
    return next(one for one in method.files if row in one.rows)


def _sheet(method: Method, row: Row) -> np.ndarray:
    """The pictures of a sheet, (rows, columns, height, width, channels)."""
    from PIL import Image

    file = _file(method, row)
    try:
        with Image.open(file.path.parent / str(row.sheet)) as image:
            pixels = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except OSError as error:
        raise InvalidArtefact(f"{file.path}: sheet {row.sheet!r} can't be read ({error}); evaluate again") from error
    return _cut(pixels[..., None] if pixels.ndim == 2 else pixels, file, row)


def _cut(pixels: np.ndarray, file: Eval, row: Row) -> np.ndarray:
    """What `grid_of` put together."""
    small, starts = pixels[:: row.scale, :: row.scale], []
    for side, inner, whole in zip(row.cell, small.shape, pixels.shape):
        if whole % row.scale or inner <= row.gap or (inner - row.gap) % (side + row.gap):
            raise InvalidArtefact(
                f"{file.path}: sheet {row.sheet!r} has {pixels.shape[0]}x{pixels.shape[1]} pixels, which is no grid of "
                f"pictures of {row.cell} with gaps of {row.gap} at scale {row.scale}; evaluate again"
            )
        starts.append(range(row.gap, inner, side + row.gap))
    height, width = row.cell
    return np.stack([np.stack([small[y : y + height, x : x + width] for x in starts[1]]) for y in starts[0]])

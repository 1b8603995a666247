"""The sheets of pictures that lie beside evaluations: shown whole, and cut for a row a plan of the same seeds."""

import numpy as np

from . import page
from .errors import InvalidArtefact
from .report_files import Eval, Row
from .report_groups import Group, Method
from .report_plots import Press
from .report_words import figure

_GREY = 128  # between the pictures of a sheet


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
    found = _cut(pixels[..., None] if pixels.ndim == 2 else pixels)
    if found is None:
        raise InvalidArtefact(f"{file.path}: sheet {row.sheet!r} has no grey lines between pictures; evaluate again")
    return found


def _cut(pixels: np.ndarray) -> np.ndarray | None:
    """What `grid_of` put together, at any scale: the grey lines tell where."""
    down, across = (_between((pixels == _GREY).all(axis=(axis, 2))) for axis in (1, 0))
    if not down or not across or down[0].start != across[0].start:
        return None
    scale = down[0].start
    return np.stack([np.stack([pixels[y, x][::scale, ::scale] for x in across]) for y in down])


def _between(grey: np.ndarray) -> list[slice]:
    """The stretches between grey lines, all of one length; none where there is no such pattern."""
    changes = np.flatnonzero(np.diff(grey.astype(int))) + 1
    found = [slice(int(start), int(end)) for start, end in zip(changes[::2], changes[1::2])]
    sizes = {one.stop - one.start for one in found}
    return found if grey[0] and grey[-1] and len(sizes) == 1 and not sizes.pop() % found[0].start else []

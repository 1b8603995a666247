"""`pyflow masks` and `pyflow inpaint`: masks as a sheet of pictures, and a picture repainted where a mask is white."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import core, masks, resampling
from .errors import InvalidInput
from .pictures import grid_of, hidden, open_image, read_image, read_mask, writable
from .sampler import SEARCHED, STEPS_LIMIT, count
from .sources import open_source

if TYPE_CHECKING:
    import PIL.Image

OWN, ALL = "own", "all"
SCALE_LIMIT, COUNT_LIMIT, PRESUMED = 64, 1024, 32
PIXELS_LIMIT = 2**26  # of a sheet
_KINDS = ", ".join([*masks.KINDS, *masks.GROUPS])


def add_masks(made: argparse.ArgumentParser) -> None:
    made.add_argument("--out", type=Path, default=Path("masks.png"), help="the picture: a row a kind, a column a mask")
    made.add_argument("--kind", default=ALL, help=f"one of {_KINDS}; {ALL} for a row of each")
    made.add_argument("--own", type=Path, default=None, help="a mask of your own, black and white; the others fit it")
    made.add_argument("--size", type=int, default=None, help=f"pixels a side ({PRESUMED}, or the own mask's)")
    made.add_argument("--seed", type=int, default=0, help="seed of the masks")
    made.add_argument("--count", type=int, default=10, help="masks a kind")
    made.add_argument("--scale", type=int, default=2, help="screen pixels a pixel")


def add_inpaint(made: argparse.ArgumentParser) -> None:
    made.add_argument("--image", type=Path, required=True, help="the picture to repaint")
    made.add_argument("--mask", required=True, help=f"a black and white picture, white to repaint, or one of {_KINDS}")
    made.add_argument("--out", type=Path, default=Path("inpainted.png"), help="original, masked, and the results")
    made.add_argument("--count", type=int, default=4, help="how many results")
    made.add_argument("--steps", type=int, default=4, help="network calls (heun makes two a step)")
    made.add_argument("--label", type=int, default=None, help="the class; none asks for no label")
    made.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    made.add_argument("--seed", type=int, default=0, help="seed of the noise, and of a mask by its kind")
    made.add_argument("--solver", default=None, help=f"one of {', '.join(core.SOLVERS)}; if none, renoise")
    made.add_argument("--grid", default="uniform", help=f"one of {', '.join([*core.GRIDS, SEARCHED])}")
    jumps = f"times that each stretch of steps is passed, with {', '.join(resampling.SOLVERS)}"
    made.add_argument("--resamples", type=int, default=1, help=jumps)
    made.add_argument("--jump", type=int, default=1, help="steps of a stretch")
    made.add_argument("--scale", type=int, default=4, help="screen pixels a pixel")


def draw_masks(arguments: argparse.Namespace) -> None:
    out, scale = writable(arguments.out), count("scale", arguments.scale, 1, SCALE_LIMIT)
    columns, size = count("count", arguments.count, 1, COUNT_LIMIT), arguments.size
    own = None if arguments.own is None else _own_mask(arguments.own)
    if own is not None and size not in (None, *own.shape[1:]):
        raise InvalidInput(f"--size is {size}, the own mask has {own.shape[1:]} pixels; expected no --size beside it")
    height, width = own.shape[1:] if own is not None else (PRESUMED if size is None else size,) * 2
    kinds = [*masks.KINDS, *masks.GROUPS] if arguments.kind == ALL else [arguments.kind]
    _refuse_large(columns * (len(kinds) + (own is not None)), height, width, scale)
    rows = {kind: masks.draw(kind, height, width, columns, seed=arguments.seed) for kind in kinds}
    if own is not None:
        rows[OWN] = np.broadcast_to(own, (columns, *own.shape))
    images = np.concatenate([*rows.values()]).transpose(0, 2, 3, 1)
    sheet = grid_of((255 * images).astype(np.uint8), columns, scale)
    _named(sheet, list(rows)).save(out)
    print(f"{'kind':>10} {'generated':>10}")
    for kind, drawn in rows.items():
        shares = drawn.mean(axis=(1, 2, 3))
        print(f"{kind:>10} {shares.min():5.0%}{'' if shares.min() == shares.max() else f' to {shares.max():.0%}'}")
    print(f"{columns} masks of {height}x{width} a kind, white is repainted: {out}")


def inpaint(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    out, scale = writable(arguments.out), count("scale", arguments.scale, 1, SCALE_LIMIT)
    results = count("count", arguments.count, 1, COUNT_LIMIT)
    count("steps", arguments.steps, 1, STEPS_LIMIT)
    if arguments.resamples == 1 and arguments.jump != 1:
        raise InvalidInput(
            f"--jump is {arguments.jump} and --resamples 1, which passes no stretch again; expected --resamples 2 or "
            "more, or no --jump"
        )
    opened = open_image(arguments.image)
    flow = open_source(arguments.source, arguments.threads, arguments.device)
    shape = flow.picture_shape
    _, height, width = shape
    _refuse_large(results + 2, height, width, scale)
    image = read_image(opened, shape)
    if arguments.mask in (*masks.KINDS, *masks.GROUPS):
        mask = masks.draw(arguments.mask, height, width, 1, seed=arguments.seed)[0]
    else:
        mask = read_mask(open_image(_mask_file(arguments.mask)), shape)
    rows = {name: getattr(arguments, name) for name in ("steps", "grid", "resamples", "jump")}
    rows["solver"] = arguments.solver or flow.inpaint_solver
    asked = {name: getattr(arguments, name) for name in ("label", "guidance", "seed")}
    plan = flow.plan(**rows)
    with tqdm(total=len(plan), desc="rows", unit="row", disable=len(plan) < 10) as bar:
        output = flow.inpaint(image, mask[0] == 1, batch=results, **rows, **asked, callback=lambda row: bar.update())
    shown = np.concatenate([image[None], hidden(image, mask)[None], output.images])
    grid_of(shown, min(len(shown), 10), scale).save(out)
    calls, ms = len(output.row_seconds), 1e3 * output.row_seconds.sum()
    print(f"original, masked, {results} results of {calls} calls in {ms:.1f} ms, {mask.mean():.0%} repainted: {out}")


def _refuse_large(pictures: int, height: int, width: int, scale: int) -> None:
    pixels = pictures * height * width * scale**2
    if pixels > PIXELS_LIMIT:
        raise InvalidInput(
            f"{pictures} pictures of {height}x{width} at --scale {scale} make a sheet of {pixels:,} pixels; expected "
            f"{PIXELS_LIMIT:,} at most: lower --count, --scale or the size"
        )


def _mask_file(named: str) -> Path:
    path = Path(named)
    if not path.exists():
        raise InvalidInput(f"--mask is {named!r}; expected a file that is there, or one of {_KINDS}")
    return path


def _own_mask(path: Path) -> np.ndarray:
    opened = open_image(path)
    return read_mask(opened, (1, opened.height, opened.width))


def _named(sheet: "PIL.Image.Image", names: Sequence[str]) -> "PIL.Image.Image":
    """The sheet with a name at the left of each row."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=14)
    room = 12 + max(round(font.getlength(name)) for name in names)
    wider = Image.new("L", (sheet.width + room, sheet.height), 255)
    wider.paste(sheet, (room, 0))
    pen, height = ImageDraw.Draw(wider), sheet.height / len(names)
    for row, name in enumerate(names):
        pen.text((room - 6, (row + 0.5) * height), name, fill=0, font=font, anchor="rm")
    return wider

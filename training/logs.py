"""The log of a run, in NAME.log/ beside its checkpoint NAME, whose own folder is swapped at each save.

log.jsonl always, a line for each step that is logged; TensorBoard and Weights & Biases where they are asked for.
"""

import importlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyflow.artefact import write_file
from pyflow.errors import BackendUnavailable, InvalidInput

if TYPE_CHECKING:
    import PIL.Image

LINES, WANDB_RUN = "log.jsonl", "wandb-run"
LOGS = {
    "tensorboard": ("torch.utils.tensorboard", 'pip install "pyflow-engine[logs]"'),
    "wandb": ("wandb", "pip install wandb"),
}


def folder_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.log")


def refuse_missing(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in LOGS:
            raise InvalidInput(f"logs names {kind!r}; expected some of {', '.join(LOGS)}")
        module, way_out = LOGS[kind]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise BackendUnavailable(f"logs names {kind!r}, which is not installed ({error}): {way_out}") from None


class Log:
    """A run that goes on from step `done` drops what was logged after it: each step is there once."""

    def __init__(self, folder: Path, done: int, kinds: Sequence[str], setting: Mapping[str, Any]) -> None:
        self.folder = folder
        kept = [line for line in logged(folder / LINES) if line["step"] <= done]
        write_file(folder / LINES, "".join(json.dumps(line) + "\n" for line in kept).encode())
        for picture in folder.glob("step-*.png"):
            if int(picture.stem.removeprefix("step-")) > done:
                picture.unlink()
        self.file = (folder / LINES).open("a", buffering=1)  # a line at a time: a killed run has all of them
        self.board = self.run = None
        if "tensorboard" in kinds:
            board = importlib.import_module("torch.utils.tensorboard")
            self.board = board.SummaryWriter(str(folder), purge_step=done + 1)
        if "wandb" in kinds:
            self.run = _wandb_run(folder, done, setting)

    def write(self, step: int, values: Mapping[str, float], picture: "PIL.Image.Image | None" = None) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        if picture is not None:
            picture.save(self.folder / f"step-{step:06d}.png")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log({**values}, step=step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish(exit_code=0 if kind is None else 1)


def logged(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole: a killed process may have torn the last one."""
    found = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found


def _wandb_run(folder: Path, done: int, setting: Mapping[str, Any]) -> Any:
    """The run of before when the training goes on, else a new one."""
    known = folder / WANDB_RUN
    if done == 0 or not known.is_file():
        write_file(known, uuid.uuid4().hex.encode())
    name = folder.name.removesuffix(".log")
    wandb = importlib.import_module("wandb")
    return wandb.init(
        project="pyflow", name=name, id=known.read_text(), resume="allow", dir=str(folder), config={**setting}
    )

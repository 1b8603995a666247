"""The log of a run, in NAME.log/ beside its checkpoint NAME, whose own folder is swapped at each save.

log.jsonl always, a line for each step that is logged; TensorBoard and Weights & Biases where they are asked for.
run.json says whose log it is: no run begins in the log of another.
"""

import importlib
import json
import math
import reprlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pyflow.artefact import json_bytes, read_json, refuse_blocked, sha256, sweep_files, write_file
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput
from pyflow.spec import Spec

if TYPE_CHECKING:
    import PIL.Image

LINES, RUN, WANDB_RUN, SAMPLES = "log.jsonl", "run.json", "wandb-run", "samples"
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


def refuse_others(folder: Path, spec: Spec, done: int, save_every: int) -> None:
    """Refuse a log whose lines this run would drop and not write again."""
    refuse_blocked(folder)
    way_out = f"move {folder.name} away, or name another folder for the run"
    number, torn = _no_line(folder / LINES)
    if number:
        raise InvalidInput(f"line {number} of {folder / LINES} is {torn}; expected a log of pyflow's: {way_out}")
    found = sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.exists() else []
    if done > 0 or not found:
        return
    if _whose(folder) != _identity(spec):
        told = ", ".join(found[:3])
        raise InvalidInput(f"{folder} holds {told}, which another run or program wrote; expected none: {way_out}")
    last = max((line["step"] for line in logged(folder / LINES)), default=0)
    if last > save_every:
        raise InvalidInput(f"{folder} goes to step {last}, and the checkpoint that it belongs to is gone: {way_out}")


class Log:
    """A run that goes on from step `done` drops what it logged after it: each step is there once."""

    def __init__(self, folder: Path, done: int, kinds: Sequence[str], setting: Mapping[str, Any], spec: Spec) -> None:
        self.folder = folder
        write_file(folder / RUN, json_bytes({"run": _identity(spec)}))
        sweep_files(folder)
        before = logged(folder / LINES)
        kept = [line for line in before if line["step"] <= done]
        write_file(folder / LINES, "".join(json.dumps(line) + "\n" for line in kept).encode())
        for line in before:
            if line["step"] > done:
                self._picture(line["step"]).unlink(missing_ok=True)
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
        shown = None if picture is None else np.asarray(picture.convert("RGB"))
        if picture is not None:
            picture.save(self._picture(step))
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            if shown is not None:
                self.board.add_image(SAMPLES, shown, step, dataformats="HWC")
        if self.run is not None:
            samples = {} if shown is None else {SAMPLES: importlib.import_module("wandb").Image(shown)}
            self.run.log({**values, **samples}, step=step)

    def _picture(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.png"

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
    texts = path.read_bytes().splitlines() if path.is_file() else []
    return [line for text in texts if (line := _line(text)) is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def _no_line(path: Path) -> tuple[int, str]:
    """The first line that no run wrote, from 1, and what it is; 0 where there is none."""
    if not path.is_file():
        return (1, "a folder") if path.exists() else (0, "")
    *whole, _ = path.read_bytes().split(b"\n")  # what stands after the last end of a line is torn, or nothing
    return next(((number, reprlib.repr(text)) for number, text in enumerate(whole, 1) if _line(text) is None), (0, ""))


def _identity(spec: Spec) -> str:
    """Of what is trained: a run of another recipe, network or start has another."""
    return sha256(json_bytes(spec.to_json()))


def _whose(folder: Path) -> object:
    try:
        told = read_json(folder / RUN)
    except InvalidArtefact:
        return None
    return told.get("run") if isinstance(told, dict) else None


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

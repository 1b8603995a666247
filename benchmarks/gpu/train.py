"""A teacher and its students on a GPU, in pieces that resume: trained, judged, and the small ones kept as models.

python benchmarks/gpu/train.py --out DIR --data FOLDER [--budget 510] [--total 25] [--tiny --device cpu]

FOLDER holds the parquet files of CIFAR-10. Call it again until train.json says that all is done: each call ends within
its seconds, and the next one goes on from the last save. The first call measures images a second and chooses the
largest teacher that still sees 8 million images; how long each run is stands in RUNS/plan.json from then on.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch
from card import card
from pyflow.training import pairs
from pyflow.training.batch import Batch, Draw, paired, unpaired
from pyflow.training.beginnings import begin
from pyflow.training.data import Dataset, load_dataset
from pyflow.training.recipes import SIZES, Recipe, recipe
from pyflow.training.trainer import train

import pyflow
from pyflow import checkpoint, commands
from pyflow.artefact import json_bytes, write_file
from pyflow.errors import InvalidInput
from pyflow.pictures import grid_of
from pyflow.quality import Judge

IMAGES = 8_000_000  # that a teacher should see; of the sizes that do in its minutes the largest is taken
SHIPPED_BYTES = 8_000_000
TRAINING = 0.65  # the share of all minutes in which weights change; the rest compiles, makes pairs and judges
COLUMNS = ("model", "steps", "guidance", "distance", "label_accuracy", "images_seen")
SHOWN = 10


@dataclass(frozen=True)
class Job:
    """A training run: its share of the minutes, the job whose weights it begins with, what it learns from."""

    name: str
    recipe: str
    share: float
    small: bool = True
    start: str | None = None
    from_pairs: bool = False


JOBS = (
    Job("teacher", "cfm", share=0.5, small=False),
    Job("small-teacher", "cfm", share=0.14),
    Job("reflow", "reflow", share=0.09, start="small-teacher", from_pairs=True),
    Job("lines", "lines", share=0.09, start="small-teacher", from_pairs=True),
    Job("meanflow", "meanflow", share=0.09, start="small-teacher"),
    Job("lsd", "lsd", share=0.09, start="small-teacher"),
)


@dataclass(frozen=True)
class Scale:
    """What a rehearsal does less of. `pairs` are made in `pair_steps` steps; `counts` are the steps judged."""

    batch: int
    warm: int  # steps before a measurement, and of it
    timed: int
    pairs: int
    pair_steps: int
    pictures: int
    judge: dict[str, int]
    save_every: int
    counts: tuple[int, ...]
    network: dict[str, Any]


GPU = Scale(512, 20, 40, 50_000, 20, 5000, {"steps": 2000}, 500, (1, 2, 4, 50), {})
NETWORK = {"network.channels": 8, "network.multipliers": (1, 2), "network.attention": (8,)}
TINY = Scale(8, 1, 2, 24, 2, 60, {"steps": 3, "batch": 8}, 2, (1, 2), NETWORK)


class Runs:
    """The folder of the runs, and the plan in it, which grows as speeds are measured."""

    def __init__(self, given: argparse.Namespace, scale: Scale, data: Dataset) -> None:
        self.given, self.scale, self.data = given, scale, data
        self.folder = Path(given.runs)
        self.file = self.folder / "plan.json"
        self.plan: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        names = ("total", "small", "guidance", "optimizer", "tiny")
        setting = {"data": data.name, **{name: getattr(given, name) for name in names}}
        self.note("setting", self.plan.get("setting", setting))
        if self.plan["setting"] != setting:
            raise InvalidInput(
                f"{self.folder} holds a plan of {self.plan['setting']}; expected {setting}: name another"
            )

    def note(self, name: str, value: Any) -> None:
        self.plan[name] = value
        write_file(self.file, json_bytes(self.plan))

    # ---- how fast, and so how long
    def setting(self, job: Job, size: str | None, **changes: Any) -> Recipe:
        """The full recipe of a job; pairs are not flipped, for noise and picture belong together."""
        on_gpu = {"half_lives": (0.03, 0.05), "precision": "bf16", "optimizer": self.given.optimizer}
        own = {"flip": not job.from_pairs, "batch": self.scale.batch, **self.scale.network}
        made = recipe(job.recipe, self.given.data, size=size, **{**on_gpu, **own, **changes})
        return replace(made, data=self.data.name)

    def size(self, job: Job) -> str | None:
        if self.given.tiny:
            return None
        return self.given.small if job.small else self.plan.get("size")

    def speed(self, job: Job, size: str | None) -> tuple[float, bool]:
        """Images a second of the trainer itself, compiled where that works; and whether it did."""
        for compiles in (True, False):
            setting = self.setting(job, size, compile=compiles, steps=self.scale.warm + self.scale.timed)
            draw, marks = self.fresh(job), []

            def timed(count: int, draw: Draw = draw, marks: list[float] = marks) -> Batch:
                if self.given.device.startswith("cuda"):
                    torch.cuda.synchronize()
                marks.append(time.perf_counter())
                return draw(count)

            try:
                with tempfile.TemporaryDirectory() as folder:
                    self.train(setting, job, timed, Path(folder) / "measured", begins=False)
            except InvalidInput as error:
                if not compiles or "compile is True" not in str(error):
                    raise
                bench.left_out(f"{job.name}, compiled", error)
                continue
            spent = [end - start for start, end in zip(marks, marks[1:])][-self.scale.timed + 1 :]
            return setting.batch / statistics.median(spent), compiles
        raise AssertionError("unreachable: the second try raises")

    def planned(self, job: Job) -> dict[str, Any]:
        """What the plan says of a job, measured and written there when it is first asked for."""
        minutes = self.given.total * TRAINING * job.share
        if not job.small and "size" not in self.plan and not self.given.tiny:
            for size in reversed(SIZES):
                speed, compiles = self.speed(job, size)
                print(f"{size}: {speed:.0f} images/s, {60 * minutes * speed / 1e6:.1f}M in {minutes:.1f} minutes")
                if 60 * minutes * speed >= IMAGES or size == next(iter(SIZES)):
                    break
            self.note("size", size)
            self.note(job.name, self.entry(minutes, speed, compiles))
        if job.name not in self.plan:
            self.note(job.name, self.entry(minutes, *self.speed(job, self.size(job))))
        return dict(self.plan[job.name])

    def entry(self, minutes: float, speed: float, compiles: bool) -> dict[str, Any]:
        steps = 4 if self.given.tiny else max(1, round(60 * minutes * speed / self.scale.batch))
        return {"images_per_second": speed, "compile": compiles, "steps": steps, "images": steps * self.scale.batch}

    # ---- the runs
    def fresh(self, job: Job) -> Draw:
        """The whole set on the device, pictures as uint8 where they came so."""
        device = self.given.device
        if job.from_pairs and (self.folder / "pairs").exists():
            return paired([tensor.to(device) for tensor in pairs.load(self.folder / "pairs")[0]])
        return unpaired(self.data.images.to(device), self.data.labels.to(device), flip=not job.from_pairs)

    def train(self, setting: Recipe, job: Job, draw: Draw, folder: Path, begins: bool = True) -> bool:
        origin = {} if job.start is None else {"start": job.start}
        spec = commands.spec_of(setting, **origin)
        start = begin(self.folder / job.start, spec.network) if begins and job.start else None
        every = self.scale.save_every
        return train(setting, spec, draw, folder, start, every, device=self.given.device, watch=0)

    def make(self, job: Job) -> None:
        if job.from_pairs:
            self.make_pairs()
        planned = self.planned(job)
        setting = self.setting(job, self.size(job), steps=planned["steps"], compile=planned["compile"])
        self.train(setting, job, self.fresh(job), self.folder / job.name)

    def make_pairs(self) -> None:
        source, folder, scale = self.folder / "teacher", self.folder / "pairs", self.scale
        size = {"count": scale.pairs, "steps": scale.pair_steps, "batch": 512, "shard": 2048}
        commands.make_pairs(source, folder, guidance=self.given.guidance, seed=2**31, device=self.given.device, **size)

    # ---- what they are worth
    def judged(self, name: str, source: Path, judge: Judge) -> list[dict[str, Any]]:
        """Distances at each step count, and the pictures; kept beside the plan, so that a later call needs none."""
        cuda = self.given.device.startswith("cuda")
        flow = pyflow.load(source, device=self.given.device, precision="bf16" if cuda else None)
        guidance = self.given.guidance if flow.spec.null_label else 1.0
        rows, shown = [], []
        for steps in self.scale.counts:
            distance, accuracy, images = judge.of_flow(flow, steps, guidance, pictures=self.scale.pictures)
            told = {"distance": distance, "label_accuracy": accuracy, "images_seen": self.plan[name]["images"]}
            rows.append({"model": name, "steps": steps, "guidance": guidance, "identity": flow.identity, **told})
            shown.append(images[: SHOWN * 2])
        grid_of(np.concatenate(shown), SHOWN * 2, 2).save(self.folder / f"{name}.png")
        return rows

    def ship(self, job: Job) -> Path:
        """The published weights in bfloat16, as a checkpoint of their own: those are judged, and those are kept."""
        model, spec = checkpoint.load(self.folder / job.name)
        folder = self.folder / "shipped" / job.name
        checkpoint.save(folder, model, spec, dtype=torch.bfloat16)
        return folder

    def losses(self, job: Job) -> list[list[float]]:
        """At most 200 points (step, loss) of the log."""
        log = self.folder / f"{job.name}.log" / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [[line["step"], round(line["loss"], 6)] for line in lines[:: -max(1, len(lines) // 200)]][::-1]


def run(given: argparse.Namespace) -> None:
    scale = TINY if given.tiny else GPU
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    runs = Runs(given, scale, load_dataset(given.data))
    made: list[Job] = []
    left: list[dict[str, str]] = []
    try:
        with bench.within(given.budget):
            for job in JOBS:
                try:
                    runs.make(job)
                except Exception as error:  # one that breaks does not cost the others their minutes
                    left.append(bench.left_out(job.name, f"{type(error).__name__}: {error}"))
                    continue
                made.append(job)
                print(f"trained: {job.name}, {runs.plan[job.name]}", flush=True)
            commands.train_judge(runs.folder / "classifier", given.data, **scale.judge)
            judge = Judge.of(runs.folder / "classifier", given.data)
            runs.note("judge", {"accuracy": judge.accuracy, "floor": judge.floor, "pictures": scale.pictures})
            for job in made:
                source = runs.ship(job) if job.small else runs.folder / job.name
                if f"judged {job.name}" not in runs.plan:
                    runs.note(f"judged {job.name}", runs.judged(job.name, source, judge))
    except bench.Enough:
        bench.keep(given.out, "train", {"facts": facts(given), "plan": runs.plan, "left_out": left, "done": False})
        print("the seconds of this call are used; call it again to go on", flush=True)
    else:
        keep(given, runs, made, left)


def facts(given: argparse.Namespace) -> dict[str, Any]:
    return {"command": "benchmarks/gpu/train.py", **bench.facts(given.device)}


def keep(given: argparse.Namespace, runs: Runs, made: list[Job], left: list[dict[str, str]]) -> None:
    """The figures, the pictures, and the small models with a card each."""
    here = facts(given)
    for job in made:
        shutil.copy(runs.folder / f"{job.name}.png", given.out / f"train-{job.name}.png")
        if not job.small:
            continue
        shipped = runs.folder / "shipped" / job.name
        size = (shipped / checkpoint.WEIGHTS).stat().st_size
        if size > SHIPPED_BYTES:
            left.append(bench.left_out(f"models/{job.name}", f"{size} bytes; at most {SHIPPED_BYTES}"))
            continue
        given.models.mkdir(parents=True, exist_ok=True)
        shutil.copytree(shipped, given.models / job.name, dirs_exist_ok=True)
        shutil.copy(runs.folder / f"{job.name}.png", given.models / f"{job.name}.png")
        spec, rows = checkpoint.load_spec(shipped), runs.plan[f"judged {job.name}"]
        text = card(job.name, spec, rows, runs.plan["judge"], runs.plan[job.name], here)
        (given.models / f"{job.name}.md").write_text(text)
    rows = [row for job in made for row in runs.plan[f"judged {job.name}"]]
    curves = {job.name: runs.losses(job) for job in made}
    kept = {"facts": here, "plan": runs.plan, "done": True, "rows": rows, "losses": curves, "left_out": left}
    bench.keep(given.out, "train", kept)
    bench.show(rows, COLUMNS)


def arguments() -> argparse.ArgumentParser:
    parser = bench.arguments(__doc__, budget=510)
    parser.add_argument("--data", default="cifar10", help="the folder of the parquet files (%(default)s: the hub's)")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="where checkpoints and the plan stay")
    parser.add_argument("--models", type=Path, default=None, help="where the small models go (OUT/models)")
    parser.add_argument("--total", type=float, default=25.0, help="minutes of all calls together (%(default)s)")
    parser.add_argument("--small", choices=SIZES, default="1m", help="the size of the students (%(default)s)")
    parser.add_argument("--guidance", type=float, default=1.5, help="of the teacher, and of the pairs (%(default)s)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    return parser


if __name__ == "__main__":
    asked = bench.parsed(arguments())
    asked.models = asked.models or asked.out / "models"
    asked.out.mkdir(parents=True, exist_ok=True)
    run(asked)

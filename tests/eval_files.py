"""Files as `pyflow eval` and `pyflow bench --json` write them, of fresh random figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pyflow.pictures import grid_of

CLASSES, SEEDS, SIDE, SCALE = 4, 3, 6, 2
SHARES = ("precision", "recall", "density", "coverage", "label_accuracy")


def interval(rng: np.random.Generator, value: float) -> dict[str, float]:
    reach = float(rng.uniform(0.01, 0.1)) * value
    return {"value": value, "low": value - reach, "high": value + reach}


def row(rng: np.random.Generator, name: str, steps: int, ms: float = 0.3) -> dict[str, Any]:
    distance = float(rng.uniform(0.1, 0.3) + rng.uniform(0.2, 1) / steps)
    denoiser = float(rng.uniform(0.5, 0.9))
    return {
        "steps": steps,
        "calls": steps,
        "grid": "uniform",
        "frechet": interval(rng, distance),
        "kernel": interval(rng, distance / 20),
        **{share: interval(rng, float(rng.uniform(0.6, 0.9))) for share in SHARES},
        "per_class": {str(label): {"frechet": interval(rng, float(rng.uniform(1, 3)))} for label in range(CLASSES)},
        "images_per_second": 1e3 / (ms * steps),
        "ms_per_image": ms * steps,
        "seconds": 10.0 * steps,
        "denoiser_share": denoiser,
        "extractor_share": (1 - denoiser) / 2,
        "straightness": float(rng.uniform(0, 1)),
        "against": {"name": "teacher, 50 steps", "ssim": float(rng.uniform(0.5, 1)), "lpips": float(rng.uniform(0, 1))},
        "sheet": f"{name}-steps-{steps}.png",
        "cell": [SIDE, SIDE + 1],
        "gap": 1,
        "scale": SCALE,
    }


def pictures(rng: np.random.Generator) -> np.ndarray:
    """Of a sheet: (classes, seeds, height, width, channels), some with rows and columns of the grey of its lines."""
    made = rng.integers(256, size=(CLASSES, SEEDS, SIDE, SIDE + 1, 3), dtype=np.uint8)
    made[0], made[1, :, 2], made[2, :, :, 3], made[:, 1] = 128, 128, 128, 128
    return made


def write_eval(
    folder: Path, rng: np.random.Generator, name: str, steps: tuple[int, ...] = (1, 4), /, **changes: Any
) -> Path:
    ms = changes.pop("ms", 0.3)
    rows = [row(rng, name, count, ms) for count in steps]
    for one in rows:
        sheet = pictures(rng).reshape(-1, SIDE, SIDE + 1, 3)
        grid_of(sheet, SEEDS, SCALE).save(folder / one["sheet"])
    record = {
        "format": 1,
        "kind": "eval",
        "name": name,
        "method": "reflow",
        "subject": {"source": name, "backend": "native", "identity": f"{rng.integers(2**62):064x}"},
        "data": "digits",
        "features": "digits classifier, 48 features",
        "num_samples": 500,
        "seeds": [0, 1, 2],
        "guidance": 1.0,
        "solver": "euler",
        "interval": "95%, Student's t over the seeds",
        "floor": {"frechet": 0.2, "kernel": 0.001, "count": 300},
        "reference": {"count": 1497, "sha256": "ab" * 32},
        "request": {"any": ["thing"]},
        "rows": rows,
        "training": [{"step": step, "loss": float(rng.uniform(0.5, 1) / (1 + step))} for step in range(0, 900, 3)],
        "classes": [f"class {label}" for label in range(CLASSES)],
        "facts": {"command": f"pyflow eval {name}", "processor": "a processor", "threads": 1, "commit": "abc"},
    }
    return write(folder / f"{name}.json", {**record, **changes})


def write_bench(folder: Path, rng: np.random.Generator, name: str, /, **changes: Any) -> Path:
    rows = []
    for steps in (1, 4):
        for batch in (1, 16):
            median = float(rng.uniform(1, 2)) * steps * batch**0.8
            told = {"median_ms": median, "p99_ms": 1.2 * median, "ms_per_image": median / batch}
            rows.append({"steps": steps, "batch": batch, **told})
    record = {
        "format": 1,
        "kind": "bench",
        "name": name,
        "subject": {"source": name, "backend": "native", "identity": f"{rng.integers(2**62):064x}"},
        "guidance": 1.0,
        "rows": rows,
        "facts": {"command": f"pyflow bench {name}", "processor": "a processor", "threads": 1},
    }
    return write(folder / f"{name}.json", {**record, **changes})


def write_three(folder: Path, rng: np.random.Generator) -> list[Path]:
    """Two evaluations and a latency table, whose names no page may take for tags."""
    folder.mkdir()
    return [
        write_eval(folder, rng, "teacher", (1, 4, 50), ms=0.6),
        write_eval(folder, rng, "<script>", (1, 4), method="<b>lines</b>"),
        write_bench(folder, rng, "bench & more"),
    ]


def write(path: Path, record: dict[str, Any]) -> Path:
    path.write_text(json.dumps(record))
    return path

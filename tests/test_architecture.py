"""The floors: a file imports from lower floors only. Read from the sources, so a lazy import counts like any other."""

import ast
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A unit is a file or folder of the package (pyflow/X.py, pyflow/X/, kernels/, training/), or a folder beside it.
FLOORS = [
    {"core", "errors", "noise", "records", "resampling"},
    {"kernels", "native", "spec", "timing", "artefact", "metrics", "neighbours", "masks", "similarity"},
    {"models", "pictures", "drawing", "axes", "charts", "plots"},
    {"checkpoint"},
    {"engines", "training"},
    {"loading", "sampler", "pyflow"},  # pyflow is pyflow/__init__.py, the public face
    {
        "adapters",
        "certificate",
        "export",
        "page",
        "report",
        "report_files",
        "report_groups",
        "report_plots",
        "report_sheets",
        "report_words",
    },
    {
        "bench_command",
        "checkerboard",
        "cli",
        "commands",
        "demo",
        "eval_command",
        "eval_rows",
        "eval_search",
        "eval_seeds",
        "eval_setting",
        "evaluation",
        "extractors",
        "demo_page",
        "flags",
        "inpaint_command",
        "inpaint_page",
        "inpaint_study",
        "latency",
        "lines",
        "lines_page",
        "pairing",
        "quality",
        "references",
        "sources",
        "studies",
        "trajectories",
        "verify",
    },
    {"benchmarks", "tests", "examples"},
]
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}
OUTSIDE = ("benchmarks", "tests", "examples")  # neighbours in the package may import each other, these may not
PACKAGES = ("kernels", "training")  # folders beside pyflow/ that install as pyflow.kernels and pyflow.training
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CORE_LINES, FILE_LINES, LONG_LINES = 300, 400, 300


# ---- what a file is and what it imports
def module_of(path: str) -> str:
    """kernels/a.py -> pyflow.kernels.a; a package's __init__.py -> the package."""
    parts = PurePosixPath(path).with_suffix("").parts
    parts = ("pyflow", *parts) if parts[0] in PACKAGES else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str | None:
    """The entry of the floor table that a module belongs to; None for another project's module."""
    top, _, rest = module.partition(".")
    if top == "pyflow":
        return rest.partition(".")[0] or "pyflow"
    return top if top in OUTSIDE else None


def is_unit(name: str) -> bool:
    return name in FLOOR or name == "_C" or any((ROOT / "pyflow" / name).with_suffix(s).exists() for s in ("", ".py"))


def imports(path: str, source: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, relative ones resolved, importlib.import_module("...") included."""
    module, found = module_of(path), []
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            ancestors = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(ancestors if node.level else []), *([node.module] if node.module else [])])
            if base == "pyflow":  # `from . import spec` names a unit, `from . import load` the public face
                found += [(node.lineno, f"pyflow.{a.name}" if is_unit(a.name) else "pyflow") for a in node.names]
            else:
                found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.args[0].value
            if ast.unparse(node.func).endswith(("import_module", "__import__")) and isinstance(name, str):
                dots = len(name) - len(name.lstrip("."))
                found.append((node.lineno, ".".join([package] * (dots > 0) + [name[dots:]])))
    return found


# ---- what is wrong with it
def faults(path: str, source: str) -> list[str]:
    """One sentence for each broken rule."""
    unit, broken = unit_of(module_of(path)), []
    if unit not in FLOOR:
        return [f"{path}: {unit} is on no floor; put it on one in FLOORS of tests/test_architecture.py"]
    for line, name in imports(path, source):
        other, top, where = unit_of(name), name.partition(".")[0], f"{path}:{line}"
        if top in PICKLES:
            broken.append(f"{where}: imports {top}; no pickle is ever loaded here")
        if top == "safetensors" and unit not in ("checkpoint", "tests"):  # a test may damage a file by hand
            broken.append(f"{where}: imports safetensors; only checkpoint reads and writes weights")
        if unit in ("core", "errors") and top in ("numpy", "torch"):
            broken.append(f"{where}: imports {top}; {unit} imports neither numpy nor torch")
        if other == "_C":
            if unit != "native":
                broken.append(f"{where}: imports _C; only native does, use pyflow.native")
        elif other is not None and other != unit:
            if other not in FLOOR:
                broken.append(f"{where}: {other} is on no floor; put it on one in FLOORS of tests/test_architecture.py")
            elif unit == "training" and other == "engines":
                broken.append(f"{where}: training imports engines; training never reaches engines")
            elif FLOOR[other] > FLOOR[unit]:
                broken.append(f"{where}: {unit} (floor {FLOOR[unit]}) imports {other} (floor {FLOOR[other]}), upward")
            elif FLOOR[other] == FLOOR[unit] and {unit, other} & set(OUTSIDE):
                broken.append(f"{where}: {unit} imports {other}, its neighbour outside its own folder")
    return broken + [f"{path}:{line}: {what}" for line, what in unpickling(source)]


def unpickling(source: str) -> list[tuple[int, str]]:
    """Calls that would run a pickle: torch.load, and a load with allow_pickle other than False."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and "load" in [a.name for a in node.names]:
            found.append((node.lineno, "imports torch.load; use pyflow.checkpoint"))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append((node.lineno, "uses torch.load; use pyflow.checkpoint"))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append((node.value.lineno, "allows pickle; save arrays that need none"))
    return found


# ---- the rules hold
SUFFIXES = {".py", ".pyi", ".cpp", ".hpp", ".h", ".inl", ".cu", ".cuh"}
FOLDERS = ("pyflow", "kernels", "training", "csrc", *OUTSIDE)


def sources(*suffixes: str) -> list[str]:
    """Every source file, relative to the root."""
    found = (p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (suffixes or SUFFIXES))
    return [str(p.relative_to(ROOT).as_posix()) for p in found]


def test_nothing_imports_upward():
    broken = [fault for path in sources(".py") for fault in faults(path, (ROOT / path).read_text())]
    assert not broken, "\n" + "\n".join(broken)


def test_files_are_short():
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    long = {path: n for path, n in lines.items() if n > LONG_LINES}
    print("over 300 lines:", *(f"{n} {path}" for path, n in sorted(long.items())), sep="\n  ")
    assert lines["pyflow/core.py"] <= CORE_LINES, "core.py reads as one page: 300 lines"
    too_long = [path for path, n in lines.items() if n >= FILE_LINES]
    assert not too_long, f"400 lines or more, split by subject: {too_long}"


def test_importing_pyflow_imports_no_framework():
    seen = "import sys, pyflow; print(sorted({'torch', 'onnxruntime', 'triton', 'tensorrt'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", seen], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def foreign_includes(path: str, source: str) -> list[str]:
    """Headers of Python, pybind11 or torch: the first two belong to bindings.cpp, torch's to nobody."""
    headers = re.findall(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', source, flags=re.MULTILINE)
    python = [h for h in headers if h.startswith("pybind11/") or PurePosixPath(h).name == "Python.h"]
    torch = [h for h in headers if h.startswith(("torch/", "ATen/", "c10/"))]
    return torch + (python if PurePosixPath(path).name != "bindings.cpp" else [])


def test_csrc_knows_python_only_in_its_bindings():
    native = [path for path in sources(*(SUFFIXES - {".py", ".pyi"})) if path.startswith("csrc/")]
    broken = {path: foreign_includes(path, (ROOT / path).read_text()) for path in native}
    assert not any(broken.values()), {path: headers for path, headers in broken.items() if headers}


# ---- the checker sees what it should
CAUGHT = {
    "upward": ("pyflow/spec.py", "from .sampler import load", "spec .floor 1. imports sampler .floor 5., upward"),
    "upward, absolute": ("pyflow/core.py", "import pyflow.noise, pyflow.spec", "core .* imports spec"),
    "upward from a folder": ("kernels/a.py", "from ..models import UNet", "kernels .* imports models"),
    "upward from a package": ("training/__init__.py", "from ..cli import main", "training .* imports cli"),
    "upward, lazy": (
        "pyflow/models.py",
        "def f():\n    from pyflow.training.pairs import draw",
        ":2: models .* training",
    ),
    "upward by name": (
        "pyflow/noise.py",
        "import importlib\nimportlib.import_module('.native', __package__)",
        "native",
    ),
    "upward through the face": ("pyflow/spec.py", "from . import load", "imports pyflow .floor 5."),
    "upward, from the package": ("pyflow/spec.py", "from . import core, report", "imports report"),
    "training to engines": ("training/trainer.py", "from pyflow.engines.onnx import run", "never reaches engines"),
    "tests to benchmarks": ("tests/test_a.py", "from benchmarks.table import rows", "neighbour outside"),
    "package to tests": ("pyflow/cli.py", "import tests.oracles", "imports tests .floor 8., upward"),
    "no floor": ("pyflow/utils.py", "", "utils is on no floor; put it on one"),
    "imports no floor": ("pyflow/cli.py", "import pyflow.helpers", "helpers is on no floor; put it on one"),
    "second importer of _C": ("pyflow/sampler.py", "from ._C import Plan", "only native does"),
    "_C from the package": ("tests/test_a.py", "from pyflow import _C", "only native does"),
    "weights elsewhere": ("pyflow/models.py", "import safetensors.torch", "only checkpoint"),
    "weights in pairs": ("training/pairs.py", "from safetensors.numpy import save_file", "only checkpoint"),
    "numpy in core": ("pyflow/core.py", "import numpy as np", "neither numpy nor torch"),
    "pickle": ("benchmarks/a.py", "import pickle", "no pickle"),
    "pickle, from": ("tests/a.py", "from pickle import loads", "no pickle"),
    "torch.load": ("pyflow/checkpoint.py", "import torch\ntorch.load('x', weights_only=True)", ":2: uses torch.load"),
    "torch.load, from": ("pyflow/checkpoint.py", "from torch import load", "imports torch.load"),
    "numpy pickle": ("pyflow/metrics.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allows pickle"),
    "numpy pickle, hidden": (
        "pyflow/metrics.py",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "allows pickle",
    ),
}


@pytest.mark.parametrize(("path", "source", "sentence"), CAUGHT.values(), ids=CAUGHT.keys())
def test_the_checker_catches(path, source, sentence):
    found = faults(path, source)
    assert len(found) == 1, found
    assert re.search(sentence, found[0]), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pyflow/core.py", "import math\nfrom .errors import InvalidInput"),
        ("pyflow/sampler.py", "from . import core, spec\nfrom .engines.onnx import run"),
        ("pyflow/native.py", "from . import _C"),
        ("pyflow/native.py", "from ._C import isa"),
        ("pyflow/checkpoint.py", "import safetensors.torch"),
        ("pyflow/artefact.py", "from .spec import Spec"),
        ("pyflow/export.py", "from pyflow.training import recipes\nfrom .engines import onnx"),
        ("pyflow/engines/onnx.py", "from ..spec import Spec\nfrom . import base\nfrom .native import run"),
        ("training/pairs.py", "from . import objectives\nfrom pyflow.models import UNet\nimport torch"),
        ("pyflow/__init__.py", "from .sampler import load"),
        ("pyflow/cli.py", "from . import demo, report, load"),
        ("tests/test_a.py", "import pyflow\nfrom oracles import Gaussian\nfrom pyflow.kernels.philox import normal"),
        ("pyflow/metrics.py", "import numpy as np\nnp.load('x', allow_pickle=False)"),
    ],
)
def test_the_checker_lets_pass(path, source):
    assert faults(path, source) == []


def test_the_include_checker():
    assert foreign_includes("csrc/sampler.cpp", "#include <pybind11/numpy.h>\n") == ["pybind11/numpy.h"]
    assert foreign_includes("csrc/row.hpp", '#  include "Python.h"\n#include <vector>\n') == ["Python.h"]
    assert foreign_includes("csrc/bindings.cpp", "#include <pybind11/pybind11.h>\n#include <Python.h>\n") == []
    assert foreign_includes("csrc/bindings.cpp", "#include <torch/extension.h>\n") == ["torch/extension.h"]

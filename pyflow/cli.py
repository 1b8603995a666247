"""The command line: `pyflow demo|train|pairs|distill|bake|export|verify|sample|bench|info`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, bench_command, core, eval_command, flags, inpaint_command, native, studies
from .engines import BACKENDS
from .engines import manifest as manifests
from .engines.manifest import Certificate
from .engines.native import operations
from .errors import InvalidInput, PyflowError
from .eval_command import step_counts
from .masks import GROUPS, KINDS
from .pictures import SUFFIXES, writable
from .sampler import count
from .sources import open_source
from .training.recipes import STUDENTS, TEACHERS, TUNED, recipe

CLASSIFIER = "classifier"
SCALE_LIMIT = 64


def _train(arguments: argparse.Namespace) -> None:
    changes, settings = flags.changes(arguments), flags.settings(arguments)
    if arguments.recipe == CLASSIFIER:
        _train_judge(arguments, changes | flags.beside(arguments))
        return
    if arguments.print_config and arguments.start is None:
        of_recipe: dict[str, Any] = {"size": arguments.size, "file": arguments.config, "known": TEACHERS | TUNED}
        flags.show(recipe(arguments.recipe, arguments.data, **of_recipe, **changes), pairs=False)
        return
    from . import commands

    if arguments.print_config:
        from_start: dict[str, Any] = {"size": arguments.size, "config": arguments.config}
        setting = commands.teacher(arguments.recipe, arguments.data, arguments.start, **from_start, **changes)
        flags.show(setting, pairs=False)
        return
    out = _expected(arguments, "out", "the checkpoint's folder")
    settings["start"] = arguments.start
    made = commands.train_teacher(arguments.recipe, arguments.data, out, **settings, **changes)
    _say_once(f"{'trained' if made else 'was finished already'}: {out}")


def _train_judge(arguments: argparse.Namespace, changes: dict[str, Any]) -> None:
    from . import commands

    out = _expected(arguments, "out", "the classifier's folder")
    made = commands.train_judge(out, arguments.data or "digits", **changes)
    _say_once(f"{'trained' if made else 'was finished already'}: {out}")


def _say_once(sentence: str) -> None:
    """In one of the processes that torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence)


def _expected(arguments: argparse.Namespace, name: str, what: str) -> Path:
    """What --print-config goes without."""
    folder = getattr(arguments, name)
    if folder is None:
        raise InvalidInput(f"--{name} is missing; expected {what}")
    return Path(folder)


def _pairs(arguments: argparse.Namespace) -> None:
    from . import commands

    made = commands.make_pairs(
        arguments.source,
        arguments.out,
        count=arguments.count,
        steps=arguments.steps,
        solver=arguments.solver,
        guidance=arguments.guidance,
        seed=arguments.seed,
        device=arguments.device,
        threads=arguments.threads,
        shard=arguments.shard,
        batch=arguments.batch,
        masks=arguments.masks,
        masked=arguments.masked,
        data=arguments.data,
    )
    print(f"{made} shards made, the others were there: {arguments.out}")


def _distill(arguments: argparse.Namespace) -> None:
    from . import commands

    changes, settings = flags.changes(arguments), flags.settings(arguments)
    name, teacher = arguments.recipe, arguments.teacher
    if arguments.print_config:
        of_recipe: dict[str, Any] = {"size": arguments.size, "config": arguments.config}
        flags.show(commands.student(name, teacher, arguments.pairs, **of_recipe, **changes), pairs=True)
        return
    pairs, out = _expected(arguments, "pairs", "the pairs' folder"), _expected(arguments, "out", "the student's folder")
    made = commands.distil(name, teacher, pairs, out, **settings, **changes)
    _say_once(f"{'distilled' if made else 'was finished already'}: {out}")


def _export(arguments: argparse.Namespace) -> None:
    from . import commands
    from .export.build import Order

    names = ("what", "precision", "steps", "guidance", "solver", "grid", "device")
    order = Order(**{name: getattr(arguments, name) for name in names})
    own = {name: getattr(arguments, name) for name in ("psnr", "judge", "data")}
    made = commands.export_engine(arguments.source, arguments.out, arguments.to, order, **own)
    certificate = manifests.read(arguments.out).proved
    print(f"{'exported' if made else 'was exported already'}: {arguments.out}, {_proved(certificate)}")
    for name in ("checkpoint", "engine"):
        for steps, distance in certificate.distances.get(name, {}).items():
            print(f"{name:>10} at {steps:>3} steps: distance {distance:.4f} ({certificate.distances['features']})")


def _bake(arguments: argparse.Namespace) -> None:
    from . import commands

    commands.bake(arguments.source, arguments.out, arguments.guidance)
    print(f"baked: {arguments.out}")


def _verify(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .verify import verify

    progress = partial(tqdm, desc="verified", unit="case", leave=False)
    certificate = verify(
        arguments.source,
        arguments.checkpoint,
        threads=arguments.threads,
        device=arguments.device,
        progress=progress,
    )
    against = "its checkpoint on fresh noise" if arguments.checkpoint else "the proof it carries"
    print(f"verified: {arguments.source} against {against}, {_proved(certificate)}")


def _proved(certificate: Certificate) -> str:
    bound = certificate.bound
    allowed = f"{bound.relative:.0e} relative" if bound.psnr is None else f"{bound.psnr:g} dB"
    return (
        f"relative error {certificate.worst:.1e}, PSNR {certificate.psnr:.1f} dB, "
        f"{certificate.off_by_one:.2%} of uint8 values off by one, over {certificate.cases} cases (bound {allowed})"
    )


def _sample(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    flow = open_source(arguments.source, arguments.threads, arguments.device)
    pictures = len(flow.spec.network.shape) == 3
    named = arguments.out or Path("samples.png" if pictures else "samples.npy")
    out = writable(named, SUFFIXES if pictures else (".npy",))
    scale = count("scale", arguments.scale, 1, SCALE_LIMIT)
    plan = flow.plan(arguments.steps, arguments.solver, arguments.grid)
    with tqdm(total=len(plan), desc="rows", unit="row", disable=len(plan) < 10) as bar:
        output = flow.sample(
            arguments.count,
            steps=arguments.steps,
            label=arguments.label,
            guidance=arguments.guidance,
            seed=arguments.seed,
            first=arguments.first,
            solver=arguments.solver,
            grid=arguments.grid,
            callback=lambda row: bar.update(),
        )
    if pictures:
        output.grid(scale=scale).save(out)
        print(f"{len(output.states)} pictures in {output.row_seconds.sum() * 1e3:.1f} ms: {out}")
    else:
        np.save(out, output.states, allow_pickle=False)
        print(f"{len(output.states)} points in {output.row_seconds.sum() * 1e3:.1f} ms: {out}")


def _info(arguments: argparse.Namespace) -> None:
    if arguments.graph:
        print(operations(arguments.source), end="")
        return
    if arguments.source is None:
        from .timing import machine

        facts: dict[str, Any] = {**machine(), "isa": native.isa(), "isas": native.supported_isas()}
    elif manifests.is_engine(arguments.source):
        facts = manifests.read(arguments.source).to_json()
    else:
        from . import commands

        facts = commands.describe(arguments.source)
    print(json.dumps(facts, indent=2))


def _demo(arguments: argparse.Namespace) -> None:
    from . import demo

    demo.run(arguments.out, arguments.report)


_DATA = "digits, checkerboard, cifar10 (from the Hugging Face hub), or a folder of its parquet files or of pictures"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyflow", description="Image generators in 1, 2 or 4 network calls.")
    parser.add_argument("--version", action="version", version=f"pyflow {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run, command=made)
        return made

    demo = command("demo", _demo, "train a teacher, distil a student, export both, compare them in a report")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="the run's folder")
    demo.add_argument("--report", type=Path, default=Path("report/demo"), help="the report's folder")

    train = command("train", _train, "train on data by any method, or the classifier that judges its pictures")
    train.add_argument("recipe", help=f"one of {', '.join([*TEACHERS, *TUNED, CLASSIFIER])}")
    train.add_argument("--data", default=None, help=f"{_DATA}; without it that of --config, or the digits")
    train.add_argument("--out", type=Path, default=None, help="the checkpoint's folder")
    train.add_argument("--start", type=Path, default=None, help="a checkpoint to begin with its weights")
    flags.add_recipe(train)

    pairs = command("pairs", _pairs, "have a teacher make (noise, label, picture) pairs")
    _add_source(pairs, "the teacher: an engine, a checkpoint, or a folder of diffusers'")
    pairs.add_argument("--out", type=Path, required=True, help="the pairs' folder")
    pairs.add_argument("--count", type=int, default=4096, help="pairs to make")
    pairs.add_argument("--steps", type=int, default=16, help="steps a pair")
    pairs.add_argument(
        "--solver", default=None, help=f"one of {', '.join(core.SOLVERS)}; if none, ab2 or the teacher's"
    )
    pairs.add_argument("--guidance", type=float, default=1.0, help="guidance that goes into the student's weights")
    pairs.add_argument("--seed", type=int, default=2**31, help="seed of the noise")
    pairs.add_argument("--batch", type=int, default=64, help="pairs a call of the teacher")
    pairs.add_argument("--shard", type=int, default=512, help="pairs a file")
    pairs.add_argument("--masks", default=None, help=f"keep pictures but for holes: {', '.join([*KINDS, *GROUPS])}")
    pairs.add_argument("--masked", type=float, default=None, help="the share of the pairs with a mask (default: half)")
    pairs.add_argument("--data", default=None, help=f"whose pictures are kept: {_DATA}")

    distill = command("distill", _distill, "train a student on a teacher's pairs")
    distill.add_argument("recipe", help=f"one of {', '.join(STUDENTS)}")
    distill.add_argument("--pairs", type=Path, default=None, help="the pairs' folder")
    distill.add_argument("--teacher", type=Path, default=None, help="a checkpoint whose weights are the first ones")
    distill.add_argument("--out", type=Path, default=None, help="the student's folder")
    flags.add_recipe(distill)

    export = command("export", _export, "export a checkpoint as an engine, with its parity certificate")
    export.add_argument("source", type=Path, help="the checkpoint")
    export.add_argument("--to", default="onnx", help=f"the backend, one of {', '.join(BACKENDS)}")
    export.add_argument("--out", type=Path, required=True, help="the engine's folder, NAME.engine")
    export.add_argument("--what", default="denoiser", help=f"one of {', '.join(manifests.WHATS)}")
    export.add_argument("--precision", default="fp32", help=f"one of {', '.join(manifests.PRECISIONS)}")
    export.add_argument("--steps", type=step_counts, default=(1, 2, 4), help="of whole samplers, such as 1,2,4")
    export.add_argument("--guidance", type=float, default=1.0, help="of whole samplers, 1 is none")
    export.add_argument("--solver", default=None, help=f"of whole samplers, one of {', '.join(core.SOLVERS)}")
    export.add_argument("--grid", default="uniform", help=f"of whole samplers, one of {', '.join(core.GRIDS)}")
    export.add_argument("--device", default="cpu", help="cpu or cuda: where the engine will run")
    export.add_argument("--psnr", type=float, default=None, help="a bound of your own in dB, for the precision's")
    export.add_argument("--judge", type=Path, default=None, help="a classifier's folder: keep distances too")
    export.add_argument("--data", default="digits", help="what the classifier judges")

    bake = command("bake", _bake, "make an ordinary checkpoint of one that takes the guidance as an input")
    bake.add_argument("source", type=Path, help="the guided checkpoint")
    bake.add_argument("--guidance", type=float, required=True, help="the guidance that stays, above 0; 1 is none")
    bake.add_argument("--out", type=Path, required=True, help="the ordinary checkpoint's folder")

    verify = command("verify", _verify, "prove an engine again, on this machine")
    _add_source(verify)
    verify.add_argument("--checkpoint", type=Path, default=None, help="its checkpoint: fresh noise, not its own proof")

    sample = command("sample", _sample, "make pictures")
    _add_source(sample, "an engine, a checkpoint, or a folder of diffusers'")
    sample.add_argument("--out", type=Path, default=None, help="the picture (samples.png), or .npy for points")
    sample.add_argument("--count", type=int, default=16, help="how many")
    sample.add_argument("--steps", type=int, default=1, help="network calls (heun makes two a step)")
    sample.add_argument("--label", type=int, default=None, help="the class; none asks for no label")
    sample.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise")
    sample.add_argument("--first", type=int, default=0, help="number of the first picture of this seed")
    sample.add_argument(
        "--solver", default=None, help=f"one of {', '.join(core.SOLVERS)}; the checkpoint's own if none"
    )
    sample.add_argument("--grid", default="uniform", help=f"one of {', '.join(core.GRIDS)}")
    sample.add_argument("--scale", type=int, default=4, help="screen pixels a pixel")

    repainted = command("inpaint", inpaint_command.inpaint, "repaint a picture where a mask is white")
    _add_source(repainted, "an engine, a checkpoint, or a folder of diffusers'")
    inpaint_command.add_inpaint(repainted)
    inpaint_command.add_masks(command("masks", inpaint_command.draw_masks, "a sheet of the masks that a seed draws"))

    timed = command("bench", bench_command.run, "time an engine: medians of interleaved rounds")
    _add_source(timed)
    bench_command.add(timed)

    judged = command("eval", eval_command.run, "distances from real pictures by step count, or the search of a grid")
    _add_source(judged, "an engine, a checkpoint, or a folder of diffusers'")
    eval_command.add(judged, _DATA)

    text = "a page of pictures and figures: of a study from nothing, or of files of eval and bench"
    studies.add(commands.add_parser("report", help=text, description=text), _DATA)

    info = command("info", _info, "what an engine or a checkpoint says of itself; without one, this machine")
    info.add_argument("source", type=Path, nargs="?", default=None, help="an engine or checkpoint")
    info.add_argument("--graph", action="store_true", help="the operations of a native engine, one a line")
    return parser


def _add_source(made: argparse.ArgumentParser, text: str = "an engine or checkpoint") -> None:
    made.add_argument("source", type=Path, help=text)
    made.add_argument("--threads", type=int, default=0, help="threads of one network call, 0 for the runtime's choice")
    made.add_argument("--device", default="cpu", help="cpu, cuda, or tensorrt (ONNX Runtime's)")


def parse(words: Sequence[str]) -> argparse.Namespace:
    arguments, unknown = _parser().parse_known_args(studies.spelled(words))
    flags.refuse_unknown(arguments.command, unknown)
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    # Threads that spin while they wait starve a machine that is also doing something else: beside one other busy
    # process on 2 cores a training step took 2.4 s, and 0.16 s with this. It has to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        arguments = parse(sys.argv[1:] if words is None else words)
        arguments.run(arguments)
    except (PyflowError, OSError) as error:
        print(f"pyflow: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        extra = "train" if error.name in ("torch", "safetensors") else "demo"
        print(f'pyflow: {error}; this command needs it: pip install "pyflow-engine[{extra}]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyflow: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

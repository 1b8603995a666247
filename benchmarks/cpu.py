"""The native engine beside the fastest runtimes of its precision: one process, in turn, the same weights, parity first.

make bench-cpu, or: python benchmarks/cpu.py [--networks 1.4M 2D] [--quick] [--full]
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import floor
import making
import peers
import tables
import torch
from contest import ERRORS, Bench, Subject, left_out, measure
from peers import PEERS, forward
from pyflow.training.recipes import MLP_2D, UNET_1M, UNET_9M, UNET_36M
from tqdm import tqdm

from pyflow import checkpoint, native
from pyflow.models import random_network
from pyflow.spec import MLP, Network, Spec, UNet
from pyflow.timing import machine, versions

NETWORKS: dict[str, Network] = {"1.4M": UNET_1M, "9.6M": UNET_9M, "38M": UNET_36M, "2D": MLP_2D}
TINY: dict[str, Network] = {
    "tiny": UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3),
    "tiny 2D": MLP(shape=(2,), width=16, depth=2),
}
LIMIT = 600  # seconds of a process that makes or opens a file


# ---- what is compared
def subject_of(name: str, network: Network, cache: Path) -> Subject:
    """The folder is named after all that decides what the peers' files hold."""
    model, spec = random_network(network), Spec(network)
    digest = hashlib.sha256(Path(making.__file__).read_bytes())
    digest.update(json.dumps([spec.to_json(), versions("torch", "onnx", "onnxruntime", "openvino")]).encode())
    for weight in model.parameters():
        digest.update(weight.detach().numpy().tobytes())
    folder = cache / f"{name.replace(' ', '-')}-{digest.hexdigest()[:12]}"
    if not (folder / peers.CHECKPOINT).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / peers.CHECKPOINT, model, spec)
        (folder / peers.SPEC).write_text(json.dumps(spec.to_json()))
    return Subject(name, spec, model, folder)


def in_own_process(bench: Bench, script: str, *words: object) -> str:
    """What a script prints; RuntimeError with the last thing that it said where it fails."""
    command = [sys.executable, script, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": str(bench.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it took more than {LIMIT} s") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:300])
    return done.stdout


def open_all(bench: Bench, subject: Subject) -> list[dict[str, str]]:
    """Make the files that are missing, and ours always: they follow the source. What fails is left out."""
    failed: dict[str, str] = {}
    wanted = {peer.file_for(batch): peer.native for peer in bench.peers for batch in bench.batches}
    wanted = [file for file, ours in wanted.items() if ours or not (subject.folder / file).exists()]
    for file in tqdm(wanted, desc=f"{subject.name}: made", unit="file", leave=False):
        try:
            in_own_process(bench, making.__file__, subject.folder, file)
        except RuntimeError as error:
            failed[file] = str(error)
    gone = []
    for peer in tqdm(bench.peers, desc=f"{subject.name}: opened", unit="runtime", leave=False):
        try:
            for batch in bench.batches:
                if peer.file_for(batch) in failed:
                    raise RuntimeError(failed[peer.file_for(batch)])
                known = None if peer.per_batch else subject.opened.get((peer.name, bench.batches[0]))
                opened = known or peer.open(subject.folder, subject.spec, batch, bench.threads)
                subject.opened[peer.name, batch] = opened
        except Exception as error:  # each runtime has exceptions of its own
            gone.append(left_out(f"{peer.name}, {subject.name}", error))
    return gone


# ---- where the time goes, and what a process costs
def profiles(bench: Bench, subject: Subject) -> list[dict[str, Any]]:
    found = []
    for peer in bench.peers:
        for batch in bench.batches:
            if not peer.native or (peer.name, batch) not in subject.opened:
                continue
            file, spec = peer.file, subject.spec
            denoiser = peers.open_native(file, subject.folder, spec, batch, 1, profile=True)
            calls = []
            for _ in range(1 + bench.rounds):
                forward(denoiser, spec, batch)
                calls.append(denoiser.take_profile())
            operations = [
                {
                    "name": name,
                    "kind": kind,
                    "algorithm": algorithm,
                    "ms": 1e3 * median(call[index][3] for call in calls),
                }
                for index, (name, kind, algorithm, *_) in enumerate(calls[0])
            ]
            found.append({"network": subject.name, "batch": batch, "variant": peer.name, "by_operation": operations})
    return found


def processes(bench: Bench, subject: Subject) -> list[dict[str, Any]]:
    """Every runtime alone in fresh processes, in turn: medians."""
    cases = [(peer, batch) for peer in bench.peers for batch in bench.batches if (peer.name, batch) in subject.opened]
    told: dict[tuple[str, int], list[dict[str, float]]] = {(peer.name, batch): [] for peer, batch in cases}
    for _ in tqdm(range(bench.starts), desc=f"{subject.name}: processes", unit="round", leave=False):
        for peer, batch in cases:
            if peer.compiles and told[peer.name, batch]:
                continue
            began = time.perf_counter()
            words = (subject.folder, peer.name, batch, bench.threads)
            try:
                came = json.loads(in_own_process(bench, peers.__file__, *words).splitlines()[-1])
            except RuntimeError as error:
                tqdm.write(f"left out of the processes: {peer.name}, batch {batch}: {error}")
                continue
            told[peer.name, batch].append({**came, "process_s": time.perf_counter() - began})
    return [
        {
            "network": subject.name,
            "batch": batch,
            "variant": name,
            **{key: median(one[key] for one in all_of) for key in all_of[0]},
        }
        for (name, batch), all_of in told.items()
        if all_of
    ]


# ---- the command
def run(bench: Bench, networks: Mapping[str, Network]) -> dict[str, Any]:
    limits = floor.measured() if bench.rounds > 3 else floor.measured(rounds=3, sizes=(512,), size=2**26)
    record: dict[str, Any] = {"floor": vars(limits), "networks": {}}
    lists: dict[str, list[Any]] = {"rows": [], "ratios": [], "profiles": [], "processes": [], "left_out": []}
    for name, network in networks.items():
        subject = subject_of(name, network, bench.cache)
        flop = floor.flop_of(subject.model, subject.spec)
        floors = {
            precision: {batch: 1e3 * limits.seconds(precision, flop, subject.weights, batch) for batch in bench.batches}
            for precision in ERRORS
        }
        record["networks"][name] = {"weights": subject.weights, "gflop": flop / 1e9, "floor_ms": floors}
        lists["left_out"] += open_all(bench, subject)
        rows, ratios, gone = measure(bench, subject)
        lists["rows"] += rows
        lists["ratios"] += ratios
        lists["left_out"] += gone
        lists["profiles"] += profiles(bench, subject)
        lists["processes"] += processes(bench, subject)
    return {**record, **lists}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="1 and 4 steps, few rounds, no torch.compile")
    parser.add_argument("--full", action="store_true", help="every step count for every network: hours")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with the smallest networks, nothing compiled")
    parser.add_argument("--cache", type=Path, default=here.parent / "build" / "bench-cpu", help="what peers open")
    parser.add_argument("--out", type=Path, default=here / "results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(given.cache.resolve() / "inductor")
    began, few, quick = time.perf_counter(), (1, 4), given.quick or given.tiny
    bench = Bench(
        threads=given.threads,
        batches=(1, 2) if given.tiny else (1, 16),
        steps=few if quick else (1, 2, 4, 200),
        few_steps=(1, 2, 4, 200) if given.full else few,
        rounds=3 if quick else 15,
        budget=10.0 if quick else 60.0,
        starts=1 if quick else 3,
        peers=tuple(
            peer
            for peer in PEERS
            if not (given.tiny and peer.compiles) and not (given.quick and "compile" in peer.name)
        ),
        cache=given.cache.resolve(),
    )
    command = " ".join(["python benchmarks/cpu.py", *sys.argv[1:]])
    facts = {"command": command, "threads": given.threads, "clock": bench.clock, "isa": native.isa(), **machine()}
    record = run(bench, TINY if given.tiny else {name: NETWORKS[name] for name in given.networks})
    facts["minutes"] = round((time.perf_counter() - began) / 60, 1)
    record = {"facts": facts, "errors": ERRORS, **record}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "cpu.json").write_text(json.dumps(record, indent=1) + "\n")
    tables.plot(record, given.out / "cpu.png")
    print(f"{tables.text(record)}\nkept in {given.out}")


if __name__ == "__main__":
    main()

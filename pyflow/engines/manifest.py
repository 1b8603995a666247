"""The manifest of an engine: what it is, what it was proved to do, what it needs, and the hash of every file."""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pyflow.artefact import (
    Content,
    json_bytes,
    map_verified,
    read_json,
    read_verified,
    sha256,
    sha256_of_pieces,
    write_file,
)
from pyflow.core import SOLVERS, Plan
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.records import from_json
from pyflow.spec import Spec

FORMAT = 2
NAME, PROOF, NETWORK = "manifest.json", "proof.npy", "network.bin"
GUIDANCE_RULE = "p = u + g*(c - u), both from one batch; g=1 calls the network once"
DENOISER, STEP, SAMPLER = WHATS = ("denoiser", "step", "sampler")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class Bound:
    """What an engine may differ from the float32 reference, whichever of the two its precision is held to."""

    relative: float | None = None  # times max(1, guidance), as a share of the reference's largest value
    psnr: float | None = None  # dB, of the pictures of each case


BOUNDS = {"fp32": Bound(relative=1e-5), "bf16": Bound(psnr=40.0), "fp16": Bound(psnr=40.0), "int8": Bound(psnr=30.0)}


@dataclass(frozen=True)
class Certificate:
    """The measured difference from the reference at export."""

    bound: Bound
    worst: float  # the largest relative error divided by max(1, guidance)
    psnr: float  # dB, of the worst case; 200 where nothing differs
    off_by_one: float  # the share of uint8 values that differ, over all cases
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    guidance: tuple[float, ...]
    masks: bool
    cases: int
    seed: int
    distances: dict[str, Any] = field(default_factory=dict)  # with their features named, where somebody judged


@dataclass(frozen=True)
class PlanRecord:
    """A plan that a sampler's graph holds."""

    graph: str
    solver: str
    grid: tuple[float, ...]
    guidance: float

    def plan(self, spec: Spec) -> Plan:
        return spec.plan(self.grid, self.solver)


@dataclass(frozen=True)
class File:
    sha256: str
    bytes: int
    pieces: tuple[str, ...] = ()  # of a file that is mapped, hashed by several threads when it is loaded

    @classmethod
    def of(cls, name: str, content: Content) -> "File":
        return cls(sha256(content), len(content), sha256_of_pieces(content) if name == NETWORK else ())


@dataclass(frozen=True)
class Manifest:
    backend: str
    what: str
    precision: str
    spec: Spec
    inputs: tuple[str, ...]  # of the denoiser inside
    weights_sha256: str
    files: dict[str, File]
    requires: dict[str, Any]  # of the machine: see host.py
    versions: dict[str, str]
    certificate: Certificate | None  # None until it is proved; such an engine is never published
    plans: tuple[PlanRecord, ...] = ()
    guidance_rule: str = GUIDANCE_RULE
    format: int = FORMAT

    @property
    def proved(self) -> Certificate:
        if self.certificate is None:
            raise InvalidArtefact("the engine has no certificate: it was never proved, export it again")
        return self.certificate

    def to_json(self) -> dict[str, Any]:
        body = {**asdict(self), "spec": self.spec.to_json()}
        return {**body, "seal": seal(body)}


def seal(body: dict[str, Any]) -> str:
    """The hash of everything else in the manifest: an edited figure is noticed, as a flipped bit of the payload is."""
    return sha256(json_bytes({name: value for name, value in body.items() if name != "seal"}))


def is_engine(folder: Path) -> bool:
    return (folder / NAME).is_file()


def read(folder: Path) -> Manifest:
    """The manifest of an engine, refused unless it is whole, unedited, and of a format that this pyflow reads."""
    path = folder / NAME
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else data
        newer = isinstance(found, int) and found > FORMAT
        way_out = "upgrade pyflow" if newer else "export it again"
        raise InvalidArtefact(f"{path} has format {found!r}; this pyflow reads {FORMAT}: {way_out}")
    try:
        sealed = seal(data)
    except ValueError as error:
        raise InvalidArtefact(f"{path} holds a number that no pyflow writes ({error}): export it again") from error
    if data.get("seal") != sealed:
        raise InvalidArtefact(f"{path} does not fit its own seal: it was edited or damaged, export it again")
    body = {name: value for name, value in data.items() if name not in ("seal", "spec")}
    manifest: Manifest = from_json(Manifest, body, str(path), spec=Spec.from_json(data.get("spec"), str(path)))
    _check(manifest, path)
    return manifest


def keep_grid(folder: Path, times: tuple[float, ...]) -> None:
    """Write the times that a search found into the manifest of an engine; its other files stay as they are."""
    manifest = read(folder)
    write_file(folder / NAME, json_bytes(replace(manifest, spec=manifest.spec.with_grid(times)).to_json()))


def files_of(folder: Path) -> tuple[str, ...]:
    """The files that the manifest of an engine of any format names; none where the file is somebody else's."""
    try:
        data = read_json(folder / NAME)
    except InvalidArtefact:
        return ()
    kinds = {"format": int, "seal": str, "backend": str, "files": dict}
    if not isinstance(data, dict) or any(type(data.get(name)) is not kind for name, kind in kinds.items()):
        return ()
    records = data["files"].values()
    ours = all(isinstance(record, dict) and {"sha256", "bytes"} <= set(record) for record in records)
    return tuple(data["files"]) if ours else ()


def payload(folder: Path, manifest: Manifest) -> dict[str, Content]:
    """The engine's files by name, each verified; what is returned is what was hashed.

    A native network is mapped: its weights are used where they lie. The others are read.
    """
    return {
        name: map_verified(folder, name, file.pieces or file.sha256, file.bytes)
        if name == NETWORK
        else read_verified(folder, name, file.sha256, file.bytes)
        for name, file in manifest.files.items()
    }


def _check(manifest: Manifest, path: Path) -> None:
    for name, known in (("what", WHATS), ("precision", PRECISIONS), ("guidance_rule", (GUIDANCE_RULE,))):
        value = getattr(manifest, name)
        if value not in known:
            raise InvalidArtefact(f"{path}: {name} is {value!r}; this pyflow knows {', '.join(known)}: upgrade pyflow")
    if not manifest.files or manifest.certificate is None:
        raise InvalidArtefact(f"{path} names no files or no certificate; the engine is incomplete, export it again")
    _check_bound(manifest.certificate.bound, path)
    _check_requires(manifest.requires, path)
    for record in manifest.plans:
        _check_plan(record, manifest.spec, path)
    if bool(manifest.plans) != (manifest.what == SAMPLER):
        expected = "one or more" if manifest.what == SAMPLER else "none"
        raise InvalidArtefact(
            f"{path} holds {len(manifest.plans)} plans; expected {expected} of a {manifest.what}: export it again"
        )


def _check_bound(bound: Bound, path: Path) -> None:
    limits = [value for value in (bound.relative, bound.psnr) if value is not None]
    if len(limits) != 1 or not 0 < limits[0] <= sys.float_info.max:
        raise InvalidArtefact(f"{path}: {bound}; expected one of relative and psnr, above 0: export it again")


def _check_requires(requires: dict[str, Any], path: Path) -> None:
    for what, needed in requires.items():
        texts = needed if what == "cpu" else [needed]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            expected = "a list of names" if what == "cpu" else "a text"
            raise InvalidArtefact(f"{path}: requires {what} {needed!r}; expected {expected}: export it again")


def _check_plan(record: PlanRecord, spec: Spec, path: Path) -> None:
    if record.solver not in SOLVERS:
        raise InvalidArtefact(f"{path}: a plan has solver {record.solver!r}; this pyflow knows {', '.join(SOLVERS)}")
    if Path(record.graph).name != record.graph or record.graph in ("", ".", ".."):
        raise InvalidArtefact(f"{path}: a plan has graph {record.graph!r}; expected a plain name: export it again")
    try:
        record.plan(spec)
    except (InvalidInput, OverflowError) as error:
        raise InvalidArtefact(f"{path}: a plan can't be built ({error}): export it again") from error

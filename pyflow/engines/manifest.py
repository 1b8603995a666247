"""The manifest of an engine: what it is, what it was proved to do, and the hash of every file it runs."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pyflow.artefact import read_json, read_verified
from pyflow.errors import InvalidArtefact
from pyflow.spec import Spec

FORMAT = 1
NAME = "manifest.json"
GUIDANCE_RULE = "p = u + g*(c - u), both from one batch; g=1 calls the network once"


@dataclass(frozen=True)
class Certificate:
    """The measured difference from the reference at export, as a share of the reference's largest value."""

    bound: float  # allowed, times max(1, guidance)
    worst: float  # the largest measured error divided by max(1, guidance)
    off_by_one: float  # the share of uint8 values that differ, always by one
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    guidance: tuple[float, ...]
    cases: int


@dataclass(frozen=True)
class Manifest:
    backend: str
    what: str
    spec: Spec
    inputs: tuple[str, ...]
    dtype: str
    guidance_rule: str
    weights_sha256: str
    files: dict[str, str]
    versions: dict[str, Any]
    certificate: Certificate
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "spec": self.spec.to_json()}


def is_engine(folder: Path) -> bool:
    return (folder / NAME).is_file()


def read(folder: Path) -> Manifest:
    path = folder / NAME
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else data
        raise InvalidArtefact(
            f"{path} has format {found!r}; this pyflow reads {FORMAT}: upgrade pyflow or export again"
        )
    try:
        spec = Spec.from_json(data["spec"], str(path))
        certificate = Certificate(**{key: _tuples(value) for key, value in data["certificate"].items()})
        rest = {key: _tuples(value) for key, value in data.items() if key not in ("spec", "certificate")}
        manifest = Manifest(**rest, spec=spec, certificate=certificate)
    except (KeyError, TypeError, AttributeError) as error:
        expected = ", ".join(field.name for field in fields(Manifest))
        raise InvalidArtefact(f"{path} is not an engine's manifest ({error}); expected {expected}") from error
    if not isinstance(manifest.files, dict) or not manifest.files:
        raise InvalidArtefact(f"{path} names no files; the engine is incomplete, export it again")
    if not isinstance(manifest.inputs, tuple) or not all(isinstance(name, str) for name in manifest.inputs):
        raise InvalidArtefact(f"{path}: inputs is {manifest.inputs!r}; expected names, export it again")
    return manifest


def payload(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """The engine's files by name, each verified; what is returned is what was hashed."""
    return {name: read_verified(folder, name, digest) for name, digest in manifest.files.items()}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

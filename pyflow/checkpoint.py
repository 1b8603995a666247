"""Checkpoints: a folder of `weights.safetensors` and `spec.json`, and beside them the training state for a resume.

The only reader and writer of weights. Every file's hash stands in spec.json: one flipped bit in a safetensors file
otherwise loads as wrong weights without a word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from .artefact import json_bytes, publish, read_json, read_verified, sha256
from .errors import InvalidArtefact
from .models import build
from .spec import Spec

FORMAT = 1
WEIGHTS, STATE, SPEC = "weights.safetensors", "state.safetensors", "spec.json"


def is_checkpoint(folder: Path) -> bool:
    return (folder / SPEC).is_file()


def save(folder: Path, model: nn.Module, spec: Spec, state: Mapping[str, Tensor] | None = None) -> None:
    """Publish a checkpoint; `state` is what training needs to go on, none for a checkpoint that is only sampled."""
    tensors: dict[str, Mapping[str, Tensor]] = {WEIGHTS: model.state_dict()}
    if state is not None:
        tensors[STATE] = state
    save_arrays(folder, SPEC, {"format": FORMAT, "spec": spec.to_json()}, tensors)


def load(folder: Path) -> tuple[nn.Module, Spec]:
    """The model in evaluation mode, and its spec."""
    record = _record(folder, SPEC)
    spec = _spec(folder, record)
    model = build(spec.network)
    try:
        model.load_state_dict(_arrays(folder, record, WEIGHTS))
    except RuntimeError as error:
        raise InvalidArtefact(f"{folder}: the weights do not fit the spec: {error}") from error
    except InvalidArtefact:
        if _record(folder, SPEC) != record:  # a training run published the next checkpoint between the two reads
            return load(folder)
        raise
    return model.eval(), spec


def load_spec(folder: Path) -> Spec:
    return _spec(folder, _record(folder, SPEC))


def load_state(folder: Path) -> dict[str, Tensor]:
    """The training state of a checkpoint, as given to `save`."""
    return load_arrays(folder, SPEC, STATE)


def weights_sha256(folder: Path) -> str:
    return _record(folder, SPEC)["sha256"][WEIGHTS]


def save_arrays(
    folder: Path, record_name: str, record: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Publish safetensors files with a JSON record that holds their hashes."""
    with publish(Path(folder)) as fresh:
        hashes = {}
        for name, tensors in files.items():
            content = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            (fresh / name).write_bytes(content)
            hashes[name] = sha256(content)
        (fresh / record_name).write_bytes(json_bytes({**record, "sha256": hashes}))


def load_arrays(folder: Path, record_name: str, name: str) -> dict[str, Tensor]:
    """The tensors of one file of the folder, its hash checked first."""
    return _arrays(folder, _record(folder, record_name), name)


def _spec(folder: Path, record: Mapping[str, Any]) -> Spec:
    return Spec.from_json(record.get("spec"), str(Path(folder) / SPEC))


def _arrays(folder: Path, record: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    hashes = record["sha256"]
    if name not in hashes:
        raise InvalidArtefact(f"{folder} holds no {name}; it holds {', '.join(hashes)}")
    return load_tensors(read_verified(Path(folder), name, hashes[name]))


def _record(folder: Path, record_name: str) -> dict[str, Any]:
    path = Path(folder) / record_name
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("sha256"), dict):
        raise InvalidArtefact(f"{path} is not a record that pyflow wrote; expected hashes of its files")
    if record.get("format") != FORMAT:
        raise InvalidArtefact(f"{path} has format {record.get('format')!r}; this pyflow reads {FORMAT}: upgrade pyflow")
    return record

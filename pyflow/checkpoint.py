"""Checkpoints: a folder of `weights.safetensors` and `spec.json`, and beside them the training state for a resume.

The only reader and writer of weights. Every file's hash stands in spec.json: one flipped bit in a safetensors file
otherwise loads as wrong weights without a word.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from .artefact import json_bytes, publish, read_json, read_verified, sha256, write_file
from .errors import InvalidArtefact, InvalidInput
from .models import build, refuse_misfit
from .spec import Network, Own, Spec

FORMAT = 1
WEIGHTS, STATE, SPEC = "weights.safetensors", "state.safetensors", "spec.json"


def is_checkpoint(folder: Path) -> bool:
    return (folder / SPEC).is_file()


def save(
    folder: Path,
    model: nn.Module,
    spec: Spec,
    state: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    beside: Mapping[str, tuple[nn.Module, Spec]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Publish a checkpoint; `state` is what training needs to go on, none for a checkpoint that is only sampled.

    Weights are kept as they are, or in `dtype`: in bfloat16 the file is half as large, and `load` makes float32 of it.
    `beside` are whole checkpoints in folders of these names inside this one, such as other averages of the same run;
    `texts` are files for people, that nothing here reads.
    """
    weights = model.state_dict()
    if dtype is not None:
        weights = {name: one.to(dtype) if one.is_floating_point() else one for name, one in weights.items()}
    tensors: dict[str, Mapping[str, Tensor]] = {WEIGHTS: weights}
    if state is not None:
        tensors[STATE] = state
    with publish(Path(folder)) as fresh:
        _write(fresh, SPEC, _record_of(spec), tensors)
        for name, (other, its_spec) in (beside or {}).items():
            (fresh / name).mkdir()
            _write(fresh / name, SPEC, _record_of(its_spec), {WEIGHTS: other.state_dict()})
        for name, text in (texts or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")


def _record_of(spec: Spec) -> dict[str, Any]:
    return {"format": FORMAT, "spec": spec.to_json()}


def load(folder: Path, model: nn.Module | None = None) -> tuple[nn.Module, Spec]:
    """The model in evaluation mode, and its spec; a network of one's own as a copy of `model` with these weights."""
    record = _record(folder, SPEC)
    spec = _spec(folder, record)
    loaded = _copy_of(model, spec.network) if model is not None else build(spec.network)
    try:
        loaded.load_state_dict(_arrays(folder, record, WEIGHTS))
    except RuntimeError as error:
        what = "the spec" if model is None else f"the {type(model).__name__} that was given"
        raise InvalidArtefact(f"{folder}: the weights do not fit {what}: {error}") from error
    except InvalidArtefact:
        if _record(folder, SPEC) != record:  # a training run published the next checkpoint between the two reads
            return load(folder, model)
        raise
    return loaded.eval(), spec


def _copy_of(model: nn.Module, network: Network) -> nn.Module:
    if not isinstance(network, Own):
        raise InvalidInput(
            f"model is a {type(model).__name__}; expected None: the checkpoint's network is pyflow's own "
            f"{type(network).__name__}"
        )
    refuse_misfit(model, network)
    return copy.deepcopy(model)


def load_spec(folder: Path) -> Spec:
    return _spec(folder, _record(folder, SPEC))


def keep_grid(folder: Path, times: tuple[float, ...]) -> None:
    """Write the times that a search found into the spec of a checkpoint; its other files stay as they are."""
    record = _record(folder, SPEC)
    write_file(Path(folder) / SPEC, json_bytes({**record, "spec": _spec(folder, record).with_grid(times).to_json()}))


def load_state(folder: Path) -> dict[str, Tensor]:
    """The training state of a checkpoint, as given to `save`."""
    return load_arrays(folder, SPEC, STATE)


def weights_sha256(folder: Path) -> str:
    hashes = _record(folder, SPEC)["sha256"]
    if not isinstance(hashes.get(WEIGHTS), str):
        raise InvalidArtefact(f"{Path(folder) / SPEC} has no hash of {WEIGHTS}; it is incomplete, make it again")
    return hashes[WEIGHTS]


def save_arrays(
    folder: Path, record_name: str, record: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Publish safetensors files with a JSON record that holds their hashes."""
    with publish(Path(folder)) as fresh:
        _write(fresh, record_name, record, files)


def _write(
    folder: Path, record_name: str, record: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]
) -> None:
    hashes = {}
    for name, tensors in files.items():
        # Copies: layers of one's own may share weights, and safetensors refuses tensors of one memory.
        content = save_tensors({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
        (folder / name).write_bytes(content)
        hashes[name] = sha256(content)
    (folder / record_name).write_bytes(json_bytes({**record, "sha256": hashes}))


def load_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that others wrote, which has no record here."""
    try:
        return load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise InvalidArtefact(f"{path} is no safetensors file ({error}); make it again") from error


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

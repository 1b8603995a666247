"""The card of a model: what it is, how it was trained, what it is worth, and what it is not for."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyflow.spec import Spec


def card(
    name: str,
    spec: Spec,
    rows: Sequence[Mapping[str, Any]],
    judge: Mapping[str, Any],
    planned: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str:
    recipe = spec.provenance
    measured = "\n".join(
        f"| {row['steps']} | {row['guidance']:g} | {row['distance']:.3f} | {row['label_accuracy']:.1%} |"
        for row in rows
    )
    settings = "\n".join(f"| {field} | `{value}` |" for field, value in recipe.items() if not isinstance(value, dict))
    options = ", ".join(f"{field} {value}" for field, value in recipe.get("options", {}).items())
    machine = ", ".join(f"{field} {facts[field]}" for field in ("gpu", "torch", "commit", "date") if field in facts)
    return f"""# {name}

{recipe["data"]} pictures of {spec.network.shape} in {spec.network.classes} classes, by the recipe `{recipe["name"]}`;
path {spec.path}, prediction {spec.prediction}, solver {spec.solver}. Weights are bfloat16 on disk, float32 when loaded.

    pyflow sample models/{name} --steps 4 --label 3 --out samples.png

| steps | guidance | distance | labels read as asked |
|---|---|---|---|
{measured}

Distance: Fréchet, in the features of a small classifier of the same data ({judge["accuracy"]:.1%} right on held-out
pictures), {judge["pictures"]} pictures of one seed; held-out real pictures are {judge["floor"]:.3f} away. It is no FID.
It was measured on the weights that are here.

![{", ".join(str(row["steps"]) for row in rows)} steps, a row each, of the same noise and labels]({name}.png)

## Recipe
{planned["images"]:,} pictures seen, {planned["images_per_second"]:,.0f} a second, {machine or "on a CPU"}.

| field | value |
|---|---|
{settings}

Options: {options or "none"}.

## Limits
A small network for 32x32 pictures, trained for minutes: a test of methods, not a source of pictures. What it makes
follows its training data.
"""

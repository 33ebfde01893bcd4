"""The card of a registered model: what it is, how good, made of what, and what it is not for. Pure and torch-free.

Markdown with the front matter that model hubs read. It names no path of the machine that made it.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from autoformer.cards import SubnetCard
from autoformer.images.card import DatasetCard
from autoformer.recipe import Augmentation, Recipe
from autoformer.subnet_text import heads_text, ratios_text
from components.register_model.gate import Decision
from components.register_model.latency import Latency
from runtime.common.config import RegisterModel

FILE = "model_card.md"
DESCRIPTION_LIMIT = 5000  # characters of a version's description in MLflow's databases
WEAKEST = 3  # classes that the card names
CLASSES = 50  # names that the card lists
_SHORTER = f"\nThe whole card is `{FILE}` among the version's artifacts.\n"
_HOW = {
    "scratch": "trained from random weights",
    "finetune": "fine-tuned from the weights that it inherited from the supernet",
    "inherited": "used with the weights that it inherited from the supernet",
}


class Facts(NamedTuple):
    """What a card says, as the earlier steps have written it."""

    section: RegisterModel
    decision: Decision
    data: DatasetCard
    model: SubnetCard
    weights: str  # sha256 of model.safetensors
    metrics: Mapping[str, float]  # evaluation/metrics.json
    confusion: Mapping[str, Any]  # evaluation/confusion.json
    searched: Mapping[str, float]  # search/metrics.json
    retrained: Mapping[str, float]  # retrain/metrics.json
    supernet_config: Mapping[str, Any]  # the configuration that trained the supernet
    rollbacks: Mapping[str, Sequence[Mapping[str, Any]]]  # step -> where its training went back
    latency: Latency | None  # None where nothing was registered


def render(facts: Facts) -> str:
    """The whole card."""
    return _front_matter(facts) + "\n".join(_parts(facts))


def description(card: str) -> str:
    """What a version's description in MLflow says: the card without its front matter, as many sections as fit."""
    body = card.partition("\n---\n")[2].lstrip()
    while len(body) > DESCRIPTION_LIMIT:
        body = body.removesuffix(_SHORTER).rpartition("\n## ")[0] + _SHORTER
    return body


def weakest_classes(confusion: Mapping[str, Any], count: int = WEAKEST) -> list[tuple[str, int, int, str]]:
    """(class, right, images, most often taken for) of the classes with the lowest share right; equals by label.

    A class without test images is left out.
    """
    classes, rows = confusion["classes"], []
    for label, row in enumerate(confusion["matrix"]):
        others = [(-images, other) for other, images in enumerate(row) if other != label and images]
        if sum(row):
            rows.append((row[label] / sum(row), label, row[label], sum(row), min(others)[1] if others else None))
    return [
        (classes[label], right, images, "" if other is None else classes[other])
        for _, label, right, images, other in sorted(rows, key=lambda row: row[:2])[:count]
    ]


def _front_matter(facts: Facts) -> str:
    fields = {
        "license": "mit" if facts.data.licence.strip().upper().startswith("MIT") else "other",
        "pipeline_tag": "image-classification",
        "tags": ["autoformer", "vision-transformer", "neural-architecture-search"],
        "datasets": [facts.data.name],
        "metrics": ["accuracy"],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n"


def _parts(facts: Facts) -> list[str]:
    sections = (_opening, _loading, _accuracy, _limits, _architecture, _data, _licence, _recipe)
    return [section(facts) for section in sections]


def _opening(facts: Facts) -> str:
    space, metrics, mode = facts.model.space, facts.metrics, _mode(facts)
    outcome, reason = facts.decision
    low, high = metrics["test_top1_low_percent"], metrics["test_top1_high_percent"]
    return f"""# {facts.section.model_name}

A vision transformer that says which of {len(facts.data.classes)} classes an image shows. It was found by architecture
search (AutoFormer, arXiv 2107.00651) in the space `{space.name}`, and is {_HOW.get(mode, mode)}.

| | |
|---|---|
| registry | `{facts.section.model_name}@{facts.section.alias}`, {outcome}: {reason} |
| test accuracy | {metrics["test_top1_percent"]:.2f} % (95 % interval {low:.2f} to {high:.2f} %) |
| parameters | {metrics["params"]:,.0f} |
| multiply-adds | {metrics["macs"]:,.0f} for one image |
| CPU latency | {_latency(facts.latency)} |
| weights | sha256 `{facts.weights}` |
"""


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "not measured: this run registered nothing"
    return (
        f"median {latency.median_ms:.2f} ms, 90th percentile {latency.p90_ms:.2f} ms for one image, without reading "
        f"the file; {latency.passes} passes at registration, {latency.threads} threads, {latency.cpu}"
    )


def _loading(facts: Facts) -> str:
    if facts.decision.outcome == "refused":
        return f"""## Load it

This run registered nothing: `{facts.section.model_name}@{facts.section.alias}` is another model, or none.
The weights are in the folder of the retraining: `make predict IMAGE=image.png MODEL=…/retrain/model` names it.
"""
    return f"""## Load it

With MLflow, and `MLFLOW_TRACKING_URI` naming the registry; the version brings its own code and preprocessing:

```python
import base64, pathlib, mlflow, pandas
model = mlflow.pyfunc.load_model("models:/{facts.section.model_name}@{facts.section.alias}")
image = base64.b64encode(pathlib.Path("image.png").read_bytes()).decode()
answer = model.predict(pandas.DataFrame({{"image": [image]}}))
print(answer.loc[0, "class"], answer.loc[0, "probability"])
```

`@{facts.section.alias}` moves on to later versions; `/1` in its place is version 1 for ever. In a checkout of the
project, this does the same: `make predict IMAGE=image.png MODEL={facts.section.model_name}`.
"""


def _accuracy(facts: Facts) -> str:
    metrics = facts.metrics
    lines = [
        f"| test accuracy, top-1 | {metrics['test_top1_percent']:.2f} % | 95 % interval (Wilson) "
        f"{metrics['test_top1_low_percent']:.2f} to {metrics['test_top1_high_percent']:.2f} % |",
        f"| test accuracy, top-5 | {metrics['test_top5_percent']:.2f} % | |",
        f"| test loss | {metrics['test_loss']:.4f} | cross entropy, in nats |",
        f"| calibration error (ECE) | {metrics['test_ece']:.4f} | 15 bins, 0 is best; only for images like these |",
    ]
    for key, what in (("inherited", "with inherited weights"), ("scratch", "trained from random weights")):
        if f"{key}_test_top1_percent" in metrics:
            value = metrics[f"{key}_test_top1_percent"]
            lines.append(f"| same subnet {what} | {value:.2f} % | test accuracy, for comparison |")
    lines.append(_on_search_split(facts.retrained))
    table = "\n".join(lines)
    weak = "\n".join(
        f"| {_cell(name)} | {right:,} of {images:,} ({100 * right / images:.1f} %) | {_cell(taken_for)} |"
        for name, right, images, taken_for in weakest_classes(facts.confusion)
    )
    return f"""## Accuracy

On the {metrics["test_images"]:,.0f} images of the test split, which no step but the evaluation was given.

| | | |
|---|---:|---|
{table}

The weakest classes:

| Class | Right | Most often taken for |
|---|---:|---|
{weak}
"""


def _on_search_split(retrained: Mapping[str, float]) -> str:
    if retrained.get("search_split_trained_on"):
        return (
            f"| search split, inherited weights | {retrained['inherited_top1_percent']:.2f} % | the subnet was chosen "
            "on these images, and then trained on them too: not an estimate of accuracy |"
        )
    return (
        f"| search split | {retrained['retrained_top1_percent']:.2f} % | the subnet was chosen on these images: "
        "not an estimate of accuracy |"
    )


def _limits(facts: Facts) -> str:
    metrics, space = facts.metrics, facts.model.space
    smallest = min((sum(row) for row in facts.confusion["matrix"]), default=0)
    colour = "grey" if space.in_channels == 1 else "RGB"
    return f"""## Limits

- Not for decisions about a person's health, safety, rights or livelihood, nor for any use in which a wrong answer does
  harm: nothing here was tested for that.
- It names one of its {len(facts.data.classes)} classes for every image, also for one that shows none of them, and its
  probability gives no warning. Images must look like the training images in subject, framing, light and background;
  they become {colour}, {space.image_size} x {space.image_size} pixels.
- The interval covers the chance of the draw of {metrics["test_images"]:,.0f} test images, and neither another seed nor
  images from another source. Figures of one class are less certain still: the smallest class has {smallest:,} of them.
- The registry compares versions on one test split. After many versions the best of them is flattered by that split.
- Whatever bias the images and their labels have, the model has too; none was looked for.
- The latency is of one machine, whatever else ran on it then.
"""


def _architecture(facts: Facts) -> str:
    space, subnet = facts.model.space, facts.model.subnet
    pooled = "the mean of the patches" if space.pooling == "mean" else "the class token"
    return f"""## Architecture

| | |
|---|---|
| depth, in blocks | {subnet.depth} |
| width, in channels | {subnet.embed_dim} |
| heads of each block | {heads_text(subnet)}, of {space.head_dim} channels |
| MLP ratio of each block | {ratios_text(subnet)} |
| input | {space.image_size} x {space.image_size} x {space.in_channels}, patches of {space.patch_size} pixels |
| relative position | {"yes" if space.relative_position else "no"} |
| classified from | {pooled} |
"""


def _data(facts: Facts) -> str:
    data = facts.data
    names = ", ".join(data.classes[:CLASSES])
    if len(data.classes) > CLASSES:
        names += f" and {len(data.classes) - CLASSES} more, which `model.json` lists"
    splits = "\n".join(
        f"| {_cell(split)} | {count:,} | `{data.split_hashes.get(split, 'unknown')}` |"
        for split, count in data.counts.items()
    )
    notes = "".join(f"\n{note}\n" for note in getattr(data, "notes", ()))
    return f"""## Data

{data.name}: {data.source.strip()}

| Split | Images | sha256 of its images and labels |
|---|---:|---|
{splits}

Classes: {names}.
{notes}"""


def _licence(facts: Facts) -> str:
    return f"""## Licence

The code and the architecture: MIT. The training images: {facts.data.licence.strip().rstrip(".")}. Weights are made from
images: whether their licence extends to the weights is for you to judge.
"""


def _recipe(facts: Facts) -> str:
    config, mode = facts.model.provenance.get("config", {}), _mode(facts)
    parts = {"train_supernet": dict(facts.supernet_config.get("train_supernet") or {})}
    if mode != "inherited":
        parts["retrain_subnet"] = dict(config.get("retrain_subnet") or {})
    plain = {
        name: {key: _told(key, value) for key, value in part.items() if _decides(key, value)}
        for name, part in parts.items()
    }
    scored = facts.searched.get("candidates_scored")
    search = f" out of {scored:,.0f} candidates that were scored" if scored is not None else ""
    said = {
        "scratch": "The supernet decided which subnet was chosen; the weights are of the retraining alone.",
        "finetune": "The weights are the supernet's, trained on by the retraining.",
        "inherited": "The weights are the supernet's as they are.",
    }.get(mode, "")
    returns = "".join(
        f"\n{step} went back from step {row['step']} to {row['back_to_step']}, because {row['reason']}; its learning "
        f"rates were {row['learning_rate_scale']:g} of the recipe's from there on.\n"
        for step, rows in facts.rollbacks.items()
        if step in parts
        for row in rows
    )
    return f"""## Recipe

Chosen by evolution{search}. {said} Seed {facts.model.provenance.get("seed", "unknown")}, code
`{facts.model.provenance.get("code", "unknown")}`.
{returns}
```yaml
{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()}
```
"""


def _decides(key: str, value: Any) -> bool:
    """Whether a key of a training section is part of the recipe, and says anything."""
    return (key in Recipe.model_fields or key == "mode") and value is not None


def _told(key: str, value: Any) -> Any:
    """Of augmentation what is switched on; of a teacher's checkpoint the file's name, since a folder is a machine's."""
    if key == "augmentation":
        usual = Augmentation().model_dump(mode="json")
        return {name: each for name, each in value.items() if each != usual.get(name)} or "none"
    if key == "distillation":
        return value | {"checkpoint": PurePath(str(value["checkpoint"])).name}
    return value


def _mode(facts: Facts) -> str:
    return str(facts.model.provenance.get("weights", "unknown"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

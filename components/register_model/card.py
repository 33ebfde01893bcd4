"""The model card: values of templates/model_card.md.j2, and its rendering.

It is Markdown with the front matter that model hubs read, and contains no local paths.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jinja2
import yaml

from autoformer.cards import SubnetCard
from autoformer.errors import quantity
from autoformer.images.card import DatasetCard
from autoformer.latency import LatencyTable
from autoformer.recipe import Augmentation, Recipe
from autoformer.subnet_text import heads_text, ratios_text
from components.register_model.gate import TOP1, Decision, Measured, hash_classes
from components.register_model.latency import Latency
from runtime.common.budgets import folder_of
from runtime.common.records import Confusion, Provenance, Rollback
from runtime.common.search_names import found_by
from runtime.common.search_split import search_split_note
from runtime.common.sections import RegisterModel

FILE = "model_card.md"
DESCRIPTION_LIMIT = 5000  # characters of a version's description in MLflow's databases
WEAKEST_CLASSES = 3  # shown on the card
LISTED_CLASSES = 50
_SHORTENED = f"\nThe whole card is `{FILE}` among the version's artifacts.\n"


class Facts(NamedTuple):
    """The results of the earlier steps for one model."""

    section: RegisterModel
    data: DatasetCard
    model: SubnetCard
    weights: str  # sha256 of model.safetensors
    metrics: Mapping[str, float]  # evaluation/metrics.json
    confusion: Confusion
    searched: Mapping[str, float]  # search/metrics.json
    retrained: Mapping[str, float]  # retrain/metrics.json
    supernet_config: Mapping[str, Any]  # configuration of the supernet's training
    rollbacks: Mapping[str, Sequence[Rollback]]  # step -> rollbacks
    table: LatencyTable | None = None  # latency table of the search
    budget: str = ""  # label of the budget; empty without budgets

    @property
    def measured(self) -> Measured:
        top1, classes = float(self.metrics[TOP1]), hash_classes(self.data.classes)
        side = None if self.data.image_size is None else str(self.data.image_size)
        split = self.data.split_hashes.get("test")
        return Measured(self.weights, split, top1, classes, self.data.test_originals, side)


def render(facts: Facts, decision: Decision, latency: Latency | None) -> str:
    """The complete card. `latency`: None if this run registered nothing."""
    mode = str(facts.model.provenance.get("weights", "unknown"))
    recipe = _recipe(facts, mode)
    values = {
        "decision": decision,
        "latency": latency,
        "front_matter": _yaml(_front_matter(facts.data)),
        "mode": mode,
        "space": facts.model.space,
        "subnet": facts.model.subnet,
        "heads": heads_text(facts.model.subnet),
        "ratios": ratios_text(facts.model.subnet),
        "provenance": facts.model.provenance,
        "weakest_classes": weakest_classes(facts.confusion),
        "smallest_class": min((sum(row) for row in facts.confusion.matrix), default=0),
        "listed_classes": LISTED_CLASSES,
        "found_by": found_by(facts.searched),
        "search_split_note": search_split_note(facts.data.name),
        "recipe": _yaml(recipe).strip(),
        "folder": folder_of(PurePath("retrain"), facts.budget) / "model",
        "rollbacks": [(step, row) for step, rows in facts.rollbacks.items() if step in recipe for row in rows],
    }
    return _template().render(facts._asdict() | values)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"fmt": format, "quantity": quantity, "cell": lambda text: text.replace("|", "\\|")}
    return environment.get_template(f"{FILE}.j2")


def render_all(cards: Sequence[str]) -> str:
    """The cards of several budgets, one after the other, with the first one's front matter."""
    return "\n".join([cards[0], *(card.partition("\n---\n")[2].lstrip() for card in cards[1:])])


def description(card: str) -> str:
    """A version's description in MLflow: the card without front matter, cut after the last section that fits."""
    body = card.partition("\n---\n")[2].lstrip()
    while len(body) > DESCRIPTION_LIMIT:
        body = body.removesuffix(_SHORTENED).rpartition("\n## ")[0] + _SHORTENED
    return body


def weakest_classes(confusion: Confusion, count: int = WEAKEST_CLASSES) -> list[tuple[str, int, int, str]]:
    """The classes with the lowest recall, ties in label order: (class, correct, images, most frequent mistake).

    A class without test images is left out.
    """
    classes, rows = confusion.classes, []
    for label, row in enumerate(confusion.matrix):
        others = [(-images, other) for other, images in enumerate(row) if other != label and images]
        if sum(row):
            rows.append((row[label] / sum(row), label, row[label], sum(row), min(others)[1] if others else None))
    return [
        (classes[label], right, images, "" if other is None else classes[other])
        for _, label, right, images, other in sorted(rows, key=lambda row: row[:2])[:count]
    ]


def _front_matter(data: DatasetCard) -> dict[str, Any]:
    return {
        "license": "mit" if data.licence.strip().upper().startswith("MIT") else "other",
        "pipeline_tag": "image-classification",
        "tags": ["autoformer", "vision-transformer", "neural-architecture-search"],
        "datasets": [data.name],
        "metrics": ["accuracy"],
    }


def _recipe(facts: Facts, mode: str) -> dict[str, dict[str, Any]]:
    """Step -> the configuration keys that decided the weights."""
    sections = {"train_supernet": Provenance(config=dict(facts.supernet_config)).section("train_supernet")}
    if mode != "inherited":
        retraining = Provenance.model_validate(facts.model.provenance).section("retrain_subnet")
        if mode == "scratch" and retraining.get("mode") == "best":  # the weights of the reference
            retraining = {**sections["train_supernet"], "mode": mode, "epochs": facts.retrained.get("scratch_epochs")}
        sections["retrain_subnet"] = retraining
    keys = {*Recipe.model_fields, "mode"}
    return {
        step: {key: _shortened(key, value) for key, value in section.items() if key in keys and value is not None}
        for step, section in sections.items()
    }


def _shortened(key: str, value: Any) -> Any:
    """Augmentation without defaults, a teacher's checkpoint without its folder, other values unchanged."""
    if key == "augmentation" and isinstance(value, Mapping):
        defaults = Augmentation().model_dump(mode="json")
        return {name: setting for name, setting in value.items() if setting != defaults.get(name)} or "none"
    if key == "distillation" and isinstance(value, dict):
        return value | {"checkpoint": PurePath(str(value.get("checkpoint"))).name}
    return value


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)

"""Cost of each step: images through a model, and MACs. Counted, not timed: equal runs give equal reports.

A step whose inputs of the count are not recorded has no count.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from autoformer.complexity import count_macs
from autoformer.errors import quantity
from autoformer.sampling import PARAM_BINS, Sampling
from components.evaluate_subnet.measure import Evaluation, Measured
from components.evaluate_subnet.results import Point, Results
from components.evaluate_subnet.sections import repeated
from runtime.common.sections import RetrainSubnet, TrainingSection, TrainSupernet

# MACs of a training image, as a multiple of its forward pass. The backward pass computes two products as large as each
# of the forward pass: the gradients of its inputs and of its weights.
TRAINING_FACTOR = 3
# Steps that the mean MACs of a supernet's subnets are taken over. `uniform_params` takes milliseconds for each.
MOST_STEPS: dict[Sampling, int] = {"uniform": 4096, "sandwich": 4096, "uniform_params": 8 * PARAM_BINS}
_Section = TypeVar("_Section", bound=TrainingSection)


class Cost(NamedTuple):
    """`images` counts an image once for each subnet that it goes through. Both counts are None if not recorded."""

    label: str
    note: str = ""
    images: int | None = None
    macs: int | None = None


def costs(results: Results, evaluation: Evaluation, budgets: Mapping[str, Measured]) -> dict[str, Any]:
    """Values of templates/cost.html.j2. `budgets`: of each budget; empty for the one of the other arguments."""
    same = repeated(budgets)
    subnets = {label: (one.results, one.evaluation) for label, one in budgets.items() if label not in same}
    subnets = subnets or {"": (results, evaluation)}
    trainings = [cost for label, (one, _) in subnets.items() for cost in _retraining(one, label)]
    rows = [_supernet(results), _search(results), *trainings, _evaluation(subnets.values())]
    return {
        "rows": rows,
        "largest": max(rows, key=lambda row: row.macs or 0),
        "total": sum(row.macs or 0 for row in rows),
        "factor": TRAINING_FACTOR,
    }


def _supernet(results: Results) -> Cost:
    label, section, space = "Supernet training", _section(results, "train_supernet", TrainSupernet), results.space
    if section is None:
        return Cost(label)
    if section.adopt is not None:
        return Cost(label, "this run adopted an existing supernet; its training has no cost here", 0, 0)
    steps, note = _length(results, results.supernet_curves, section.batch_size, "train")
    seed = results.provenance["train_supernet"]["config"].get("seed")
    if not steps or not isinstance(seed, int):
        return Cost(label)
    sampler = section.sampler(space, seed)
    drawn = [sampler(step) for step in range(min(steps, MOST_STEPS[section.sampling]))]
    subnets = [one.subnet or space.largest for passes in drawn for one in passes]
    images = steps * section.batch_size * len(drawn[0])
    macs = TRAINING_FACTOR * images * sum(count_macs(space, subnet) for subnet in subnets) // len(subnets)
    times = f" × {quantity(len(drawn[0]), 'subnet')}" if len(drawn[0]) > 1 else ""
    some = "all" if len(drawn) == steps else f"the first {len(drawn):,} of"
    which = (
        f"mean MACs of the subnets that the sampler ({section.sampling}, seed {seed}) drew in {some} "
        f"{quantity(steps, 'step')}"
    )
    return Cost(label, f"{note}{times}; {which}", images, macs)


def _search(results: Results) -> Cost:
    seen = results.search.images_seen
    if not seen:
        return Cost("Search")
    images = sum(seen.values())
    macs = sum(count * count_macs(results.space, subnet) for subnet, count in seen.items())
    note = (
        f"{quantity(len(seen), 'subnet')} × {quantity(round(images / len(seen)), 'image')} on average; the longer of "
        "two races counts"
    )
    return Cost("Search", note, images, macs)


def _retraining(results: Results, budget: str) -> list[Cost]:
    label = f"Retraining {budget}".rstrip()
    section = _section(results, "retrain_subnet", RetrainSubnet)
    recipe = _section(results, "train_supernet", TrainSupernet)  # of the reference
    macs, found = count_macs(results.space, results.subnet.subnet), list[Cost]()
    for curves, own, name in (
        (results.retrain_curves, section, "from scratch" if section and section.mode == "scratch" else "fine-tuning"),
        (results.scratch_curves, recipe, "reference from scratch"),
    ):
        if not curves:
            continue
        steps, note = _length(results, curves, own.batch_size, section.split) if section and own else (0, "")
        if own and steps:
            images = steps * own.batch_size
            found.append(Cost(f"{label} ({name})", note, images, TRAINING_FACTOR * images * macs))
        else:
            found.append(Cost(f"{label} ({name})"))
    return found or [Cost(label, "nothing was trained", 0, 0)]


def _evaluation(subnets: Iterable[tuple[Results, Evaluation]]) -> Cost:
    images = macs = models = 0
    for results, evaluation in subnets:
        different = len(set(evaluation.weights.values()))
        seen = evaluation.scores["retrained"].images * different
        images, models = images + seen, models + different
        macs += seen * count_macs(results.space, results.subnet.subnet)
    return Cost(
        "Evaluation",
        f"{quantity(images // models, 'test image')} with each of {quantity(models, 'set')} of weights",
        images,
        macs,
    )


def _length(results: Results, curves: Mapping[str, list[Point]], batch_size: int, split: str) -> tuple[int, str]:
    """Steps of a training, and its epochs in words; 0 if unknown. An epoch has whole steps only."""
    per_epoch = results.card.counts.get(split, 0) // batch_size
    epochs = max((points[-1][0] for points in curves.values()), default=0)
    return round(epochs * per_epoch), f"{quantity(per_epoch * batch_size, 'image')} × {quantity(epochs, 'epoch')}"


def _section(results: Results, step: str, kind: type[_Section]) -> _Section | None:
    """The step's configuration in its provenance; None if it is missing or of an older version."""
    try:
        return kind.model_validate(results.provenance[step]["config"][step])
    except (KeyError, TypeError, ValueError):
        return None

"""Several budgets in one run: their labels, and their files in a step's folder.

A budget is a maximum of parameters. Its label, such as `0.1m`, names its files, metrics and registered model. A run
without `search_subnet.budgets` has the one label "", and its files are in the step's folder itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from typing import TypeVar

from autoformer.errors import AutoFormerError, quantity
from autoformer.limits import UNITS, Limits
from autoformer.named import NamedSubnet
from autoformer.space import SearchSpace
from runtime.common.console import existing

FOLDER = "budgets"
MOST = 10
PathKind = TypeVar("PathKind", bound=PurePath)


def budget_params(budget: float) -> int:
    """The maximum number of parameters of a budget, rounded as in `Limits`."""
    return round(budget * UNITS["params_m"])


def label_of(budget: float) -> str:
    """The shortest text of the budget in millions, and an m. Budgets with equal labels are equal."""
    return f"{budget_params(budget) / UNITS['params_m']:.6f}".rstrip("0").rstrip(".") + "m"


def check_budgets(budgets: Sequence[float], limits: Limits) -> None:
    """Raise `ValueError` unless budgets ascend and agree with the limits."""
    if len(budgets) > MOST:
        raise ValueError(f"{quantity(len(budgets), 'budget')}; at most {MOST}")
    for budget in budgets:
        if budget_params(budget) < 1:
            raise ValueError(f"{budget:g} million parameters are less than one parameter")
    for low, high in pairwise(budgets):
        if budget_params(low) >= budget_params(high):
            problem = "twice" if budget_params(low) == budget_params(high) else f"before {high:g}"
            raise ValueError(f"{low:g} stands {problem}; write each budget once, the smallest first")
    maximum, minimum = limits.max_params_m, limits.min_params_m
    if maximum is not None and budget_params(maximum) != budget_params(budgets[-1]):
        raise ValueError(f"the largest is not limits.max_params_m {maximum:g}; make them equal, or that limit null")
    if minimum is not None and budget_params(minimum) > budget_params(budgets[0]):
        raise ValueError(f"{budgets[0]:g} is below limits.min_params_m {minimum:g}; lower the minimum")


def check_labels(budgets: Sequence[float], model_name: str, longest: int) -> None:
    """Raise `ValueError` if the name of a budget's registered model is too long."""
    for budget in budgets:
        name = model_of(model_name, label_of(budget))
        if len(name) > longest:
            raise ValueError(f"register_model.model_name: with its budget, {name[-60:]!r}, it is longer than {longest}")


def model_of(model_name: str, label: str) -> str:
    """The name of a budget's registered model."""
    return f"{model_name}-{label}" if label else model_name


def step_title(step: str, label: str) -> str:
    """The name of a step and of its current budget, for printed lines."""
    return f"{step} {label}".rstrip()


def folder_of(step_folder: PathKind, label: str) -> PathKind:
    """The folder of one budget's files in a step's folder."""
    return step_folder / FOLDER / label if label else step_folder


def prefix_of(label: str) -> str:
    """The prefix of a budget's metric names."""
    return f"{label}/" if label else ""


def ascending(labels: Iterable[str]) -> list[str]:
    """Labels, smallest budget first. Raises `ValueError` for a text that is no label."""
    return sorted(labels, key=lambda label: float(label.removesuffix("m")))


def read_chosen(search: Path, space: SearchSpace | None = None) -> dict[str, NamedSubnet]:
    """Label -> subnet that the search chose for it, smallest budget first.

    Raises:
        AutoFormerError: there is no chosen subnet, or it is not in the space.
    """
    folder = existing(search, "search_subnet") / FOLDER
    files = {file.stem: file for file in folder.glob("*m.yaml")}
    try:
        labels = ascending(files)
    except ValueError:
        raise AutoFormerError(f"{folder}: not what search_subnet writes; run search_subnet again") from None
    ordered = {label: files[label] for label in labels} or {"": search / "chosen.yaml"}
    chosen = {label: NamedSubnet.from_yaml(existing(file, "search_subnet")) for label, file in ordered.items()}
    if space is not None:
        for subnet in chosen.values():
            subnet.check(space)
    return chosen


def merge_metrics(by_label: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics of all budgets: those of the largest, then those of each with its prefix."""
    largest = list(by_label)[-1]
    merged = dict(by_label[largest])
    for label, metrics in by_label.items():
        merged |= {f"{prefix_of(label)}{name}": value for name, value in metrics.items()}
    return merged


def metrics_of(merged: Mapping[str, float], label: str) -> dict[str, float]:
    """The metrics of one budget, from the result of `merge_metrics`."""
    prefix = prefix_of(label)
    return {name.removeprefix(prefix): value for name, value in merged.items() if name.startswith(prefix)}

"""register_model: register the evaluated subnet in MLflow if it passes the gate (see `gate`)."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoformer.cards import read_subnet_card, read_supernet_card
from autoformer.errors import AutoFormerError, UnavailableError
from autoformer.files import hash_file, hash_path, write_json, write_text
from autoformer.images.card import read_card
from autoformer.latency import table_of_search
from autoformer.named import NamedSubnet
from autoformer.reading import as_kind, read_json_as
from components.register_model.card import FILE as CARD_FILE
from components.register_model.card import Facts, description, render, render_all
from components.register_model.gate import TEST_SPLIT, TOP1, WEIGHTS, Decision, Measured, decide
from components.register_model.latency import Latency, measure
from runtime import tracking
from runtime.common.budgets import folder_of, merge_metrics, metrics_of, model_of, prefix_of, read_chosen
from runtime.common.config import Config
from runtime.common.console import check_apart, existing
from runtime.common.records import Provenance, Rollback, read_confusion, read_metrics
from runtime.common.sections import RegisterModel
from runtime.steps.command import run_step, step_parser
from runtime.steps.inputs import add_folder_arguments
from runtime.steps.step_context import StepContext, open_step
from runtime.tracking.provenance import git_commit
from runtime.tracking.step_logger import budget_run
from runtime.tracking.store import patience_seconds

STEP = "register_model"
TRIES = 5  # if processes of other machines register at the same time
FOLDERS = ("supernet", "search", "retrain", "evaluation")


def parser() -> argparse.ArgumentParser:
    step = step_parser(STEP, "Register the evaluated subnet in MLflow if it passes the gate; else record why not.")
    step.add_argument("--card", type=Path, required=True, help="the data set's card, made by prepare_data")
    add_folder_arguments(step, *FOLDERS)
    step.add_argument("--model-card", type=Path, required=True, help="to write: the model's card (Markdown)")
    step.add_argument("--out", type=Path, required=True, help="to write: the decision and its reason (JSON)")
    step.add_argument("--record", type=Path, required=True, help="to write: clocks and run ids (JSON)")
    return step


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(RegisterModel)
    by_label = {label: read_facts(arguments, section, label, named) for label, named in _chosen(arguments).items()}
    *_, largest = by_label
    check_apart([arguments.model_card], arguments.out, arguments.record, arguments.card)
    with open_step(STEP, arguments, config, "card", *FOLDERS, out_is_file=True) as opened:
        tracked = opened.tracked
        tracked.subnet(by_label[largest].model.subnet)
        tracked.metrics(merge_metrics({label: facts.metrics for label, facts in by_label.items()}))
        # KFP never caches this step, so it also logs the results of cached steps
        for label in dict.fromkeys(["", *by_label]):
            facts = by_label[label or largest]
            tracked.headline({**facts.metrics, **facts.searched}, facts.model.subnet, label)
        if not tracked.run_id:
            raise AutoFormerError("the model registry is part of MLflow, which AUTOFORMER_TRACKING=off switches off")
        tracked.flush(wait_seconds=patience_seconds())
        registered = _register_all(arguments, config, opened, by_label)
        write_text(arguments.model_card, render_all([one.card for one in registered.values()]))
        registration = registered[largest].registration
        if largest:
            tracked.child_runs([_child_run(by_label[label], one) for label, one in registered.items()])
            registration = registration | {"budgets": {label: one.registration for label, one in registered.items()}}
        write_json(arguments.out, registration)
        tracked.artifact(arguments.out)
    for one in registered.values():
        print(f"{STEP}: {one.in_words}", flush=True)


class _Registered(NamedTuple):
    registration: dict[str, Any]  # content of registration.json
    card: str

    @property
    def in_words(self) -> str:
        decision, reason, name, alias, version = (
            self.registration[key] for key in ("decision", "reason", "model_name", "alias", "version")
        )
        return f"{decision}: {reason}; {name}@{alias} is {f'version {version}' if version else 'no version'}"


def _register_all(
    arguments: argparse.Namespace, config: Config, opened: StepContext, by_label: Mapping[str, Facts]
) -> dict[str, _Registered]:
    """Register each model that passes the gate. An error about one is raised after the others are done.

    Raises:
        AutoFormerError: from `register`, for the first model that failed; `UnavailableError` immediately.
    """
    registered, errors = {}, list[AutoFormerError]()
    for label, facts in by_label.items():
        try:
            registered[label] = _register_one(arguments, config, opened, facts)
        except UnavailableError:
            raise
        except AutoFormerError as error:
            errors.append(error)
    for one in registered.values() if errors else ():
        print(f"{STEP}: {one.in_words}", flush=True)
    if errors:
        raise errors[0]
    return registered


def _register_one(arguments: argparse.Namespace, config: Config, opened: StepContext, facts: Facts) -> _Registered:
    """Register one model if it passes the gate."""
    tracked, record, prefix = opened.tracked, opened.record.values, prefix_of(facts.budget)
    model = folder_of(arguments.retrain, facts.budget) / "model"
    decision, version = decide_now(facts)
    latency = None
    if decision.outcome == "registered":
        latency = measure(model, config.threads)
        record[f"{prefix}cpu_latency"] = latency._asdict()
        tracked.metrics(
            {
                f"{prefix}cost/cpu_latency_median_ms": latency.median_ms,
                f"{prefix}cost/cpu_latency_p90_ms": latency.p90_ms,
            }
        )
        parent = record.get("mlflow_parent_run_id", "")
        decision, version = register(model, facts, latency, tracked.run_id, parent)
        latency = latency if decision.outcome == "registered" else None
    tracked.tags({f"{prefix}outcome": decision.outcome, f"{prefix}reason": decision.reason})
    registration = {
        "decision": decision.outcome,
        "reason": decision.reason,
        "model_name": facts.section.model_name,
        "alias": facts.section.alias,
        "version": version,
        "test_split": facts.measured.test_split,
        "weights": facts.weights,
        "subnet": facts.model.subnet.to_dict(),
        "metrics": facts.metrics,
    }
    return _Registered(registration, render(facts, decision, latency))


def _child_run(facts: Facts, registered: _Registered) -> dict[str, Any]:
    """The MLflow run of one budget, for a table that compares budgets."""
    figures = {**facts.metrics, **facts.searched}
    tags = {key: str(registered.registration[key]) for key in ("decision", "model_name", "version")}
    return budget_run(facts.budget, figures, facts.model.subnet, tags)


def _chosen(arguments: argparse.Namespace) -> dict[str, NamedSubnet]:
    existing(arguments.retrain, "retrain_subnet")
    existing(arguments.evaluation, "evaluate_subnet")
    existing(arguments.supernet, "train_supernet")
    return read_chosen(arguments.search)


def read_facts(arguments: argparse.Namespace, section: RegisterModel, label: str, chosen: NamedSubnet) -> Facts:
    """Read the results of the earlier steps, and check that they belong to one model and one test split. Torch-free.

    Args:
        label: label of the budget.
        chosen: the subnet that the search chose for it.
    """
    supernet, search = arguments.supernet, arguments.search
    retrain, evaluation = (folder_of(folder, label) for folder in (arguments.retrain, arguments.evaluation))
    existing(retrain / "model", "retrain_subnet")
    existing(evaluation, "evaluate_subnet")
    metrics, data = read_metrics(evaluation / "metrics.json", TOP1, "params", "macs"), read_card(arguments.card)
    tested_on = read_json_as(Provenance, evaluation / "provenance.json")
    model = read_subnet_card(retrain / "model")
    weights = hash_file(existing(retrain / "model" / "model.safetensors", "retrain_subnet"))
    if model.subnet != chosen.subnet:
        raise AutoFormerError(f"{retrain}: holds another subnet than {search} has chosen; run retrain_subnet again")
    if tested_on.models.get("retrained") != weights:
        raise AutoFormerError(f"{evaluation}: is about other weights than {retrain}/model; run evaluate_subnet again")
    if tested_on.test_split != data.split_hashes.get("test"):
        raise AutoFormerError(
            f"{evaluation}: is about another test split than {arguments.card}; run evaluate_subnet again"
        )
    trained = read_supernet_card(supernet)
    supernet_hash = as_kind(Provenance, model.provenance, f"{retrain}/model/model.json").inputs.get("supernet")
    if supernet_hash is not None and supernet_hash != hash_path(supernet):
        raise AutoFormerError(f"{retrain}: of another supernet than {supernet}; run retrain_subnet again")
    name = model_of(section.model_name, label)
    return Facts(
        section=section.model_copy(update={"model_name": name}),
        data=data,
        model=model,
        weights=weights,
        metrics=metrics,
        confusion=read_confusion(evaluation / "confusion.json"),
        searched=metrics_of(read_metrics(search / "metrics.json"), label),
        retrained=read_metrics(retrain / "metrics.json"),
        supernet_config=as_kind(Provenance, trained.provenance, f"{supernet}/supernet.json").config,
        rollbacks={
            step: read_json_as(list[Rollback], file) if file.exists() else []
            for step, file in (
                ("train_supernet", supernet / "rollbacks.json"),
                ("retrain_subnet", retrain / "rollbacks.json"),
            )
        },
        table=table_of_search(search),
        budget=label,
    )


def decide_now(facts: Facts) -> tuple[Decision, str | None]:
    """The decision against the current champion, and the champion's version."""
    section = facts.section
    champion = tracking.aliased_version(section.model_name, section.alias)
    rival = Measured.from_tags(champion.tags) if champion else None
    return decide(facts.measured, section.min_top1_percent, rival), champion.version if champion else None


def register(
    model: Path, facts: Facts, latency: Latency, run_id: str, pipeline_run_id: str
) -> tuple[Decision, str | None]:
    """Decide again, since others may have registered meanwhile; create a version with its card, and move the alias.

    Processes of one machine take turns. Processes of several machines decide again if the champion has changed.

    If a step was killed between creating a version and moving the alias, that version gets the alias now.

    Returns:
        The decision, and the version with the alias.
    """
    name, alias = facts.section.model_name, facts.section.alias
    tags = {
        **facts.measured.tags,
        "params": f"{facts.metrics['params']:.0f}",
        "macs": f"{facts.metrics['macs']:.0f}",
        "spec": facts.model.subnet.to_json(),
        "git_commit": git_commit(),
        "pipeline_run_id": pipeline_run_id,
    }
    if facts.budget:
        tags |= {tracking.BUDGET: facts.budget, tracking.FAMILY: name.removesuffix(f"-{facts.budget}")}
    with tracking.registration_lock():
        for _ in range(TRIES):
            decision, rival = decide_now(facts)
            if decision.outcome != "registered":
                return decision, rival
            unnamed = tracking.version_with_tag(name, WEIGHTS, facts.weights)
            if unnamed and unnamed.tags.get(TEST_SPLIT) == facts.measured.test_split:
                tracking.move_alias(name, alias, unnamed.version)
                return decision, unnamed.version
            card = render(facts, decision, latency)
            uri = _log_model(model, run_id, name, tags, card)
            version = tracking.register(name, alias, uri, run_id, tags, description(card), rival)
            if version is not None:
                return decision, version
    raise AutoFormerError(f"{name}@{alias} has changed {TRIES} times while this model was registered; try again")


def _log_model(model: Path, run_id: str, name: str, tags: dict[str, str], card: str) -> str:
    from autoformer.checkpoint import load_subnet
    from autoformer.export import export_program

    with tempfile.TemporaryDirectory() as folder:
        program, card_file = Path(folder) / "program.pt2", Path(folder) / CARD_FILE
        export_program(load_subnet(model).model, program)
        write_text(card_file, card)
        return tracking.log_model(run_id, name, model, program, card_file, tags)

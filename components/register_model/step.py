"""register_model: put the evaluated subnet into the model registry, if it is good enough. See `gate` for the rule."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoformer.dataset import read_card
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, read_json, write_json
from autoformer.space import NamedSubnet, SubnetSpec
from components import tracking
from components.cli import existing, run_step, step_parser
from components.config import Config, RegisterModel
from components.register_model.gate import TEST_SPLIT, TOP1, WEIGHTS, Decision, Measured, decide
from components.tracking.provenance import git_commit
from components.workspace import Record, Workspace

STEP = "register_model"


class Candidate(NamedTuple):
    """What may be registered."""

    folder: Path  # model.safetensors and model.json
    subnet: SubnetSpec
    tested: Measured
    metrics: dict[str, float]


class Registration(NamedTuple):
    decision: Decision
    version: str | None  # that has the alias now


def parser() -> argparse.ArgumentParser:
    """The step's command line."""
    step = step_parser(STEP, "Register the evaluated subnet in MLflow, if it passes the gate; else say why not.")
    step.add_argument("--card", type=Path, required=True, help="the data set's card, made by prepare_data")
    for made, by in (("search", "search_subnet"), ("retrain", "retrain_subnet"), ("evaluation", "evaluate_subnet")):
        step.add_argument(f"--{made}", type=Path, required=True, help=f"folder made by {by}")
    step.add_argument("--out", type=Path, required=True, help="to write: what was decided and why (JSON)")
    step.add_argument("--record", type=Path, required=True, help="to write: clocks and run ids (JSON)")
    return step


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.register_model
    assert section is not None
    candidate = read_candidate(arguments.card, arguments.search, arguments.retrain, arguments.evaluation)
    inputs = {name: getattr(arguments, name) for name in ("card", "search", "retrain", "evaluation")}
    provenance = Workspace(STEP, config, inputs).provenance
    with (
        Record(arguments.record, STEP) as record,
        tracking.step_run(STEP, config, record.values, provenance) as tracked,
    ):
        tracked.subnet(candidate.subnet)
        tracked.metrics(candidate.metrics)
        if not tracked.run_id:
            raise AutoFormerError("the model registry is part of MLflow, which AUTOFORMER_TRACKING=off switches off")
        tracked.flush()
        parent = record.values.get("mlflow_parent_run_id", "")
        registration = register(candidate, section, tracked.run_id, parent)
        tracked.tags({"outcome": registration.decision.outcome, "reason": registration.decision.reason})
        write_json(arguments.out, _plain(candidate, section, registration))
        tracked.artifact(arguments.out)
    outcome, reason = registration.decision
    holder = f"version {registration.version}" if registration.version else "no version"
    print(f"{STEP}: {outcome}: {reason}; {section.model_name}@{section.alias} is {holder}", flush=True)


def read_candidate(card: Path, search: Path, retrain: Path, evaluation: Path) -> Candidate:
    """Read what the earlier steps made, and check that it is all about one model and one test split. Torch-free."""
    made = {"retrain_subnet": retrain / "model", "evaluate_subnet": evaluation, "search_subnet": search / "chosen.yaml"}
    for step, path in made.items():
        existing(path, step)
    metrics = read_json(evaluation / "metrics.json")
    tested_on = read_json(evaluation / "provenance.json")
    model = read_json(retrain / "model" / "model.json")
    chosen = NamedSubnet.from_yaml(search / "chosen.yaml")
    subnet = SubnetSpec.from_dict(model.get("subnet"), str(retrain / "model" / "model.json"))
    weights = hash_file(existing(retrain / "model" / "model.safetensors", "retrain_subnet"))
    if subnet != chosen.subnet:
        raise AutoFormerError(f"{retrain}: holds another subnet than {search}/chosen.yaml; run retrain_subnet again")
    if tested_on.get("models", {}).get("retrained") != weights:
        raise AutoFormerError(f"{evaluation}: is about other weights than {retrain}/model; run evaluate_subnet again")
    if tested_on.get("test_split") != read_card(card).split_hashes.get("test"):
        raise AutoFormerError(f"{evaluation}: is about another test split than {card}; run evaluate_subnet again")
    if TOP1 not in metrics:
        raise AutoFormerError(f"{evaluation}/metrics.json: {TOP1} is missing; run evaluate_subnet again")
    return Candidate(
        folder=retrain / "model",
        subnet=subnet,
        tested=Measured(weights, tested_on["test_split"], float(metrics[TOP1])),
        metrics=metrics,
    )


def register(candidate: Candidate, section: RegisterModel, run_id: str, pipeline_run_id: str) -> Registration:
    """Compare with the champion, and make a version where the gate says so."""
    name, alias = section.model_name, section.alias
    champion = tracking.aliased_version(name, alias)
    decision = decide(
        candidate.tested, section.min_top1_percent, Measured.from_tags(champion.tags) if champion else None
    )
    if decision.outcome != "registered":
        return Registration(decision, champion.version if champion else None)
    tags = _tags(candidate, pipeline_run_id)
    # a step that was killed between making the version and moving the alias left a version without it
    left = tracking.version_with_tag(name, WEIGHTS, tags[WEIGHTS])
    if left and left.tags.get(TEST_SPLIT) == tags[TEST_SPLIT]:
        tracking.move_alias(name, alias, left.version)
        return Registration(decision, left.version)
    uri = _log(candidate, run_id, name, tags)
    version = tracking.register(name, alias, uri, run_id, tags, _description(candidate))
    return Registration(decision, version)


def _log(candidate: Candidate, run_id: str, name: str, tags: dict[str, str]) -> str:
    from autoformer.checkpoint import load_subnet
    from autoformer.export import export_program

    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.pt2"
        export_program(load_subnet(candidate.folder).model, program)
        return tracking.log_model(run_id, name, candidate.folder, program, tags)


def _tags(candidate: Candidate, pipeline_run_id: str) -> dict[str, str]:
    tested, metrics = candidate.tested, candidate.metrics
    return {
        TOP1: str(tested.top1_percent),
        TEST_SPLIT: str(tested.test_split),
        WEIGHTS: str(tested.weights),
        "params": f"{metrics['params']:.0f}",
        "macs": f"{metrics['macs']:.0f}",
        "spec": candidate.subnet.to_json(),
        "git_commit": git_commit(),
        "pipeline_run_id": pipeline_run_id,
    }


def _description(candidate: Candidate) -> str:
    subnet, metrics = candidate.subnet, candidate.metrics
    low, high = metrics.get("test_top1_low_percent"), metrics.get("test_top1_high_percent")
    interval = f" (95 % interval {low:.2f} to {high:.2f} %)" if low is not None and high is not None else ""
    cost = f"{metrics['params'] / 1e6:.3g} M parameters, {metrics['macs'] / 1e9:.3g} G multiply-adds"
    accuracy = f"test accuracy {metrics[TOP1]:.2f} %{interval}"
    return f"AutoFormer subnet, depth {subnet.depth}, width {subnet.embed_dim}: {cost}; {accuracy}."


def _plain(candidate: Candidate, section: RegisterModel, registration: Registration) -> dict[str, Any]:
    """What registration.json holds."""
    return {
        "decision": registration.decision.outcome,
        "reason": registration.decision.reason,
        "model_name": section.model_name,
        "alias": section.alias,
        "version": registration.version,
        "test_split": candidate.tested.test_split,
        "weights": candidate.tested.weights,
        "subnet": candidate.subnet.to_dict(),
        "metrics": candidate.metrics,
    }

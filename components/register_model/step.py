"""register_model: put the evaluated subnet into the model registry, if it is good enough. See `gate` for the rule."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoformer.cards import SubnetCard, read_subnet_card, read_supernet_card
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, hash_path, read_json, write_json, write_text
from autoformer.images.card import DatasetCard, read_card
from autoformer.space import NamedSubnet, SubnetSpec
from components.register_model.card import FILE as CARD_FILE
from components.register_model.card import Facts, description, render
from components.register_model.gate import TEST_SPLIT, TOP1, WEIGHTS, Decision, Measured, decide
from components.register_model.latency import Latency, measure
from runtime import tracking
from runtime.common.config import Config, RegisterModel
from runtime.common.console import existing
from runtime.common.workspace import Record
from runtime.steps.command import run_step, step_parser
from runtime.steps.inputs import add_folder_arguments
from runtime.steps.step_context import open_step
from runtime.tracking.provenance import git_commit

STEP = "register_model"
FOLDERS = ("supernet", "search", "retrain", "evaluation")


class Candidate(NamedTuple):
    """What may be registered."""

    folder: Path  # model.safetensors and model.json
    subnet: SubnetSpec
    tested: Measured
    metrics: dict[str, float]
    data: DatasetCard
    card: SubnetCard  # what lies beside the weights


class Registration(NamedTuple):
    decision: Decision
    version: str | None  # that has the alias now


def parser() -> argparse.ArgumentParser:
    """The step's command line."""
    step = step_parser(STEP, "Register the evaluated subnet in MLflow, if it passes the gate; else say why not.")
    step.add_argument("--card", type=Path, required=True, help="the data set's card, made by prepare_data")
    add_folder_arguments(step, *FOLDERS)
    step.add_argument("--model-card", type=Path, required=True, help="to write: the model's card (Markdown)")
    step.add_argument("--out", type=Path, required=True, help="to write: what was decided and why (JSON)")
    step.add_argument("--record", type=Path, required=True, help="to write: clocks and run ids (JSON)")
    return step


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(RegisterModel)
    candidate = read_candidate(arguments.card, arguments.search, arguments.retrain, arguments.evaluation)
    facts = read_facts(candidate, arguments, section)
    with open_step(STEP, arguments, config, "card", *FOLDERS) as opened:
        tracked, record = opened.tracked, opened.record
        tracked.subnet(candidate.subnet)
        tracked.metrics(candidate.metrics)
        # this step alone is never taken from KFP's cache, so that it speaks for those that were
        tracked.headline({**candidate.metrics, **facts.searched}, candidate.subnet)
        if not tracked.run_id:
            raise AutoFormerError("the model registry is part of MLflow, which AUTOFORMER_TRACKING=off switches off")
        tracked.flush(wait_seconds=60)
        champion = tracking.aliased_version(section.model_name, section.alias)
        present = Measured.from_tags(champion.tags) if champion else None
        facts = facts._replace(decision=decide(candidate.tested, section.min_top1_percent, present))
        version = champion.version if champion else None
        if facts.decision.outcome == "registered":
            facts = facts._replace(latency=_timed(candidate, config, record, tracked))
            version = register(candidate, facts, tracked.run_id, record.values.get("mlflow_parent_run_id", ""))
        registration = Registration(facts.decision, version)
        tracked.tags({"outcome": registration.decision.outcome, "reason": registration.decision.reason})
        write_text(arguments.model_card, render(facts))
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
    metrics, data = read_json(evaluation / "metrics.json"), read_card(card)
    tested_on = read_json(evaluation / "provenance.json")
    model = read_subnet_card(retrain / "model")
    chosen = NamedSubnet.from_yaml(search / "chosen.yaml")
    weights = hash_file(existing(retrain / "model" / "model.safetensors", "retrain_subnet"))
    if model.subnet != chosen.subnet:
        raise AutoFormerError(f"{retrain}: holds another subnet than {search}/chosen.yaml; run retrain_subnet again")
    if tested_on.get("models", {}).get("retrained") != weights:
        raise AutoFormerError(f"{evaluation}: is about other weights than {retrain}/model; run evaluate_subnet again")
    if tested_on.get("test_split") != data.split_hashes.get("test"):
        raise AutoFormerError(f"{evaluation}: is about another test split than {card}; run evaluate_subnet again")
    if TOP1 not in metrics:
        raise AutoFormerError(f"{evaluation}/metrics.json: {TOP1} is missing; run evaluate_subnet again")
    return Candidate(
        folder=retrain / "model",
        subnet=model.subnet,
        tested=Measured(weights, tested_on["test_split"], float(metrics[TOP1])),
        metrics=metrics,
        data=data,
        card=model,
    )


def read_facts(candidate: Candidate, arguments: argparse.Namespace, section: RegisterModel) -> Facts:
    """Read what the model's card says beside that. Torch-free; what is decided and measured later is still open."""
    supernet: Path = existing(arguments.supernet, "train_supernet")
    used = candidate.card.provenance.get("inputs", {}).get("supernet")
    if used is not None and used != hash_path(supernet):
        raise AutoFormerError(f"{arguments.retrain}: of another supernet than {supernet}; run retrain_subnet again")
    return Facts(
        section=section,
        decision=Decision("refused", "not decided yet"),
        data=candidate.data,
        model=candidate.card,
        weights=str(candidate.tested.weights),
        metrics=candidate.metrics,
        confusion=read_json(arguments.evaluation / "confusion.json"),
        searched=read_json(arguments.search / "metrics.json"),
        retrained=read_json(arguments.retrain / "metrics.json"),
        supernet_config=read_supernet_card(supernet).provenance.get("config", {}),
        rollbacks={
            step: read_json(folder / "rollbacks.json") if (folder / "rollbacks.json").exists() else []
            for step, folder in (("train_supernet", supernet), ("retrain_subnet", arguments.retrain))
        },
        latency=None,
    )


def _timed(candidate: Candidate, config: Config, record: Record, tracked: tracking.StepLogger) -> Latency:
    latency = measure(candidate.folder, config.threads)
    record.values["cpu_latency"] = latency._asdict()
    tracked.metrics({"cost/cpu_latency_median_ms": latency.median_ms, "cost/cpu_latency_p90_ms": latency.p90_ms})
    return latency


def register(candidate: Candidate, facts: Facts, run_id: str, pipeline_run_id: str) -> str:
    """Make a version, with its card, and move the alias to it; return the version."""
    name, alias = facts.section.model_name, facts.section.alias
    tags, card = _tags(candidate, pipeline_run_id), render(facts)
    # a step that was killed between making the version and moving the alias left a version without it
    left = tracking.version_with_tag(name, WEIGHTS, tags[WEIGHTS])
    if left and left.tags.get(TEST_SPLIT) == tags[TEST_SPLIT]:
        tracking.move_alias(name, alias, left.version)
        return left.version
    uri = _log(candidate, run_id, name, tags, card)
    return tracking.register(name, alias, uri, run_id, tags, description(card))


def _log(candidate: Candidate, run_id: str, name: str, tags: dict[str, str], card: str) -> str:
    from autoformer.checkpoint import load_subnet
    from autoformer.export import export_program

    with tempfile.TemporaryDirectory() as folder:
        program, written = Path(folder) / "program.pt2", Path(folder) / CARD_FILE
        export_program(load_subnet(candidate.folder).model, program)
        write_text(written, card)
        return tracking.log_model(run_id, name, candidate.folder, program, written, tags)


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

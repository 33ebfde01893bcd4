"""evaluate_subnet: evaluate the retrained subnet on the test split, and write its figures and the report."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoformer.complexity import count_macs, count_params
from autoformer.errors import quantity
from autoformer.files import replacing, write_json, write_text
from autoformer.space import SubnetSpec
from components.evaluate_subnet.results import Results, read_all
from runtime.common.budgets import folder_of, merge_metrics, step_title
from runtime.common.code import step_code
from runtime.common.config import Config
from runtime.common.console import Progress
from runtime.common.processes import set_threads
from runtime.common.sections import EvaluateSubnet
from runtime.common.tables import write_table
from runtime.steps.command import run_step
from runtime.steps.inputs import input_parser
from runtime.steps.step_context import open_step

if TYPE_CHECKING:
    from components.evaluate_subnet.measure import Evaluation, Measured

STEP = "evaluate_subnet"
FOLDERS = ("supernet", "search", "retrain")


def parser() -> argparse.ArgumentParser:
    description = "Evaluate the retrained subnet on the test split, which no other step reads, and report."
    return input_parser(STEP, description, ["test"], *FOLDERS)


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(EvaluateSubnet)
    by_label, images = read_all(arguments, config, section.decoded_mb)
    *_, largest = by_label

    from autoformer.devices import find_device
    from components.evaluate_subnet.measure import Measured, measure

    with open_step(STEP, arguments, config, "card", "test_split", *FOLDERS) as opened:
        tracked = opened.tracked
        tracked.subnet(by_label[largest].subnet.subnet)
        set_threads(config.threads)
        device = find_device(config.device)
        evaluations: dict[SubnetSpec, Evaluation] = {}
        measured: dict[str, Measured] = {}
        for label, results in by_label.items():
            spec = results.subnet.subnet
            if spec not in evaluations:  # a subnet chosen for two budgets was trained once
                with Progress(f"{step_title(STEP, label)}: images", len(images.labels), "images") as bar:
                    evaluation = measure(results, images, section.batch_size, section.mistakes, device, bar.update)
                evaluations[spec] = evaluation
            measured[label] = Measured(results, evaluations[spec], metrics(results, evaluations[spec]))
        write(arguments.out, measured, config.for_step(STEP))
        tracked.metrics(merge_metrics({label: one.figures for label, one in measured.items()}))
        tracked.headline(measured[largest].figures, measured[largest].results.subnet.subnet)
        for label in filter(None, measured):
            tracked.headline(measured[label].figures, measured[label].results.subnet.subnet, label)
        tracked.artifact(arguments.out / "report.html")
        tracked.artifact(arguments.out / "confusion.json")
    for label, one in measured.items():
        print(summary(one.figures, step_title(STEP, label)), flush=True)


def metrics(results: Results, evaluation: "Evaluation") -> dict[str, float]:
    """The content of metrics.json: accuracies in percent, loss in nats, calibration error in [0, 1]."""
    scores, spec = evaluation.scores["retrained"], results.subnet.subnet
    return {
        "test_top1_percent": scores.top1_percent,
        "test_top1_low_percent": scores.top1_interval.low,
        "test_top1_high_percent": scores.top1_interval.high,
        "test_top5_percent": scores.top5_percent,
        "test_loss": scores.loss,
        "test_ece": scores.ece,
        "test_images": scores.images,
        **{
            f"{model}_test_top1_percent": others.top1_percent
            for model, others in evaluation.scores.items()
            if model != "retrained"
        },
        "params": count_params(results.space, spec),
        "macs": count_macs(results.space, spec),
    }


def write(out: Path, measured: "Mapping[str, Measured]", config: dict[str, Any]) -> None:
    """Write the evaluation folder, whole or not at all. `measured`: by label, smallest budget first."""
    from components.evaluate_subnet.report import render

    *_, largest = measured
    with replacing(out) as folder:
        folder.mkdir()
        for label, one in measured.items():
            _write_one(folder_of(folder, label), one, one.figures, config)
        if largest:  # also where a run without budgets has its files
            figures = merge_metrics({label: one.figures for label, one in measured.items()})
            _write_one(folder, measured[largest], figures, config)
        results, evaluation, _ = measured[largest]
        write_text(folder / "report.html", render(results, evaluation, config, measured if largest else {}))


def _write_one(folder: Path, one: "Measured", figures: Mapping[str, float], config: dict[str, Any]) -> None:
    results, evaluation = one.results, one.evaluation
    classes = results.card.classes
    predictions = [
        {"actual": classes[actual], "predicted": classes[predicted]}
        for actual, predicted in zip(evaluation.actual, evaluation.predicted, strict=True)
    ]
    provenance = {
        "step": STEP,
        "seed": config["seed"],
        "code": step_code(STEP),
        "config": config,
        "test_split": results.card.split_hashes["test"],
        "models": evaluation.weights,
        "subnet": results.subnet.subnet.to_dict(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", figures)
    write_json(folder / "confusion.json", {"classes": list(classes), "matrix": evaluation.confusion.tolist()})
    write_table(folder / "predictions.csv", ("actual", "predicted"), predictions)
    write_json(folder / "provenance.json", provenance)


def summary(figures: Mapping[str, float], title: str = STEP) -> str:
    """The figures as three lines of text."""
    compared = [
        f"{name} {figures[key]:.2f} %"
        for name, key in (
            ("inherited", "inherited_test_top1_percent"),
            ("fine-tuned", "finetuned_test_top1_percent"),
            ("from scratch", "scratch_test_top1_percent"),
        )
        if key in figures
    ]
    return "\n".join(
        [
            f"{title}: test accuracy {figures['test_top1_percent']:.2f} % on "
            f"{quantity(figures['test_images'], 'image')} (95 % interval {figures['test_top1_low_percent']:.2f} to "
            f"{figures['test_top1_high_percent']:.2f} %)",
            f"{title}: for comparison, the same subnet {', '.join(compared)}",
            f"{title}: {figures['params']:,} parameters, {figures['macs']:,} MACs",
        ]
    )

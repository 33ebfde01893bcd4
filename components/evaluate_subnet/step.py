"""Evaluate: arguments -> checked results of the earlier steps -> measurements -> figures and a report."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoformer.complexity import count_macs, count_params
from autoformer.files import hash_file, replacing, write_json, write_text
from autoformer.images.archives import EncodedSplit
from autoformer.images.split_images import DecodedSplit
from components.evaluate_subnet.results import Results, read_all
from runtime.common.code import step_code
from runtime.common.config import Config, EvaluateSubnet
from runtime.common.console import Progress
from runtime.common.processes import set_threads
from runtime.common.tables import write_table
from runtime.steps.command import run_step, step_parser
from runtime.steps.inputs import add_data_arguments, add_folder_arguments, add_output_arguments
from runtime.steps.step_context import open_step

if TYPE_CHECKING:
    from components.evaluate_subnet.measure import Evaluation

STEP = "evaluate_subnet"


class Result(NamedTuple):
    """All files of the evaluation folder, as values."""

    metrics: dict[str, float]
    confusion: dict[str, Any]
    predictions: list[dict[str, str]]
    provenance: dict[str, Any]
    report: str


def parser() -> argparse.ArgumentParser:
    result = step_parser(
        STEP, "Evaluate the retrained subnet on the test split, which no other step reads, and report."
    )
    add_data_arguments(result, "test")
    add_folder_arguments(result, "supernet", "search", "retrain")
    add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(EvaluateSubnet)
    results, images = read_all(arguments, config, section.decoded_mb)
    with open_step(STEP, arguments, config, "card", "test_split", "supernet", "search", "retrain") as opened:
        tracked = opened.tracked
        tracked.subnet(results.subnet.subnet)
        result = evaluate(results, images, config, section)
        write(arguments.out, result)
        tracked.metrics(result.metrics)
        tracked.headline(result.metrics, results.subnet.subnet)
        tracked.artifact(arguments.out / "report.html")
        tracked.artifact(arguments.out / "confusion.json")
    print(summary(result.metrics), flush=True)


def evaluate(results: Results, images: DecodedSplit | EncodedSplit, config: Config, section: EvaluateSubnet) -> Result:
    """Measure on the test images, and put everything into the form in which it is written."""
    from autoformer.devices import find_device
    from components.evaluate_subnet.measure import measure
    from components.evaluate_subnet.report import render

    set_threads(config.threads)
    with Progress(f"{STEP}: images", len(images.labels), "images") as bar:
        evaluation = measure(
            results, images, section.batch_size, section.mistakes, find_device(config.device), bar.update
        )
    classes, plain = results.card.classes, config.for_step(STEP)
    return Result(
        metrics=metrics(results, evaluation),
        confusion={"classes": list(classes), "matrix": evaluation.confusion.tolist()},
        predictions=[
            {"actual": classes[actual], "predicted": classes[predicted]}
            for actual, predicted in zip(evaluation.actual, evaluation.predicted, strict=True)
        ],
        provenance=provenance(results, plain),
        report=render(results, evaluation, plain),
    )


def metrics(results: Results, evaluation: "Evaluation") -> dict[str, float]:
    """Flat figures; percentages in percent, the loss in nats, the calibration error in [0, 1]."""
    scores, spec = evaluation.scores["retrained"], results.subnet.subnet
    found: dict[str, float] = {
        "test_top1_percent": scores.top1_percent,
        "test_top1_low_percent": scores.top1_interval.low,
        "test_top1_high_percent": scores.top1_interval.high,
        "test_top5_percent": scores.top5_percent,
        "test_loss": scores.loss,
        "test_ece": scores.ece,
        "test_images": scores.images,
    }
    for name, others in evaluation.scores.items():
        if name != "retrained":
            found[f"{name}_test_top1_percent"] = others.top1_percent
    return found | {"params": count_params(results.space, spec), "macs": count_macs(results.space, spec)}


def provenance(results: Results, config: dict[str, Any]) -> dict[str, Any]:
    """What was evaluated, on what, by which code."""
    return {
        "step": STEP,
        "seed": config["seed"],
        "code": step_code(STEP),
        "config": config,
        "test_split": results.card.split_hashes["test"],
        "models": {name: hash_file(folder / "model.safetensors") for name, folder in results.models.items()},
        "subnet": results.subnet.subnet.to_dict(),
    }


def write(out: Path, result: Result) -> None:
    """Write the evaluation folder, whole or not at all."""
    with replacing(out) as folder:
        folder.mkdir()
        write_json(folder / "metrics.json", result.metrics)
        write_json(folder / "confusion.json", result.confusion)
        write_table(folder / "predictions.csv", ("actual", "predicted"), result.predictions)
        write_json(folder / "provenance.json", result.provenance)
        write_text(folder / "report.html", result.report)


def summary(found: dict[str, float]) -> str:
    """The figures in three lines."""
    compared = [
        f"{name} {found[key]:.2f} %"
        for name, key in (("inherited", "inherited_test_top1_percent"), ("from scratch", "scratch_test_top1_percent"))
        if key in found
    ]
    return "\n".join(
        [
            f"{STEP}: test accuracy {found['test_top1_percent']:.2f} % on {found['test_images']:,} images "
            f"(95 % interval {found['test_top1_low_percent']:.2f} to {found['test_top1_high_percent']:.2f} %)",
            f"{STEP}: for comparison, the same subnet {', '.join(compared)}",
            f"{STEP}: {found['params']:,} parameters, {found['macs']:,} multiply-adds",
        ]
    )

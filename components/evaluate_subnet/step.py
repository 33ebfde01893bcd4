"""evaluate_subnet: measure the retrained subnet on the test split, and write its figures and the report."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoformer.complexity import count_macs, count_params
from autoformer.files import hash_file, replacing, write_json, write_text
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
FOLDERS = ("supernet", "search", "retrain")


def parser() -> argparse.ArgumentParser:
    result = step_parser(
        STEP, "Evaluate the retrained subnet on the test split, which no other step reads, and report."
    )
    add_data_arguments(result, "test")
    add_folder_arguments(result, *FOLDERS)
    add_output_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def run(arguments: argparse.Namespace, config: Config) -> None:
    section = config.section(EvaluateSubnet)
    results, images = read_all(arguments, config, section.decoded_mb)

    from autoformer.devices import find_device
    from components.evaluate_subnet.measure import measure

    with open_step(STEP, arguments, config, "card", "test_split", *FOLDERS) as opened:
        tracked, subnet = opened.tracked, results.subnet.subnet
        tracked.subnet(subnet)
        set_threads(config.threads)
        device = find_device(config.device)
        with Progress(f"{STEP}: images", len(images.labels), "images") as bar:
            evaluation = measure(results, images, section.batch_size, section.mistakes, device, bar.update)
        figures = metrics(results, evaluation)
        write(arguments.out, results, evaluation, figures, config.for_step(STEP))
        tracked.metrics(figures)
        tracked.headline(figures, subnet)
        tracked.artifact(arguments.out / "report.html")
        tracked.artifact(arguments.out / "confusion.json")
    print(summary(figures), flush=True)


def metrics(results: Results, evaluation: "Evaluation") -> dict[str, float]:
    """metrics.json: percentages in percent, the loss in nats, the calibration error in [0, 1]."""
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


def write(
    out: Path, results: Results, evaluation: "Evaluation", figures: Mapping[str, float], config: dict[str, Any]
) -> None:
    """Write the evaluation folder, whole or not at all."""
    from components.evaluate_subnet.report import render

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
        "models": {name: hash_file(folder / "model.safetensors") for name, folder in results.models.items()},
        "subnet": results.subnet.subnet.to_dict(),
    }
    with replacing(out) as folder:
        folder.mkdir()
        write_json(folder / "metrics.json", figures)
        write_json(folder / "confusion.json", {"classes": list(classes), "matrix": evaluation.confusion.tolist()})
        write_table(folder / "predictions.csv", ("actual", "predicted"), predictions)
        write_json(folder / "provenance.json", provenance)
        write_text(folder / "report.html", render(results, evaluation, config))


def summary(figures: Mapping[str, float]) -> str:
    """The figures in three lines."""
    compared = [
        f"{name} {figures[key]:.2f} %"
        for name, key in (("inherited", "inherited_test_top1_percent"), ("from scratch", "scratch_test_top1_percent"))
        if key in figures
    ]
    return "\n".join(
        [
            f"{STEP}: test accuracy {figures['test_top1_percent']:.2f} % on {figures['test_images']:,} images "
            f"(95 % interval {figures['test_top1_low_percent']:.2f} to {figures['test_top1_high_percent']:.2f} %)",
            f"{STEP}: for comparison, the same subnet {', '.join(compared)}",
            f"{STEP}: {figures['params']:,} parameters, {figures['macs']:,} MACs",
        ]
    )

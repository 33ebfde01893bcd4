"""The KFP component of this step."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output

from runtime.steps.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate_subnet(
    config: str,
    lineage: str,
    data: str,
    data_hash: str,
    card: Input[Artifact],
    test_split: Input[Dataset],
    supernet: Input[Model],
    search: Input[Artifact],
    retrain: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
    confusions: Output[Markdown],
    report: Output[HTML],
    record: Output[Artifact],
) -> None:
    import shutil

    from components.evaluate_subnet.confusions import LARGEST_MATRIX, top_confusions_markdown
    from runtime.common.records import read_confusion
    from runtime.steps.kfp_edge import call, log_metrics

    arguments = ["--config", config, "--data", data, "--card", card.path, "--test-split", test_split.path]
    arguments += ["--supernet", supernet.path, "--search", search.path, "--retrain", retrain.path]
    call("evaluate_subnet", [*arguments, "--out", evaluation.path, "--record", record.path])
    evaluation.metadata["data_hash"] = data_hash
    log_metrics(metrics, evaluation.path + "/metrics.json")
    counted = read_confusion(evaluation.path + "/confusion.json")
    if len(counted.classes) <= LARGEST_MATRIX:
        confusion.log_confusion_matrix([*counted.classes], [[*row] for row in counted.matrix])
    shutil.copyfile(evaluation.path + "/confusion.json", confusion.path)  # see log_metrics
    with open(confusions.path, "w", encoding="utf-8") as file:
        file.write(top_confusions_markdown(counted))
    shutil.copyfile(evaluation.path + "/report.html", report.path)

"""The KFP component of this step."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from runtime.steps.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrain_subnet(
    config: str,
    lineage: str,
    data: str,
    data_hash: str,
    card: Input[Artifact],
    train_split: Input[Dataset],
    train_full_split: Input[Dataset],
    search_split: Input[Dataset],
    supernet: Input[Model],
    search: Input[Artifact],
    retrain: Output[Model],
    metrics: Output[Metrics],
    record: Output[Artifact],
) -> None:
    from runtime.steps.kfp_edge import call, log_metrics

    arguments = ["--config", config, "--data", data, "--card", card.path]
    arguments += ["--train-split", train_split.path, "--train-full-split", train_full_split.path]
    arguments += ["--search-split", search_split.path]
    arguments += ["--supernet", supernet.path, "--search", search.path]
    call("retrain_subnet", [*arguments, "--out", retrain.path, "--record", record.path])
    retrain.metadata["data_hash"] = data_hash
    log_metrics(metrics, retrain.path + "/metrics.json")

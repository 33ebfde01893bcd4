"""The KFP component of this step."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from runtime.steps.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_supernet(
    config: str,
    lineage: str,
    data: str,
    data_hash: str,
    card: Input[Artifact],
    train_split: Input[Dataset],
    search_split: Input[Dataset],
    supernet: Output[Model],
    metrics: Output[Metrics],
    record: Output[Artifact],
) -> None:
    from runtime.steps.kfp_edge import call, log_metrics, log_uri

    arguments = ["--config", config, "--data", data, "--card", card.path]
    arguments += ["--train-split", train_split.path, "--search-split", search_split.path]
    call("train_supernet", [*arguments, "--out", supernet.path, "--record", record.path])
    supernet.metadata["data_hash"] = data_hash
    log_uri(supernet)
    log_metrics(metrics, supernet.path + "/metrics.json")

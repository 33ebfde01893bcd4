"""The KFP component of this step."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from runtime.steps.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def search_subnet(
    config: str,
    lineage: str,
    data: str,
    data_hash: str,
    card: Input[Artifact],
    search_split: Input[Dataset],
    supernet: Input[Model],
    search: Output[Artifact],
    metrics: Output[Metrics],
    record: Output[Artifact],
) -> None:
    from runtime.steps.kfp_edge import call, log_metrics

    arguments = ["--config", config, "--data", data, "--card", card.path, "--search-split", search_split.path]
    call("search_subnet", [*arguments, "--supernet", supernet.path, "--out", search.path, "--record", record.path])
    search.metadata["data_hash"] = data_hash
    log_metrics(metrics, search.path + "/metrics.json")

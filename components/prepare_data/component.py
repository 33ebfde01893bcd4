"""The KFP component of this step."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Output

from runtime.steps.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_data(
    config: str,
    lineage: str,  # part of the cache key, like the data's hash, because both decide the result
    data: str,
    data_hash: str,
    card: Output[Artifact],
    train_split: Output[Dataset],
    search_split: Output[Dataset],
    test_split: Output[Dataset],
    train_full_split: Output[Dataset],
    record: Output[Artifact],
) -> None:
    from runtime.steps.kfp_edge import call

    arguments = ["--config", config, "--data", data, "--card", card.path]
    arguments += ["--train-split", train_split.path, "--search-split", search_split.path]
    arguments += ["--test-split", test_split.path, "--train-full-split", train_full_split.path]
    call("prepare_data", [*arguments, "--record", record.path])
    for split in (train_split, search_split, test_split, train_full_split):
        split.metadata["data_hash"] = data_hash

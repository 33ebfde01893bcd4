"""The KFP component of this step."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register_model(
    config: str,
    card: Input[Artifact],
    search: Input[Artifact],
    retrain: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
    record: Output[Artifact],
) -> None:
    from components.kfp_edge import call
    from components.register_model.step import main

    arguments = ["--config", config, "--card", card.path, "--search", search.path, "--retrain", retrain.path]
    call(main, [*arguments, "--evaluation", evaluation.path, "--out", registration.path, "--record", record.path])

"""The KFP component of this step."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Model, Output

from runtime.steps.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register_model(
    config: str,
    card: Input[Artifact],
    supernet: Input[Model],
    search: Input[Artifact],
    retrain: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
    model_card: Output[Markdown],
    record: Output[Artifact],
) -> None:
    from runtime.steps.kfp_edge import call

    arguments = ["--config", config, "--card", card.path, "--supernet", supernet.path, "--search", search.path]
    arguments += ["--retrain", retrain.path, "--evaluation", evaluation.path, "--model-card", model_card.path]
    call("register_model", [*arguments, "--out", registration.path, "--record", record.path])

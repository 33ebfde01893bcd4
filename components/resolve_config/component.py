"""The KFP component that resolves a pipeline run's parameters."""

from typing import NamedTuple

from kfp import dsl

from components.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def resolve_config(  # type: ignore[valid-type]
    preset: str, overrides: str, seed: int, max_params_m: float, compiled_from: str
) -> NamedTuple(
    "Configs",
    [
        ("prepare_data", str),
        ("train_supernet", str),
        ("search_subnet", str),
        ("retrain_subnet", str),
        ("evaluate_subnet", str),
        ("register_model", str),
    ],
):
    from components.resolve_config.step import for_each_step

    return for_each_step(preset, overrides, seed, max_params_m, compiled_from)

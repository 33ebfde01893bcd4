"""The KFP component that resolves a pipeline run's parameters."""

from typing import NamedTuple

from kfp import dsl

from components.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def resolve_config(preset: str, overrides: str, seed: int, max_params_m: float) -> NamedTuple(  # type: ignore[valid-type]
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
    from components.config import STEPS
    from components.resolve_config.step import resolve

    config = resolve(preset, overrides, seed, max_params_m)
    return tuple(config.step_json(step) for step in STEPS)

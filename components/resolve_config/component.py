"""The KFP component that resolves a pipeline run's parameters."""

from typing import NamedTuple

from kfp import dsl

from runtime.steps.kfp_edge import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def resolve_config(  # type: ignore[valid-type]
    preset: str,
    overrides: str,
    seed: int,
    max_params_m: float,
    compiled_from: str,
    image: str,
    data: str,
    data_hash: str,
) -> NamedTuple(
    "Configs",
    [
        ("prepare_data", str),
        ("train_supernet", str),
        ("search_subnet", str),
        ("retrain_subnet", str),
        ("evaluate_subnet", str),
        ("register_model", str),
        ("data_hash", str),
        ("prepare_data_lineage", str),
        ("train_supernet_lineage", str),
        ("search_subnet_lineage", str),
        ("retrain_subnet_lineage", str),
        ("evaluate_subnet_lineage", str),
    ],
):
    from components.resolve_config.step import component_outputs

    return component_outputs(preset, overrides, seed, max_params_m, compiled_from, image, data, data_hash)

"""The pipeline, in the order of its steps.

1. resolve_config   the run's parameters become one frozen configuration, a part for each step
2. prepare_data     index the images, hold the search split out of training
3. train_supernet   one set of weights for every subnet of the search space
4. search_subnet    evolution under limits, candidates scored on the search split
5. retrain_subnet   the chosen subnet: from scratch, fine-tuned, or as inherited
6. evaluate_subnet  the only step that gets the test split
7. register_model   through its gate into the MLflow registry; never cached
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Model

from components.evaluate_subnet.component import evaluate_subnet
from components.prepare_data.component import prepare_data
from components.register_model.component import register_model
from components.resolve_config.component import resolve_config
from components.retrain_subnet.component import retrain_subnet
from components.search_subnet.component import search_subnet
from components.train_supernet.component import train_supernet
from runtime.common.code import package_code
from runtime.common.config import STEPS

Results = NamedTuple(  # the functional form, which kfp needs
    "Results",
    [
        ("search", Artifact),
        ("retrain", Model),
        ("evaluation", Artifact),
        ("registration", Artifact),
        *((f"{step}_record", Artifact) for step in STEPS),
    ],
)


Configure = Callable[[str, dsl.PipelineTask], Any]
"""Takes a step's name and its task while the DAG is built; sets the resources of a cluster."""


def build(
    configure: Configure = lambda step, task: None, image: str = "", settings: dsl.PipelineConfig | None = None
) -> Any:
    """Build the pipeline, and call `configure` for each task.

    The DAG is the same wherever it runs: `configure` may decide where a task runs, never what it does.

    Args:
        image: image of the steps, for the cache key; empty if the runner uses a hash of each step's source.
        settings: KFP's settings of the whole run.
    """

    @dsl.pipeline(
        name="autoformer",
        description="Find a vision transformer for your images and your budget: one-shot search by AutoFormer.",
        pipeline_config=settings,
    )
    def autoformer(
        data: str,
        preset: str = "demo",
        data_hash: str = "",
        max_params_m: float = 0.0,
        seed: int = -1,
        overrides: str = "",
    ) -> Results:  # type: ignore[valid-type]
        """One AutoFormer search, from images to a registered model.

        Args:
            data: the delivered archives as the steps see them: a folder, or s3://bucket/folder.
            preset: a file of configs/presets/, or the path of a params file.
            data_hash: hash of the data, part of the cache keys. Empty: resolve_config computes it.
            max_params_m: maximum parameters of the subnet, in millions; 0 for the preset's limit.
            seed: seed of all random draws; -1 for the preset's.
            overrides: section.key=value, separated by spaces, applied last.
        """
        configs = resolve_config(
            preset=preset, overrides=overrides, seed=seed, max_params_m=max_params_m, compiled_from=package_code(),
            image=image, data=data, data_hash=data_hash,
        )  # fmt: skip
        configs.set_caching_options(False)  # a params file may have changed under the same name

        def common(step: str) -> dict[str, Any]:
            """The arguments that all cached steps share; with a step's code and inputs they decide its result."""
            lineage, hash_of_data = configs.outputs[f"{step}_lineage"], configs.outputs["data_hash"]
            return {"config": configs.outputs[step], "lineage": lineage, "data": data, "data_hash": hash_of_data}

        prepared = prepare_data(**common("prepare_data"))
        card = prepared.outputs["card"]
        train_split, search_split = prepared.outputs["train_split"], prepared.outputs["search_split"]

        trained = train_supernet(
            **common("train_supernet"), card=card, train_split=train_split, search_split=search_split
        )
        supernet = trained.outputs["supernet"]
        searched = search_subnet(**common("search_subnet"), card=card, search_split=search_split, supernet=supernet)
        search = searched.outputs["search"]
        retrained = retrain_subnet(
            **common("retrain_subnet"), card=card, train_split=train_split,
            train_full_split=prepared.outputs["train_full_split"], search_split=search_split, supernet=supernet,
            search=search,
        )  # fmt: skip
        retrain = retrained.outputs["retrain"]
        evaluated = evaluate_subnet(
            **common("evaluate_subnet"), card=card, test_split=prepared.outputs["test_split"],
            supernet=supernet, search=search, retrain=retrain,
        )  # fmt: skip
        evaluation = evaluated.outputs["evaluation"]
        registered = register_model(
            config=configs.outputs["register_model"], card=card, supernet=supernet, search=search, retrain=retrain,
            evaluation=evaluation,
        )  # fmt: skip
        registered.set_caching_options(False)  # the registry may have changed since

        tasks = (prepared, trained, searched, retrained, evaluated, registered)
        for task in (configs, *tasks):
            configure(task.name.replace("-", "_"), task)
        results = [search, retrain, evaluation, registered.outputs["registration"]]
        return Results(*results, *(task.outputs["record"] for task in tasks))

    return autoformer


autoformer = build()

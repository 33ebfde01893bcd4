"""The pipeline, in the order of a datum's way.

1. resolve_config   the run's parameters become one frozen configuration, a part for each step
2. prepare_data     index the images, hold the search split out of training
3. train_supernet   one set of weights for every subnet of the search space
4. search_subnet    evolution under limits, candidates scored on the search split
5. retrain_subnet   the chosen subnet: from scratch, fine-tuned, or as inherited
6. evaluate_subnet  the only step that is given the test split
7. register_model   past its gate, into the MLflow registry; never cached
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

Results = NamedTuple(  # noqa: UP014 - kfp reads this form
    "Results",
    [
        ("search", Artifact),
        ("retrain", Model),
        ("evaluation", Artifact),
        ("registration", Artifact),
        ("prepare_data_record", Artifact),
        ("train_supernet_record", Artifact),
        ("search_subnet_record", Artifact),
        ("retrain_subnet_record", Artifact),
        ("evaluate_subnet_record", Artifact),
        ("register_model_record", Artifact),
    ],
)


Configure = Callable[[str, dsl.PipelineTask], Any]
"""Is told the name of each step and its task, while the DAG is built: what a cluster gives it to run on."""


def build(
    configure: Configure = lambda step, task: None, image: str = "", settings: dsl.PipelineConfig | None = None
) -> Any:
    """The pipeline, each of its tasks handed to `configure`.

    The DAG is the same wherever it runs: `configure` may say on what a task runs, never what it does.

    Args:
        image: that the steps run on, for the cache; empty where the runner itself names the source of each step.
        settings: what holds for a whole run.
    """

    @dsl.pipeline(
        name="autoformer",
        description="Find a vision transformer for your images and your budget: one-shot search by AutoFormer.",
        pipeline_config=settings,
    )
    def autoformer(
        preset: str = "demo",
        data: str = "data/fashion-mnist",
        data_hash: str = "",
        max_params_m: float = 0.0,
        seed: int = -1,
        overrides: str = "",
    ) -> Results:  # type: ignore[valid-type]
        """One AutoFormer search, from images to a registered model.

        Args:
            preset: a file of configs/presets/, or the path of a params file.
            data: folder with the delivered archives, as the steps see it.
            data_hash: hash of those archives; a changed one misses the cache. Empty: taken by resolve_config.
            max_params_m: most parameters of the subnet, in millions; 0 for the preset's limit.
            seed: of everything that is drawn; -1 for the preset's.
            overrides: section.key=value, separated by spaces, applied last.
        """
        configs = resolve_config(
            preset=preset, overrides=overrides, seed=seed, max_params_m=max_params_m, compiled_from=package_code(),
            image=image, data=data, data_hash=data_hash,
        )  # fmt: skip
        configs.set_caching_options(False)  # a params file may have changed under the same name
        source = {"data": data, "data_hash": configs.outputs["data_hash"]}

        def decided(step: str) -> dict[str, Any]:
            """What decides a step's result beside its own code and inputs."""
            return {"config": configs.outputs[step], "lineage": configs.outputs[f"{step}_lineage"]}

        prepared = prepare_data(**decided("prepare_data"), **source)
        card = prepared.outputs["card"]
        train_split, search_split = prepared.outputs["train_split"], prepared.outputs["search_split"]

        trained = train_supernet(
            **decided("train_supernet"), **source, card=card, train_split=train_split, search_split=search_split
        )
        supernet = trained.outputs["supernet"]
        searched = search_subnet(
            **decided("search_subnet"), **source, card=card, search_split=search_split, supernet=supernet
        )
        search = searched.outputs["search"]
        retrained = retrain_subnet(
            **decided("retrain_subnet"), **source, card=card, train_split=train_split,
            train_full_split=prepared.outputs["train_full_split"], search_split=search_split, supernet=supernet,
            search=search,
        )  # fmt: skip
        retrain = retrained.outputs["retrain"]
        evaluated = evaluate_subnet(
            **decided("evaluate_subnet"), **source, card=card, test_split=prepared.outputs["test_split"],
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
        return Results(
            search, retrain, evaluation, registered.outputs["registration"], *(task.outputs["record"] for task in tasks)
        )

    return autoformer


autoformer = build()

"""Make docs/configuration.md: every key of a file of configs/, from the models that validate them.

`python -m docs.configuration` (or `make docs`) writes it; a test holds that the file is what this makes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autoformer.files import write_text
from autoformer.space import SearchSpace
from pipeline.cluster.settings import ON_GPUS, Cluster, Pod, Step
from runtime.common.config import STEPS, Config, TrainingSection
from runtime.kubernetes.job import SHARED_STEPS
from runtime.kubernetes.settings import Name

PAGE = Path(__file__).with_suffix(".md")

# What a process reads from its environment. None of it decides a result.
ENVIRONMENT = {
    "MLFLOW_TRACKING_URI": "where runs and models are kept; `mlflow.db` in the repository by default",
    "MLFLOW_EXPERIMENT_NAME": "the experiment; `autoformer` by default",
    "MLFLOW_RUN_ID": "the run that a step logs to, and leaves for its owner to end; KFP's own integration sets it",
    "KFP_RUN_ID": "set on a cluster: the KFP run, whose pipeline run in MLflow the steps find, or make, by it",
    "AUTOFORMER_TRACKING_PATIENCE": "seconds for which a step waits for an MLflow server that is away, before its work "
    "and after it; 300 by default",
    "AUTOFORMER_TRACKING": "`off`: steps log nothing; `register_model` needs MLflow all the same",
    "AUTOFORMER_WORK": "where work in progress lies; `work/` in the repository by default",
    "AUTOFORMER_STORE": "`s3://bucket/folder`: where weights and checkpoints go; unset, they stay in files",
    "AUTOFORMER_WORKERS": "processes that decode and augment images; by default as many cores as training leaves over",
    "AUTOFORMER_CACHE_GB": "memory in which decoded training images are kept, of the whole machine; 0 by default",
    "AUTOFORMER_STAGING": "where copies of data in S3 lie, on a local disk; `staged/` in the work folder by default",
    "AUTOFORMER_STAGING_GB": "what these copies may take of the disk, of the whole machine; 10 by default, 0 for none",
    "AUTOFORMER_PROCESSES": "processes of a step that can be shared; by default one for each GPU, 1 without",
    "AUTOFORMER_MAX_RESTARTS": "how often all of them are started again when one has died; 0 by default",
    "AUTOFORMER_JOB": "set by `make compile CLUSTER=…` for a step on several machines: the settings of its TrainJob",
    "AUTOFORMER_TERMINATION": "set in the pods of such a job: the file in which a step tells Kubernetes why it ended",
    "KFP_POD_NAME": "set on a cluster, with `KFP_POD_UID`: the pod that owns such a job",
    "KFP_NAMESPACE": "set on a cluster: where such a job is made; by default the pod's own, or that of KUBECONFIG",
    "AUTOFORMER_IMAGE": "the image that `make compile` writes into the package; `make compile IMAGE=…` sets it",
    "KFP_HOST": "the KFP server of `make submit`, where HOST is not given",
    "KFP_TOKEN": "what proves to that server who asks; better from a file",
    "KFP_TOKEN_FILE": "that file; by default the token that KFP's documentation projects into a pod",
    "KF_PIPELINES_UI_ENDPOINT": "where the UI is, if not at HOST; KFP's own SDK reads it too",
    "DOCKER_HOST": "the Docker daemon of `make images` and `make run RUNNER=docker`; this machine's by default",
    "GIT_COMMIT": "the commit of the code, where there is no git to ask, as in an image",
    "OMP_WAIT_POLICY": "`PASSIVE` where it is not set: torch's threads sleep while they wait for each other",
    "AUTOFORMER_PARENT_RUN_ID": "set by `make run` for its steps: the pipeline run in MLflow",
    "AUTOFORMER_RUNNER_PID": "set by `make run` and `make repro` for their steps, which end when that process does",
    "AUTOFORMER_FAILURE": "set by `make run` for its steps: the file in which a step says why it failed",
    "AUTOFORMER_TTY": "set by `make run` for its steps: the terminal on which progress is drawn",
}

_OPENING = """\
# Configuration

Every key of a parameter file (`params.yaml`, a file of [configs/presets](../configs/presets)), of a
[space file](#search-spaces) and of a [cluster's](#clusters). This page is made from the models that validate them, by
`make docs`.

A preset is complete: what a step needs is in its section, what all steps share is at the top. An unknown key, a value
of another type or out of its range is refused in one line before anything runs. Single values are overridden by dotted
keys: `make run SET="search_subnet.limits.max_params_m=0.3 seed=1"`, or `--set search_subnet.images=null` of a step. A
value is read as YAML: `null`, `true`, `[8, 12]`, `{flip: true}`.

"Required" stands where there is no default.
"""


def _named(names: Iterable[str]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}"


CLUSTERS, ON_A_CLUSTER = "Clusters", "Steps on a cluster"
_SAID = {
    "train_supernet": "`retrain_subnet` takes all of these keys too, for the training of the chosen subnet.\n",
    "retrain_subnet": "Beside [those of train_supernet](#train_supernet), for the chosen subnet:\n",
    "search_subnet": "At most population x (1 + generations) candidates are scored, and as many random ones.\n",
    "Search spaces": """\
One file each in [configs/spaces](../configs/spaces): the images that it is for, the supernet, and what a subnet's
dimensions are chosen from. No choice may be larger than the supernet's dimension of that name.
""",
    CLUSTERS: """\
One file each in [configs/cluster](../configs/cluster): where the pipeline runs, and on what. `make compile CLUSTER=gpu`
takes it by name or by path; single values are overridden there by `SET="namespace=vision"`. Nothing of it decides a
result. No secret stands in it: what looks like one, in a value or by the name of a variable, is refused and not
repeated.
""",
    ON_A_CLUSTER: f"""\
Keys of each section of `steps`, which are {_named(STEPS)}.

GPUs are for {_named(ON_GPUS)}; several machines for {_named(SHARED_STEPS)}. The section `launcher`, for
`resolve_config` and for pods that launch a job of several machines, takes {_named(Pod.model_fields)} of these keys.
""",
    "Environment": "What a process reads from its environment. None of it decides a result.\n",
}


_WORDS = {get_args(Name)[1].pattern: "a name of Kubernetes"}  # of patterns that say less than they


class Row(NamedTuple):
    key: str
    type: str
    default: str
    range: str
    meaning: str


def page() -> str:
    """The whole page."""
    parts = [_OPENING]
    for title, found in tables().items():
        said = [_SAID[title]] if title in _SAID else []
        parts += [f"## {title}\n", *said, table(found)]
    lines = [f"| `{name}` | {meaning} |" for name, meaning in ENVIRONMENT.items()]
    parts += [
        "## Environment\n",
        _SAID["Environment"],
        "\n".join(["| Variable | Meaning |", "|---|---|", *lines]) + "\n",
    ]
    return "\n".join(parts)


def tables() -> dict[str, list[Row]]:
    """Title -> the keys of that part of a file. What the two training sections share stands once."""
    shared = [name for name in Config.model_fields if name not in STEPS]
    common = list(rows(TrainingSection))
    found = {"Shared by all steps": [row for row in rows(Config) if row.key in shared]}
    for step in STEPS:
        section = _nested(Config.model_fields[step].annotation)
        assert section is not None
        own = [row for row in rows(section) if step != "retrain_subnet" or row not in common]
        found[step] = own
    return found | {
        "Search spaces": list(rows(SearchSpace)),
        CLUSTERS: [row for row in rows(Cluster) if not row.key.startswith(("steps.", "launcher."))],
        ON_A_CLUSTER: list(rows(Step)),
    }


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[Row]:
    """A row for each key of a model, those of nested models with dotted names. A space has a table of its own."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        nested = _nested(field.annotation)
        if nested is None or nested is SearchSpace or NoneType in get_args(field.annotation):
            yield Row(key, _type(field, nested), _default(field), _range(field), field.description or "")
        if nested is not None and nested is not SearchSpace:
            yield from rows(nested, f"{key}.")
        several = _nested_in_list(field.annotation)
        if several is not None:
            yield from rows(several, f"{key}[].")


def undescribed() -> list[str]:
    """The keys whose meaning nobody has written down."""
    return [f"{title}: {row.key}" for title, found in tables().items() for row in found if not row.meaning]


def table(found: Iterable[Row]) -> str:
    lines = ["| Key | Type | Default | Range | Meaning |", "|---|---|---|---|---|"]
    for row in found:
        cells = (f"`{row.key}`", *row[1:])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model that a key's value is, or may be."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _nested_in_list(annotation: Any) -> type[BaseModel] | None:
    """The model that each value of a list is."""
    return _nested(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def _type(field: FieldInfo, nested: type[BaseModel] | None) -> str:
    if nested is SearchSpace:
        return "name of a file of `configs/spaces/`, or the keys of [one](#search-spaces)"
    if nested is not None:
        return "the keys below, or null"
    if _nested_in_list(field.annotation) is not None:
        return "list, each with the keys below"
    return _plain(field.annotation)


def _plain(annotation: Any) -> str:
    """A type in words."""
    words = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null"}
    if annotation in words:
        return words[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(parts[0])
    if origin is dict:
        return f"mapping of {' to '.join(_plain(part) for part in parts)}"
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in parts)
    if origin in (Union, UnionType):
        return " or ".join(_plain(part) for part in parts)
    if origin is tuple:
        many = {"whole number": "whole numbers", "number": "numbers", "text": "texts"}[_plain(parts[0])]
        return f"list of {many}" if parts[1:] == (Ellipsis,) else f"list of {len(parts)} {many}"
    raise TypeError(f"no words for {annotation}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    default = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    text = yaml.safe_dump(list(default) if isinstance(default, tuple) else default, default_flow_style=True)
    return f"`{text.removesuffix(chr(10)).removesuffix('...').strip()}`"


def _range(field: FieldInfo) -> str:
    """The bounds that a value must keep."""
    signs = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "pattern": "`{}`"}
    found = []
    for name, text in signs.items():
        values = [getattr(bound, name) for bound in field.metadata if getattr(bound, name, None) is not None]
        found += [
            _WORDS.get(value) or text.format(f"{value:g}" if isinstance(value, int | float) else value)
            for value in values
        ]
    if any(getattr(bound, "min_length", None) for bound in field.metadata):
        found.append("not empty")
    return ", ".join(found)


if __name__ == "__main__":
    write_text(PAGE, page())

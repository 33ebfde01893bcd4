"""Write docs/configuration.md, with every key of the files of configs/, from the models that validate them.

Run it as `python -m docs.configuration` or `make docs`; a test fails while the page is not up to date.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autoformer.bounds import Bounds
from autoformer.files import write_text
from autoformer.space import SearchSpace
from pipeline.cluster.settings import ON_GPUS, Cluster, Pod, Step
from runtime.common.config import STEPS, Config
from runtime.common.sections import TrainingSection
from runtime.kubernetes.job import SHARED_STEPS
from runtime.kubernetes.settings import Name, Namespace

PAGE = Path(__file__).with_suffix(".md")

# Environment variables that a process reads; none decides a result.
ENVIRONMENT = {
    "MLFLOW_TRACKING_URI": "where runs and models are stored; `mlflow.db` in the repository by default",
    "MLFLOW_EXPERIMENT_NAME": "the experiment; `autoformer` by default",
    "MLFLOW_RUN_ID": "the run that a step logs to and leaves open; KFP's own integration sets it",
    "KFP_RUN_ID": "set on a cluster: the id of the KFP run; its steps share one pipeline run in MLflow",
    "AUTOFORMER_TRACKING_PATIENCE": "seconds for which a step waits for an unavailable MLflow server, before its work "
    "and after it; 300 by default, 60 for a sqlite file",
    "AUTOFORMER_TRACKING": "`off`: steps log nothing; `register_model` still needs MLflow",
    "AUTOFORMER_WORK": "folder of work in progress; `work/` in the repository by default",
    "AUTOFORMER_STORE": "`s3://bucket/folder` for weights and checkpoints; by default they stay in files",
    "AUTOFORMER_WORKERS": "processes that decode and augment images; by default the cores that training leaves free",
    "AUTOFORMER_CACHE_GB": "memory of the whole machine for decoded training images; 0 by default",
    "AUTOFORMER_STAGING": "folder on a local disk for copies of data in S3; `staged/` in the work folder by default",
    "AUTOFORMER_STAGING_GB": "disk space of the whole machine for these copies; 10 by default, 0 for none",
    "AUTOFORMER_PROCESSES": "processes of a step that supports several; by default one per GPU, or 1",
    "AUTOFORMER_MAX_RESTARTS": "restarts of all these processes after one has died; 0 by default",
    "AUTOFORMER_JOB": "set by `make compile CLUSTER=…` for a step on several machines: the settings of its TrainJob",
    "AUTOFORMER_TERMINATION": "set in the pods of such a job: the file to which a step writes its error for Kubernetes",
    "KFP_POD_NAME": "set on a cluster, with `KFP_POD_UID`: the pod that owns such a job",
    "KFP_NAMESPACE": "set on a cluster: the namespace of such a job; by default the pod's own, or that of KUBECONFIG",
    "AUTOFORMER_IMAGE": "the image in the package of `make compile`; `make compile IMAGE=…` sets it",
    "KFP_HOST": "the KFP server of `make submit` without HOST",
    "KFP_TOKEN": "the token for that server; a file is safer",
    "KFP_TOKEN_FILE": "the file with that token; by default the path at which KFP projects one into a pod",
    "KF_PIPELINES_SA_TOKEN_PATH": "the same; set in a pod by the way of KFP's documentation",
    "KF_PIPELINES_UI_ENDPOINT": "the address of the UI, if not HOST; KFP's SDK reads it too",
    "DOCKER_HOST": "the Docker daemon of `make images` and `make run RUNNER=docker`; this machine's by default",
    "GIT_COMMIT": "the commit of the code where there is no git, as in an image",
    "OMP_WAIT_POLICY": "`PASSIVE` by default: torch's threads sleep while they wait for each other",
    "AUTOFORMER_PARENT_RUN_ID": "set by `make run` for its steps: the pipeline run in MLflow",
    "AUTOFORMER_RUNNER_PID": "set by `make run` and `make repro`: their process id; their steps end when it does",
    "AUTOFORMER_FAILURE": "set by `make run` and `make repro`: the file for a step's error",
    "AUTOFORMER_TTY": "set by `make run` for its steps: the terminal for progress bars",
}

_OPENING = """\
# Configuration

Every key of a parameter file (`params.yaml`, a file of [configs/presets](../configs/presets)), of a
[space file](#search-spaces) and of a [cluster's settings](#clusters). `make docs` writes this page from the models that
validate them.

A preset is complete: each step has a section, and the shared keys are at the top. An unknown key, or a
value of another type or out of range, is refused in one line before anything runs. Dotted keys override single values:
`make run SET="search_subnet.limits.max_params_m=0.3 seed=1"`; steps take `--set search_subnet.images=null`. Values
are YAML: `null`, `true`, `[8, 12]`, `{flip: true}`.

"Required" means that there is no default.
"""


def _names(names: Iterable[str]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}"


CLUSTERS, ON_A_CLUSTER, BOUNDS = "Clusters", "Steps on a cluster", "Limits of input"
_INTRODUCTIONS = {
    "train_supernet": "`retrain_subnet` takes all of these keys too, for the training of the chosen subnet.\n",
    "retrain_subnet": "The keys of [train_supernet](#train_supernet), for the chosen subnet, and these:\n",
    "search_subnet": "At most population x (1 + generations) candidates are scored, and as many random ones.\n",
    "Search spaces": """\
One file each in [configs/spaces](../configs/spaces): the shape of the images, the supernet, and the choices for each
dimension of a subnet. No choice may be larger than the supernet's dimension of that name.
""",
    CLUSTERS: """\
One file each in [configs/cluster](../configs/cluster): the cluster and the resources of each step. `make compile
CLUSTER=gpu` takes it by name or by path, and `SET="namespace=vision"` overrides single values. No key decides a result.
Secrets do not belong here: a value or a name that looks like a secret is refused and not
printed.
""",
    ON_A_CLUSTER: f"""\
Keys of each section of `steps`, which are {_names(STEPS)}.

GPUs are for {_names(ON_GPUS)}; several machines for {_names(SHARED_STEPS)}. The section `launcher`, for
`resolve_config` and for pods that launch a job of several machines, takes {_names(Pod.model_fields)} of these keys.
""",
    BOUNDS: """\
Larger input is refused in one line, so no file or request takes all memory or time. The limits are constants
of [autoformer/bounds.py](../autoformer/bounds.py), not keys; a change there runs every step again.
""",
    "Environment": "The environment variables that a process reads. None decides a result.\n",
}


_PATTERNS = {  # in words
    get_args(Name)[1].pattern: "a name of Kubernetes",
    get_args(Namespace)[1].pattern: "a name of Kubernetes without dots, of at most 63 characters",
}


class Row(NamedTuple):
    key: str
    type: str
    default: str
    range: str
    meaning: str


def page() -> str:
    """The whole page."""
    parts = [_OPENING]
    for title, keys in tables().items():
        introduction = [_INTRODUCTIONS[title]] if title in _INTRODUCTIONS else []
        parts += [f"## {title}\n", *introduction, table(keys)]
    lines = [f"| `{name}` | {meaning} |" for name, meaning in ENVIRONMENT.items()]
    parts += [
        "## Environment\n",
        _INTRODUCTIONS["Environment"],
        "\n".join(["| Variable | Meaning |", "|---|---|", *lines]) + "\n",
    ]
    return "\n".join(parts)


def tables() -> dict[str, list[Row]]:
    """Title -> the keys of that part of a file. Keys of both training sections stand in the first."""
    shared = [name for name in Config.model_fields if name not in STEPS]
    training = list(rows(TrainingSection))
    by_title = {"Shared by all steps": [row for row in rows(Config) if row.key in shared]}
    for step in STEPS:
        section = _nested(Config.model_fields[step].annotation)
        assert section is not None
        by_title[step] = [row for row in rows(section) if step != "retrain_subnet" or row not in training]
    return by_title | {
        "Search spaces": list(rows(SearchSpace)),
        CLUSTERS: [row for row in rows(Cluster) if not row.key.startswith(("steps.", "launcher."))],
        ON_A_CLUSTER: list(rows(Step)),
        BOUNDS: list(rows(Bounds)),
    }


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[Row]:
    """A row for each key of a model and, with dotted names, of nested models. Search spaces have their own table."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        nested = _nested(field.annotation)
        if nested is None or nested is SearchSpace or NoneType in get_args(field.annotation):
            yield Row(key, _type(field, nested), _default(field), _range(field), field.description or "")
        if nested is not None and nested is not SearchSpace:
            yield from rows(nested, f"{key}.")
        element = _nested_in_list(field.annotation)
        if element is not None:
            yield from rows(element, f"{key}[].")


def undescribed() -> list[str]:
    """The keys without a description."""
    return [f"{title}: {row.key}" for title, keys in tables().items() for row in keys if not row.meaning]


def table(keys: Iterable[Row]) -> str:
    lines = ["| Key | Type | Default | Range | Meaning |", "|---|---|---|---|---|"]
    for row in keys:
        cells = (f"`{row.key}`", *row[1:])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model of a key's value, also where it may be null."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _nested_in_list(annotation: Any) -> type[BaseModel] | None:
    """The model of the elements of a list."""
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
        plural = {"whole number": "whole numbers", "number": "numbers", "text": "texts"}[_plain(parts[0])]
        return f"list of {plural}" if parts[1:] == (Ellipsis,) else f"list of {len(parts)} {plural}"
    raise TypeError(f"no words for {annotation}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    default = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    text = yaml.safe_dump(list(default) if isinstance(default, tuple) else default, default_flow_style=True)
    return f"`{text.removesuffix(chr(10)).removesuffix('...').strip()}`"


def _range(field: FieldInfo) -> str:
    """The bounds of a value."""
    signs = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "pattern": "`{}`"}
    bounds = []
    for name, text in signs.items():
        for value in (getattr(bound, name, None) for bound in field.metadata):
            if value is not None:
                number = f"{value:g}" if isinstance(value, int | float) else value
                bounds.append(_PATTERNS.get(value) or text.format(number))
    if any(getattr(bound, "min_length", None) for bound in field.metadata):
        bounds.append("not empty")
    return ", ".join(bounds)


if __name__ == "__main__":
    write_text(PAGE, page())

"""The arguments of `make submit`, checked without a request: the first wrong one, and all that are missing."""

import argparse
import os
import re
from pathlib import Path

from pydantic import TypeAdapter

from autoformer.errors import AutoFormerError, quantity, validated
from autoformer.frozen import Name
from components.resolve_config.step import resolve
from pipeline.cluster import schedules
from pipeline.cluster.compile import PIPELINE
from pipeline.cluster.kfp_access import address
from pipeline.cluster.settings import Cluster, load_cluster
from runtime.common.config import Config
from runtime.common.console import Parser
from runtime.common.overrides import add_option
from runtime.storage import S3Uri, is_uri

_EXAMPLE_ID = "9e368fea-8b78-4dea-8775-0786f7ea180c, for example"
_LONGEST_NAME = 128  # of an experiment
_OMIT = "leave it out, and each run computes it"


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="python -m pipeline.cluster.submit", description="Start the pipeline on a KFP server.")
    option = result.add_argument
    option("--host", default=os.environ.get("KFP_HOST"), help="of KFP's UI or API (default: KFP_HOST)")
    option("--preset", default="demo", help="a preset's name, or a params file of yours")
    add_option(result)
    option("--cluster", help="settings of the cluster: a file of configs/cluster/ by name, or the path of one")
    option("--data", help="the archives as the steps see them: s3://bucket/folder, or a folder of a volume")
    option("--data-hash", default="", help="of those archives (default: each run computes it where they are)")
    option("--experiment", default=PIPELINE, help="in KFP (default: %(default)s)")
    option("--namespace", help="of your profile, where several users share the server (default: the cluster's)")
    option("--fresh", action="store_true", help="take no task from the cache")
    option("--wait", action="store_true", help="follow the run to its end; the exit code is that of the run")
    option("--every", help='a recurring run: "0 3 * * 1" as in cron, or 6h; `never` ends it')
    option("--run", metavar="ID", help="start none: follow this one to its end")
    option("--terminate", metavar="ID", help="start none: end this one")
    return result


def check(arguments: argparse.Namespace) -> tuple[Cluster | None, Config | None]:
    """Check all arguments. Removes a slash at the end of DATA: KFP's cache compares texts.

    Returns:
        The settings of the cluster, and the configuration of the run if one is to be started.

    Raises:
        AutoFormerError: the first wrong argument, in their order in `make help`, and every missing one.
    """
    starts = not (arguments.run or arguments.terminate or arguments.every == schedules.NEVER)
    missing = _missing(arguments, starts)
    try:
        found = _check_given(arguments, starts)
    except AutoFormerError as error:
        raise AutoFormerError("; ".join([str(error), *missing])) from None
    if missing:
        raise AutoFormerError("; ".join(missing))
    return found


def _missing(arguments: argparse.Namespace, starts: bool) -> list[str]:
    """A sentence for each argument that is missing; `starts`: whether a run is to be started."""
    missing = []
    if not arguments.host:
        missing.append("HOST is missing: the address of KFP's UI, as in HOST=http://127.0.0.1:8080")
    if starts and not arguments.cluster and not os.environ.get("AUTOFORMER_IMAGE"):
        missing.append(
            "CLUSTER is missing: a file of configs/cluster/, which names images and machines; "
            "or IMAGE=repository@sha256:… for any cluster"
        )
    if starts and not arguments.data:
        missing.append("DATA is missing: s3://bucket/folder, or the folder of a volume that the steps see")
    return missing


def _check_given(arguments: argparse.Namespace, starts: bool) -> tuple[Cluster | None, Config | None]:
    """Check the arguments that are there, in their order in `make help`, without any request.

    Returns:
        The settings of the cluster, and the configuration of the run if one is to be started.
    """
    if arguments.host:
        address(arguments.host)
    _check_run(arguments)
    cluster = load_cluster(arguments.cluster) if arguments.cluster else None
    config = None
    if starts:
        if cluster is not None:
            check_filled_in(cluster, arguments.cluster)
        config = resolve(arguments.preset, arguments.overrides)
        if arguments.data:
            _check_data(arguments, cluster)
        if not re.fullmatch(r"([0-9a-f]{64})?", arguments.data_hash):
            raise AutoFormerError(
                f"DATA_HASH={arguments.data_hash}: expected a sha256 of 64 hexadecimal digits; {_OMIT}"
            )
    validated(TypeAdapter(Name), arguments.experiment, f"EXPERIMENT={arguments.experiment}")
    if not arguments.experiment.strip():
        raise AutoFormerError("EXPERIMENT is empty: the name of an experiment in KFP, or leave it out")
    if len(arguments.experiment) > _LONGEST_NAME:
        raise AutoFormerError(
            f"EXPERIMENT: {quantity(len(arguments.experiment), 'character')}; KFP takes {_LONGEST_NAME}"
        )
    if starts and arguments.every is not None:
        schedules.trigger(arguments.every)
        if arguments.wait:
            raise AutoFormerError("EVERY and WAIT: a recurring run has no end to wait for; leave one of them out")
    return cluster, config


def _check_data(arguments: argparse.Namespace, cluster: Cluster | None) -> None:
    """Check DATA, and remove a slash at its end: KFP's cache compares texts."""
    if is_uri(arguments.data):
        arguments.data = str(S3Uri.parse(arguments.data))
        return
    if not arguments.data.startswith("/"):
        raise AutoFormerError(
            f"DATA={arguments.data}: the steps run elsewhere, and know no folder of this machine; "
            "give s3://bucket/folder, or the whole path on a volume that they mount"
        )
    arguments.data = arguments.data.rstrip("/") or "/"
    mounts = [volume.mount for volume in cluster.volumes] if cluster else []
    if cluster and not any(Path(arguments.data).is_relative_to(mount) for mount in mounts):
        known = f"they are at {', '.join(mounts)}" if mounts else "it has none"
        raise AutoFormerError(f"DATA={arguments.data}: on no volume of CLUSTER={arguments.cluster}; {known}")


def _check_run(arguments: argparse.Namespace) -> None:
    """Check RUN, TERMINATE and EVERY, of which one excludes the others."""
    named = {"RUN": arguments.run, "TERMINATE": arguments.terminate, "EVERY": arguments.every}
    wanted = [name for name, value in named.items() if value is not None]
    if len(wanted) > 1:
        raise AutoFormerError(f"{' and '.join(wanted)}: one of them at a time")
    for name in {"RUN", "TERMINATE"} & set(wanted):
        if not re.fullmatch(r"[0-9A-Za-z-]+", named[name]):
            raise AutoFormerError(
                f"{name}={named[name]}: not the id of a run, which `make submit` prints: {_EXAMPLE_ID}"
            )


def check_filled_in(cluster: Cluster, source: str) -> None:
    """Raise `AutoFormerError` if settings still have values of the example."""
    examples = cluster.placeholders()
    if examples:
        raise AutoFormerError(f"CLUSTER={source}: still the example's: {', '.join(examples)}")

"""Start the pipeline on a KFP server: compile it, upload it, run it with a preset's parameters.

`make submit HOST=…` prints where the run is to be seen; with WAIT=1 it follows the run to its end, and ends as the run
did: 0, or 1 with the failed task. EVERY=… makes a recurring run instead.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value
from components.resolve_config.step import resolve
from pipeline.cluster import schedules
from pipeline.cluster.compile import PIPELINE, write_package
from pipeline.cluster.follow_run import follow_run
from pipeline.cluster.kfp_access import address
from pipeline.cluster.kfp_client import OLDEST, MissingError, Server, Start, Version
from pipeline.cluster.settings import Cluster, load_cluster
from runtime.common.code import package_code
from runtime.common.config import Config
from runtime.common.console import Parser, print_line, run_command
from runtime.common.overrides import add_option, join
from runtime.common.stopping import Stopped
from runtime.storage import S3Uri, is_uri

_NONE = "nothing was started"


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="python -m pipeline.cluster.submit", description="Start the pipeline on a KFP server.")
    result.add_argument("--host", default=os.environ.get("KFP_HOST"), help="of KFP's UI or API (default: KFP_HOST)")
    result.add_argument("--preset", default="demo", help="a preset's name, or a params file of yours")
    add_option(result)
    result.add_argument(
        "--cluster", help="on what the steps run: a file of configs/cluster/ by name, or the path of one"
    )
    result.add_argument(
        "--data", help="the archives as the steps see them: s3://bucket/folder, or a folder of a volume"
    )
    result.add_argument("--data-hash", default="", help="of those archives (default: each run takes it where they are)")
    result.add_argument("--experiment", default=PIPELINE, help="in KFP (default: %(default)s)")
    result.add_argument(
        "--namespace", help="of your profile, where several users share the server (default: the cluster's)"
    )
    result.add_argument("--fresh", action="store_true", help="take no task from the cache")
    result.add_argument("--wait", action="store_true", help="follow the run to its end, and end as it did")
    result.add_argument("--every", help='a recurring run: "0 3 * * 1" as in cron, or 6h; `never` ends it')
    result.add_argument("--run", metavar="ID", help="start none: follow this one to its end")
    result.add_argument("--terminate", metavar="ID", help="start none: end this one")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    left = [_NONE]  # what a person is told where this process is stopped

    def work(arguments: argparse.Namespace) -> int:
        try:
            return _run(arguments, left)
        except Stopped as stopped:
            stopped.note = f"; {left[0]}"
            raise

    return run_command("submit", parser(), work, argv, after="")


def _run(arguments: argparse.Namespace, left: list[str]) -> int:
    _check_arguments(arguments)
    cluster = load_cluster(arguments.cluster) if arguments.cluster else None
    namespace = arguments.namespace or (cluster.namespace if cluster else "")
    if arguments.run:
        return _follow(Server(arguments.host, namespace), arguments.run, left)
    if arguments.terminate:
        Server(arguments.host, namespace).terminate(arguments.terminate)
        print_line(f"run {arguments.terminate}: told to end")
        return 0
    if arguments.every == schedules.NEVER:
        return _unschedule(Server(arguments.host, namespace), arguments)
    _check_cluster(cluster, arguments)
    trigger = None if arguments.every is None else schedules.trigger(arguments.every)
    config = resolve(arguments.preset, arguments.overrides)
    server = Server(arguments.host, namespace)
    _warn_of_age(server)
    start = Start(
        version=_upload(server, cluster, arguments.fresh),
        experiment=server.experiment(arguments.experiment),
        parameters=_parameters(arguments, config),
        service_account=(cluster.service_account if cluster else None) or "",
    )
    if trigger is not None:
        return _schedule(server, arguments, start, trigger)
    name = f"{_title(arguments)} {time.strftime('%Y-%m-%d %H:%M:%S')} {uuid.uuid4().hex[:6]}"
    left[0] = f"the run '{name}' may have been started; {server.host} lists it"
    run_id = server.start(name, start)
    print_line(f"run {run_id}: {config.name} on {arguments.data}\n{server.page(run_id)}")
    return _follow(server, run_id, left) if arguments.wait else 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    """What can be said before anything is asked or read."""
    if not arguments.host:
        raise AutoFormerError("HOST is missing: the address of KFP's UI, as in HOST=http://127.0.0.1:8080")
    address(arguments.host)
    if arguments.run or arguments.terminate or arguments.every == schedules.NEVER:
        return
    if not arguments.data:
        raise AutoFormerError("DATA is missing: s3://bucket/folder, or the folder of a volume that the steps see")
    if is_uri(arguments.data):
        S3Uri.parse(arguments.data)
    elif not arguments.data.startswith("/"):
        raise AutoFormerError(
            f"DATA={arguments.data}: the steps run elsewhere, and know no folder of this machine; "
            "give s3://bucket/folder, or the whole path on a volume that they mount"
        )
    if arguments.every and arguments.wait:
        raise AutoFormerError("EVERY and WAIT: a recurring run has no end to wait for; leave one of them out")


def _check_cluster(cluster: Cluster | None, arguments: argparse.Namespace) -> None:
    if cluster is None:
        if not os.environ.get("AUTOFORMER_IMAGE"):
            raise AutoFormerError("CLUSTER is missing: a file of configs/cluster/, which names images and machines; "
                                  "or IMAGE=repository@sha256:… for any cluster")  # fmt: skip
        return
    examples = cluster.placeholders()
    if examples:
        raise AutoFormerError(f"CLUSTER={arguments.cluster}: still the example's: {', '.join(examples)}")
    mounts = [volume.mount for volume in cluster.volumes]
    if not is_uri(arguments.data) and not any(Path(arguments.data).is_relative_to(mount) for mount in mounts):
        known = f"they are at {', '.join(mounts)}" if mounts else "it has none"
        raise AutoFormerError(f"DATA={arguments.data}: on no volume of CLUSTER={arguments.cluster}; {known}")


def _parameters(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Of the run form. A params file of yours is in no image, so its content goes along, with what overrides it."""
    preset, own = arguments.preset, arguments.preset.endswith((".yaml", ".yml"))
    return {
        "preset": config.model_dump_json() if own else preset,
        "data": arguments.data,
        "data_hash": arguments.data_hash,
        "overrides": "" if own else join(arguments.overrides),
    }


def _upload(server: Server, cluster: Cluster | None, fresh: bool) -> Version:
    """The package on the server, under a name that its content decides."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{PIPELINE}.yaml"
        image = write_package(package, cluster, fresh)
        # by what the package says: the compiler writes its keys in another order each time
        content = list(yaml.load_all(package.read_text(encoding="utf-8"), yaml.CSafeLoader))
        name = f"{PIPELINE}-{hash_value(content)[:12]}"
        version = server.upload(PIPELINE, name, package, f"source {package_code()}, image {image}")
    print_line(f"pipeline '{PIPELINE}', version {name}{'' if version.is_new else ', which was there already'}")
    return version


def _schedule(server: Server, arguments: argparse.Namespace, start: Start, trigger: dict[str, Any]) -> int:
    """Make the recurring run, then end those of the same name: there is always one."""
    name = _title(arguments)
    former = server.scheduled(name, arguments.experiment)
    made = server.schedule(name, start, trigger)
    for each in former:
        server.unschedule(each)
    instead = f", in place of {', '.join(former)}" if former else ""
    print_line(f"recurring run '{name}', {made}: EVERY={shlex.quote(arguments.every)}{instead}")
    return 0


def _unschedule(server: Server, arguments: argparse.Namespace) -> int:
    name = _title(arguments)
    former = server.scheduled(name, arguments.experiment)
    if not former:
        raise AutoFormerError(f"no recurring run '{name}' in the experiment '{arguments.experiment}'")
    for each in former:
        server.unschedule(each)
        print_line(f"recurring run '{name}', {each}: ended; the runs that it has started stay")
    return 0


def _follow(server: Server, run_id: str, left: list[str]) -> int:
    again = f"make submit HOST={shlex.quote(server.host)}"
    if server.namespace:
        again += f" NAMESPACE={server.namespace}"
    left[0] = f"the run goes on: {server.page(run_id)}; `{again} RUN={run_id}` follows it, TERMINATE={run_id} ends it"
    try:
        return follow_run(server, run_id)
    except MissingError:
        raise
    except AutoFormerError as error:  # a token that has expired, a server that stays away
        raise AutoFormerError(f"{error}; {left[0]}") from None


def _title(arguments: argparse.Namespace) -> str:
    """Of a run: the preset's name."""
    return Path(arguments.preset).stem if arguments.preset.endswith((".yaml", ".yml")) else str(arguments.preset)


def _warn_of_age(server: Server) -> None:
    version = server.version()
    if version is not None and version < OLDEST:
        print_line(
            f"{server.host}: KFP {version[0]}.{version[1]}; the package is made for {OLDEST[0]}.{OLDEST[1]}", sys.stderr
        )


if __name__ == "__main__":
    raise SystemExit(main())

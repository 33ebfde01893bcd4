"""Start the pipeline on a KFP server: compile it, upload it, run it with a preset's parameters.

`make submit HOST=…` prints the run's address in the UI. With WAIT=1 it follows the run: the exit code is 0 where it
succeeded, else 1 with a line about the failed task. EVERY=… creates a recurring run instead.
"""

import argparse
import re
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value
from commands.check_weights import check_in_another_process
from pipeline.cluster import schedules
from pipeline.cluster.compile import PIPELINE, write_package
from pipeline.cluster.follow_run import follow_run
from pipeline.cluster.kfp_access import ENDED, OLDEST, MissingError
from pipeline.cluster.settings import Cluster
from pipeline.cluster.submit_arguments import check, parser
from runtime.common.code import package_code
from runtime.common.config import Config
from runtime.common.console import print_line, run_command
from runtime.common.overrides import join
from runtime.common.stopping import Stopped

if TYPE_CHECKING:
    from pipeline.cluster.kfp_client import KfpClient


def main(argv: Sequence[str] | None = None) -> int:
    state = ["nothing was started"]  # ends the line that reports a signal

    def work(arguments: argparse.Namespace) -> int:
        try:
            return _run(arguments, state)
        except Stopped as stopped:
            stopped.note = f"; {state[0]}"
            raise

    return run_command("submit", parser(), work, argv, after="")


def _run(arguments: argparse.Namespace, state: list[str]) -> int:
    cluster, config = check(arguments)
    if arguments.run:
        return _follow(_connect(arguments, cluster), arguments.run, state)
    if arguments.terminate:
        return _terminate(_connect(arguments, cluster), arguments.terminate)
    if config is None:
        return _end_recurring(_connect(arguments, cluster), arguments)
    if code := check_in_another_process(config):
        return code
    trigger = None if arguments.every is None else schedules.trigger(arguments.every)
    client = _connect(arguments, cluster)
    _warn_of_age(client)
    version = _upload(client, cluster, arguments.fresh)
    start = {
        "experiment_id": client.experiment(arguments.experiment),
        "pipeline_id": version.pipeline_id,
        "version_id": version.pipeline_version_id,
        "params": _parameters(arguments, config),
        "service_account": cluster.service_account if cluster else None,
    }
    if trigger is not None:
        return _schedule(client, arguments, start | trigger)
    name = f"{_title(arguments)} {time.strftime('%Y-%m-%d %H:%M:%S')} {uuid.uuid4().hex[:6]}"
    state[0] = f"the run '{name}' may have been started; {client.host} lists it"
    run_id = client.start(name, start)
    print_line(f"run {run_id}: {config.name} on {arguments.data}\n{client.page(run_id)}")
    return _follow(client, run_id, state) if arguments.wait else 0


def _connect(arguments: argparse.Namespace, cluster: Cluster | None) -> "KfpClient":
    from pipeline.cluster.kfp_client import KfpClient  # imports kfp, which takes seconds

    return KfpClient(arguments.host, arguments.namespace or (cluster.namespace if cluster else ""))


def _warn_of_age(client: "KfpClient") -> None:
    version = client.version()
    if version is not None and version < OLDEST:
        made_for = f"the package is made for {OLDEST[0]}.{OLDEST[1]}"
        print_line(f"{client.host}: KFP {version[0]}.{version[1]}; {made_for}", sys.stderr)


def _parameters(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Parameters of the run. Images lack the user's params file, so its content is passed, with overrides applied."""
    preset, own = arguments.preset, arguments.preset.endswith((".yaml", ".yml"))
    return {
        "preset": config.model_dump_json() if own else preset,
        "data": arguments.data,
        "data_hash": arguments.data_hash,
        "overrides": "" if own else join(arguments.overrides),
    }


def _upload(client: "KfpClient", cluster: Cluster | None, fresh: bool) -> Any:
    """Compile the package and upload it under a name that is a hash of its content; returns the pipeline version."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{PIPELINE}.yaml"
        image = write_package(package, cluster, fresh)
        # hash the parsed content: the compiler's order of keys varies
        content = list(yaml.load_all(package.read_text(encoding="utf-8"), yaml.CSafeLoader))
        name = f"{PIPELINE}-{hash_value(content)[:12]}"
        about = content[0]["pipelineInfo"]["description"]
        version, is_new = client.upload(PIPELINE, about, name, package, f"source {package_code()}, image {image}")
    print_line(f"pipeline '{PIPELINE}', version {name}{'' if is_new else ', which was there already'}")
    return version


def _schedule(client: "KfpClient", arguments: argparse.Namespace, start: dict[str, Any]) -> int:
    """Create the recurring run, then delete others of the same name, so one always exists.

    It runs one at a time, and does not catch up on missed runs.
    """
    name = _title(arguments)
    former = client.recurring(name, arguments.experiment)
    made = client.create_recurring_run(job_name=name, max_concurrency=1, no_catchup=True, **start).recurring_run_id
    instead = f", in place of {', '.join(former)}" if former else ""
    print_line(f"recurring run '{name}', {made}: EVERY={shlex.quote(arguments.every)}{instead}")
    _end(client, name, former)
    return 0


def _end_recurring(client: "KfpClient", arguments: argparse.Namespace) -> int:
    name = _title(arguments)
    former = client.recurring(name, arguments.experiment)
    if not former:
        there = ", ".join(f"'{each}'" for each in client.recurring_names(arguments.experiment))
        known = f"there is {there}: PRESET names the one to end" if there else "there is none"
        raise AutoFormerError(f"no recurring run '{name}' in the experiment '{arguments.experiment}'; {known}")
    _end(client, name, former)
    return 0


def _end(client: "KfpClient", name: str, recurring: Sequence[str]) -> None:
    for each in recurring:
        at_work = client.end_recurring(each)
        state = (
            f"paused; its run {at_work} continues, and deleting the recurring run would stop it: EVERY=never once it "
            "has ended"
            if at_work
            else "ended; the runs that it has started stay"
        )
        print_line(f"recurring run '{name}', {each}: {state}")


def _terminate(client: "KfpClient", run_id: str) -> int:
    state = client.get_run(run_id).state
    if state in ENDED:
        raise AutoFormerError(f"{client.host}: the run {run_id} has ended already: {state.lower()}")
    if state == "CANCELING":
        print_line(f"run {run_id}: is being terminated already")
        return 0
    try:
        client.terminate_run(run_id)
    except AutoFormerError as error:
        if not re.search(r'workflows\.argoproj\.io "[^"]*" not found', str(error)):
            raise
        what = "Kubernetes has no workflow of it any more, and KFP reports it as running for ever"
        raise AutoFormerError(f"{client.host}: the run {run_id} cannot be ended: {what}; archive it in KFP") from None
    print_line(f"run {run_id}: termination requested")
    return 0


def _follow(client: "KfpClient", run_id: str, state: list[str]) -> int:
    again = f"make submit HOST={shlex.quote(client.host)}"
    if client.namespace:
        again += f" NAMESPACE={client.namespace}"
    state[0] = (
        f"the run continues: {client.page(run_id)}; `{again} RUN={run_id}` follows it, TERMINATE={run_id} ends it"
    )
    try:
        return follow_run(client, run_id)
    except MissingError:
        raise
    except AutoFormerError as error:  # an expired token, or a server that stays away
        raise AutoFormerError(f"{error}; {state[0]}") from None


def _title(arguments: argparse.Namespace) -> str:
    """The preset's name."""
    return Path(arguments.preset).stem if arguments.preset.endswith((".yaml", ".yml")) else str(arguments.preset)


if __name__ == "__main__":
    raise SystemExit(main())

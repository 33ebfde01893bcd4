"""A step as a job on several machines: launched, followed, cancelled with its launcher, and its results brought back.

By hand: `AUTOFORMER_JOB=… python -m runtime.steps.job_launch <step> <arguments>`.

The launcher holds nothing that it cannot find again. A job's name says run, step, image and attempt, so a launcher
that was killed and comes back, or one that KFP starts again, finds the job at work and follows it; one whose job has
failed deletes it and makes the next attempt, which goes on from the last checkpoint.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from autoformer.errors import AutoFormerError
from runtime.common.config import load_config
from runtime.common.console import refuse, say
from runtime.common.stopping import Stopped, between_steps, stoppable
from runtime.kubernetes.api import PATIENCE, KubernetesApi, Object, Patience
from runtime.kubernetes.follow import condition, follow_job
from runtime.kubernetes.job import ATTEMPT, SHARED_STEPS, Launch, manifest, owners
from runtime.kubernetes.job_folder import JobFolder, inputs_hash, pairs, shared_folder
from runtime.kubernetes.settings import VARIABLE, JobSettings, job_settings
from runtime.steps.command import exit_code
from runtime.steps.launching import check_parts

# What the pods of a job inherit of the launching one; nothing secret is among it.
PASSED = (
    "AUTOFORMER_PARENT_RUN_ID", "AUTOFORMER_STORE", "AUTOFORMER_TRACKING", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3", "AWS_REGION", "KFP_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI",
)  # fmt: skip


def launch(step: str, argv: Sequence[str], settings: JobSettings, patience: Patience = PATIENCE) -> int:
    """Do a step on the machines of `settings`, with the arguments of its command line; the exit code.

    It is that of `python -m components.<step>`, with the same line on stderr.
    """

    def work() -> None:
        launcher: _Launcher | None = None

        def cancel() -> None:
            if launcher is not None:
                launcher.cancel_at_once()

        with stoppable(cancel):
            arguments = checked(step, argv, settings)
            environment = os.environ
            launched = Launch(
                step,
                arguments,
                environment.get("KFP_RUN_ID") or "by-hand",
                environment.get("KFP_POD_NAME", ""),
                environment.get("KFP_POD_UID", ""),
                inputs_hash(arguments),
            )
            inherited = passed(settings, environment)
            cluster = KubernetesApi.connect(patience)
            launcher = _Launcher(cluster, launched, settings, inherited, patience)
            launcher.run()

    return exit_code(step, work)


def checked(step: str, argv: Sequence[str], settings: JobSettings) -> list[str]:
    """The arguments with the configuration as one text, after the checks that need no machine.

    Raises:
        AutoFormerError: one line: a step that one process does, or a configuration that these machines cannot share.
    """
    if step not in SHARED_STEPS:
        raise AutoFormerError(f"one process does this step; a job on several machines is for {', '.join(SHARED_STEPS)}")
    given = pairs(argv)
    overrides = [value for name, value in given if name == "--set"]
    source = dict(given).get("--config")
    if source is None:
        raise AutoFormerError("the following arguments are required: --config; --help lists the arguments")
    config = load_config(source, overrides, [step])
    check_parts(step, config, settings.nodes * settings.processes)
    others = [word for name, value in given if name not in ("--config", "--set") for word in (name, value)]
    return ["--config", config.step_json(step), *others]


def passed(settings: JobSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """What the job's pods inherit, and where their work in progress lies: on the volume that all see.

    Raises:
        AutoFormerError: a password stands in an address; a job's manifest is no place for it.
    """
    secret = {one.env for one in settings.secret_env}
    inherited = {name: environment[name] for name in PASSED if environment.get(name) and name not in secret}
    for name, value in inherited.items():
        if "@" in urlsplit(value).netloc:
            raise AutoFormerError(f"{name} holds a password; give it to the job by secret_env")
    shared = shared_folder(settings)
    return ({"AUTOFORMER_WORK": f"{shared}/work"} if shared else {}) | inherited


class _Launcher:
    def __init__(
        self,
        cluster: KubernetesApi,
        launched: Launch,
        settings: JobSettings,
        environment: Mapping[str, str],
        patience: Patience,
    ) -> None:
        self.cluster, self.launched, self.settings = cluster, launched, settings
        self.environment, self.patience = environment, patience
        self._at_work: str | None = None  # the job that ends with us

    def run(self) -> None:
        name = self._running() or self._new()
        with self._cancelled_with_us(name):
            follow_job(self.cluster, name, self.launched.step, self.patience)
        self._at_work = None  # it has ended well, and stays for whoever has to bring its results another time
        with between_steps():
            self._job_folder(name).fetch_outputs(self.launched.argv)

    def _job_folder(self, name: str) -> JobFolder:
        return JobFolder.of_job(self.settings, name)

    def _attempts(self) -> list[Object]:
        found = self.cluster.jobs(self.launched.labels(self.settings))
        return sorted(found, key=_attempt)

    def _running(self) -> str | None:
        """The job of an earlier launcher that is at work, or has done it: from now on it is this one's."""
        newest = next(reversed(self._attempts()), None)
        if newest is None or newest["metadata"].get("deletionTimestamp") or condition(newest, "Failed"):
            return None
        name: str = newest["metadata"]["name"]
        if condition(newest, "Complete") and not self._job_folder(name).has_outputs(self.launched.argv):
            return None
        self._adopt(name)
        return name

    def _adopt(self, name: str) -> None:
        """With the pod that has launched it a job would go; it is to go with this one."""
        say(f"{self.launched.step}: goes on with the job {name}")
        if self.launched.pod_uid:
            self.cluster.patch(name, {"metadata": {"ownerReferences": owners(self.launched)}})

    def _new(self) -> str:
        """Make the next attempt, once those before it are gone."""
        former = self._attempts()
        self._remove([job["metadata"]["name"] for job in former])
        attempt = 1 + max((_attempt(job) for job in former), default=0)
        while self._job_folder(self.launched.name(self.settings, attempt)).closed:
            attempt += 1
        name = self.launched.name(self.settings, attempt)
        place = self._job_folder(name)
        given = place.put_inputs(self.launched.argv)
        made = manifest(self.launched, self.settings, attempt, place.root, given, self.environment)
        with self._cancelled_with_us(name), between_steps():
            if self.cluster.create(made) is None:
                self._adopt(name)  # a request that broke off had come so far
            else:
                machines = f"{self.settings.nodes} machines with {self.settings.gpus} GPUs each"
                say(f"{self.launched.step}: launched the job {name} on {machines}")
        return name

    def _remove(self, names: Sequence[str]) -> None:
        """Delete jobs that have ended: one whose JobSet goes before it would be started again by Trainer.

        A launcher that comes in between finds no job to count from, and so each place is marked first.
        """
        for name in names:
            self._job_folder(name).mark_closed()
            self.cluster.delete(name)
        for name in names:
            self._wait_until_gone(name)

    def _wait_until_gone(self, name: str) -> None:
        """Two jobs at the same checkpoints would be in each other's way."""
        told = False
        while self.cluster.get(name) is not None:
            if not told:
                say(f"{self.launched.step}: waits until the job {name} is gone")
                told = True
            time.sleep(self.patience.poll_seconds)

    def cancel_at_once(self) -> None:
        """Where a signal comes: a pod may be killed a second after it, while this process waits for an answer."""
        if self._at_work is not None:
            self.cluster.delete_at_once(self._at_work)

    @contextmanager
    def _cancelled_with_us(self, name: str) -> Iterator[None]:
        self._at_work = name
        try:
            yield
        except Stopped as stopped:
            self.cluster.hurry()
            self.cluster.delete(name)
            stopped.note = f", and the job {name} with it"
            raise


def _attempt(job: Object) -> int:
    return int(job["metadata"]["labels"][ATTEMPT])


def main(argv: Sequence[str] | None = None) -> int:
    step, *arguments = [*(sys.argv[1:] if argv is None else argv)] or [""]
    try:
        settings = job_settings()
        if settings is None:
            raise AutoFormerError(f"{VARIABLE} is not set; it says on which machines: docs/cluster.md")
    except AutoFormerError as error:
        return refuse("trainjob", error)
    return launch(step, arguments, settings)


if __name__ == "__main__":
    raise SystemExit(main())

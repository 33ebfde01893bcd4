"""Launch a step as a job on several machines, follow it, fetch its results, and cancel it with the launcher.

By hand: `AUTOFORMER_JOB=… python -m runtime.steps.job_launch <step> <arguments>`.

The launcher has no state. A job's name is made of run, step, image and attempt, so a restarted launcher finds the
running job and follows it. A failed job is deleted, and the next attempt resumes from the last checkpoint.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from autoformer.errors import AutoFormerError, quantity
from runtime.common.config import load_config
from runtime.common.console import print_line, report_error
from runtime.common.stopping import Stopped, delay_signals, stoppable
from runtime.kubernetes.api import PATIENCE, KubernetesApi, Object, Patience
from runtime.kubernetes.follow import condition, follow_job
from runtime.kubernetes.job import ATTEMPT, SHARED_STEPS, Launch, manifest, owners
from runtime.kubernetes.job_folder import JobFolder, inputs_hash, pairs, shared_folder
from runtime.kubernetes.settings import VARIABLE, JobSettings, job_settings
from runtime.steps.command import exit_code
from runtime.steps.rank_launch import check_batch_split

# Variables that a job's pods inherit from the launching pod; none is secret.
PASSED = (
    "AUTOFORMER_PARENT_RUN_ID", "AUTOFORMER_STORE", "AUTOFORMER_TRACKING", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3", "AWS_REGION", "KFP_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI",
)  # fmt: skip


def launch(step: str, argv: Sequence[str], settings: JobSettings, patience: Patience = PATIENCE) -> int:
    """Run a step on the machines of `settings`, with its command-line arguments.

    Returns:
        The exit code of `python -m components.<step>`, with the same line on stderr.
    """
    launcher: _Launcher | None = None

    def cancel() -> None:
        if launcher is not None:
            launcher.cancel_at_once()

    def work() -> None:
        nonlocal launcher
        with stoppable(cancel):
            arguments = _checked(step, argv, settings)
            launched = Launch(
                step,
                arguments,
                os.environ.get("KFP_RUN_ID") or "by-hand",
                os.environ.get("KFP_POD_NAME", ""),
                os.environ.get("KFP_POD_UID", ""),
                inputs_hash(arguments),
            )
            inherited = _inherited(settings)
            launcher = _Launcher(KubernetesApi.connect(patience), launched, settings, inherited, patience)
            launcher.run()

    return exit_code(step, work)


def _checked(step: str, argv: Sequence[str], settings: JobSettings) -> list[str]:
    """The arguments with the configuration as JSON, after all checks that need no other machine.

    Raises:
        AutoFormerError: several machines cannot run the step, or not with this configuration.
    """
    if step not in SHARED_STEPS:
        raise AutoFormerError(f"one process does this step; a job on several machines is for {', '.join(SHARED_STEPS)}")
    arguments = pairs(argv)
    overrides = [value for name, value in arguments if name == "--set"]
    source = dict(arguments).get("--config")
    if source is None:
        raise AutoFormerError("the following arguments are required: --config; --help lists the arguments")
    config = load_config(source, overrides, [step])
    check_batch_split(step, config, settings.nodes * settings.processes)
    others = [word for name, value in arguments if name not in ("--config", "--set") for word in (name, value)]
    return ["--config", config.step_json(step), *others]


def _inherited(settings: JobSettings) -> dict[str, str]:
    """The environment of the job's pods, with a work folder on the volume that all pods mount.

    Raises:
        AutoFormerError: an address contains a password, which must not be in a job's manifest.
    """
    secret = {variable.env for variable in settings.secret_env}
    inherited = {name: os.environ[name] for name in PASSED if os.environ.get(name) and name not in secret}
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
        self._to_cancel: str | None = None  # the job to delete when this process is stopped

    def run(self) -> None:
        name = self._running() or self._new()
        with self._cancelled_with_us(name):
            follow_job(self.cluster, name, self.launched.step, self.patience)
        self._to_cancel = None  # the finished job is kept, in case its results must be fetched again
        with delay_signals():
            self._job_folder(name).fetch_outputs(self.launched.argv)

    def _job_folder(self, name: str) -> JobFolder:
        return JobFolder.of_job(self.settings, name)

    def _attempts(self) -> list[Object]:
        return sorted(self.cluster.jobs(self.launched.labels(self.settings)), key=_attempt)

    def _running(self) -> str | None:
        """Take over an earlier launcher's job that is running, or has finished with its results."""
        newest = next(reversed(self._attempts()), None)
        if newest is None or newest["metadata"].get("deletionTimestamp") or condition(newest, "Failed"):
            return None
        name: str = newest["metadata"]["name"]
        if condition(newest, "Complete") and not self._job_folder(name).has_outputs(self.launched.argv):
            return None
        self._take_over(name)
        return name

    def _take_over(self, name: str) -> None:
        """Make this pod the job's owner, with which Kubernetes deletes the job."""
        print_line(f"{self.launched.step}: continues with the job {name}")
        if self.launched.pod_uid:
            self.cluster.patch(name, {"metadata": {"ownerReferences": owners(self.launched)}})

    def _new(self) -> str:
        """Delete the former attempts, and create the next."""
        former = self._attempts()
        self._remove([job["metadata"]["name"] for job in former])
        attempt = 1 + max((_attempt(job) for job in former), default=0)
        while self._job_folder(self.launched.name(self.settings, attempt)).closed:
            attempt += 1
        name = self.launched.name(self.settings, attempt)
        folder = self._job_folder(name)
        arguments = folder.put_inputs(self.launched.argv)
        job = manifest(self.launched, self.settings, attempt, folder.root, arguments, self.environment)
        with self._cancelled_with_us(name), delay_signals():
            if self.cluster.create(job) is None:
                self._take_over(name)  # an earlier request created it, and its answer was lost
            else:
                machines = f"{quantity(self.settings.nodes, 'machine')} with {quantity(self.settings.gpus, 'GPU')} each"
                print_line(f"{self.launched.step}: launched the job {name} on {machines}")
        return name

    def _remove(self, names: Sequence[str]) -> None:
        """Delete jobs that have ended, and wait until they are gone: two jobs must not write the same checkpoints.

        JobSets are not deleted, since Trainer would create them again. Each folder is marked as closed first, so that a
        launcher that starts in between does not reuse the job's name.
        """
        for name in names:
            self._job_folder(name).mark_closed()
            self.cluster.delete(name)
        for name in names:
            if self.cluster.get(name) is not None:
                print_line(f"{self.launched.step}: waits until the job {name} is gone")
            while self.cluster.get(name) is not None:
                time.sleep(self.patience.poll_seconds)

    def cancel_at_once(self) -> None:
        """Delete the job after a signal, immediately, because this pod may be killed a second later."""
        if self._to_cancel is not None:
            self.cluster.delete_at_once(self._to_cancel)

    @contextmanager
    def _cancelled_with_us(self, name: str) -> Iterator[None]:
        self._to_cancel = name
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
            raise AutoFormerError(f"{VARIABLE} is not set; it names the machines: docs/cluster.md")
    except AutoFormerError as error:
        return report_error("trainjob", error)
    return launch(step, arguments, settings)


if __name__ == "__main__":
    raise SystemExit(main())

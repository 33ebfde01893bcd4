"""The part of the Kubernetes API that a launcher needs, with retries during outages and one line per refusal."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from runtime.common.answers import PIECE_BYTES, pieces, whole
from runtime.common.console import print_line
from runtime.common.exit_codes import LOST, JobFailed
from runtime.common.retrying import doubling, retry, within
from runtime.kubernetes.job import CONTAINER, GROUP, PLURAL, POD_INDEX, POD_JOB, VERSION

RETRIED = (408, 410, 429, 500, 502, 503, 504)  # temporary statuses
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
MANIFESTS = "pipeline/manifests/training"
TIMEOUT_SECONDS = (10, 30)  # to connect, and between two parts of the answer
LINE_BYTES = 2**20  # kept of a line's end
LAST_SECONDS = (0.4, 0.5)  # the same, shortly before this process is killed
TRAINJOBS = f"{PLURAL}.{GROUP}"
WORKFLOWS = "workflows.argoproj.io"
_WITH_PODS = {"propagationPolicy": "Foreground"}
Object = dict[str, Any]


class Patience(NamedTuple):
    """Intervals and time limits of a launcher."""

    poll_seconds: float = 10.0  # between two requests for a job's state
    pause_seconds: float = 0.5  # before the first retry of a request; doubled up to poll_seconds, with jitter
    outage_seconds: float = 900.0  # maximum outage of the API
    silent_seconds: float = 60.0  # without a log line, after which the log is requested again
    drain_seconds: float = 20.0  # for the last lines of a log, and for the deletion of a job


PATIENCE = Patience()


class RefusedError(Exception):
    """The API refuses a request; a retry is useless."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubernetesApi:
    """The TrainJobs of a namespace, their pods, events and logs.

    Objects are the parsed JSON of the API. The client's own models would refuse a field that a later Kubernetes leaves
    out.
    """

    def __init__(self, configuration: Any, namespace: str, patience: Patience) -> None:
        from kubernetes import client

        api_client = client.ApiClient(configuration)
        self._jobs, self._core = client.CustomObjectsApi(api_client), client.CoreV1Api(api_client)
        # A separate client for `delete_at_once`: a signal may come while the other one holds its locks.
        self._last_jobs = client.CustomObjectsApi(client.ApiClient(configuration))
        self.namespace, self._patience = namespace, patience
        self._kind = (GROUP, VERSION, namespace, PLURAL)

    @classmethod
    def connect(cls, patience: Patience, namespace: str = "") -> "KubernetesApi":
        """Connect to the cluster of this pod, or of `KUBECONFIG`; by default in the namespace of pod or context.

        Raises:
            AutoFormerError: there is no cluster, or no namespace.
        """
        from kubernetes import client, config

        configuration = client.Configuration()
        try:
            if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise AutoFormerError(
                f"no cluster to launch a job in ({error}); run it in a pod, or set KUBECONFIG"
            ) from None
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
            file = os.environ.get("KUBECONFIG", "~/.kube/config")
            raise AutoFormerError(
                f"{file}: not a configuration of kubectl ({type(error).__name__}); correct it, or set KUBECONFIG"
            ) from None
        configuration.retries = False  # `_request` retries, and reports it
        return cls(configuration, namespace or _namespace(), patience)

    def create(self, manifest: Object) -> Object | None:
        """Create a job; None if one of its name exists."""
        return self._request("create", self._jobs.create_namespaced_custom_object, *self._kind, manifest, none_for=409)

    def get(self, name: str) -> Object | None:
        """The job of that name; None if there is none."""
        return self._request("get", self._jobs.get_namespaced_custom_object, *self._kind, name, none_for=404)

    def jobs(self, labels: Mapping[str, str]) -> list[Object]:
        """The jobs with these labels."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        call = self._jobs.list_namespaced_custom_object
        return list(self._request("list", call, *self._kind, label_selector=selector)["items"])

    def patch(self, name: str, change: Object) -> None:
        """Merge `change` into a job, if it still exists."""
        self._request("patch", self._jobs.patch_namespaced_custom_object, *self._kind, name, change, none_for=404)

    def delete(self, name: str) -> None:
        """Delete a job with its pods, if it still exists."""
        call = self._jobs.delete_namespaced_custom_object
        self._request("delete", call, *self._kind, name, body=_WITH_PODS, none_for=404)

    def delete_at_once(self, name: str) -> None:
        """Request a job's deletion once, within a second, and ignore the answer. For signal handlers."""
        with contextlib.suppress(OSError, RefusedError), _translate_errors():
            call = self._last_jobs.delete_namespaced_custom_object
            call(*self._kind, name, body=_WITH_PODS, _preload_content=False, _request_timeout=LAST_SECONDS)

    def pods(self, job: str) -> list[Object]:
        """The pods of a job, oldest first."""
        call = self._core.list_namespaced_pod
        pods = self._request("list", call, self.namespace, label_selector=f"{POD_JOB}={job}", resource="pods")["items"]
        return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def events(self, about: str) -> list[str]:
        """The events about the object of that name, one line each, oldest first."""
        call, selector = self._core.list_namespaced_event, f"involvedObject.name={about}"
        events = self._request("list", call, self.namespace, field_selector=selector, resource="events")["items"]
        events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")))
        return [f"{event.get('type')} {event.get('reason')}: {event.get('message')}" for event in events]

    def log(self, pod: str, follow: bool = False, container: str = CONTAINER, **options: int | None) -> Iterator[str]:
        """The lines of a pod's log, each with its time in front.

        Args:
            follow: yield lines as they are written, without an unfinished last line.
            options: `since_seconds`, `tail_lines`.

        Raises:
            RefusedError: 404 if the pod does not exist.
            EndlessAnswerError, SlowAnswerError: without `follow`, as of `pieces`.
            OSError: the connection broke, or no line has come for `silent_seconds`.
        """
        call, rest = self._core.read_namespaced_pod_log, b""
        timeout = (TIMEOUT_SECONDS[0], self._patience.silent_seconds)
        arguments = {"container": container, "timestamps": True, "_request_timeout": timeout, **options}
        arguments |= {"follow": True} if follow else {}
        with _translate_errors():
            with contextlib.closing(call(pod, self.namespace, _preload_content=False, **arguments)) as log:
                if follow:  # as long as the pod runs
                    parts = iter(partial(log.read1, PIECE_BYTES), b"")
                else:
                    parts = pieces(log.read1, "the Kubernetes API", BOUNDS.log_bytes)
                for part in parts:
                    *lines, rest = (rest + part).split(b"\n")
                    rest = rest[-LINE_BYTES:]
                    yield from filter(None, (line.decode(errors="replace") for line in lines))
                if rest and not follow:
                    yield rest.decode(errors="replace")

    def has_workflow(self, name: str) -> bool:
        """Whether the namespace has the Argo workflow of that name."""
        call = self._workflows
        return self._request("get", call, f"/{name}", resource=WORKFLOWS, none_for=404) is not None

    def labels_of_workflows(self, label: str) -> list[str]:
        """The values of a label of some of the namespace's Argo workflows."""
        some = [("labelSelector", label), ("limit", 5)]
        answer = self._request("list", self._workflows, "", resource=WORKFLOWS, query_params=some)
        found = answer["items"] or []  # null if there is none
        return [each["metadata"]["labels"][label] for each in found]

    def _workflows(self, name: str, **options: Any) -> Any:
        """A request for workflows, without their content, which can have a megabyte."""
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflows{name}"
        kind = "PartialObjectMetadata" if name else "PartialObjectMetadataList"
        accept = {"Accept": f"application/json;as={kind};g=meta.k8s.io;v=v1"}
        return self._core.api_client.call_api(
            path, "GET", header_params=accept, auth_settings=["BearerToken"], _return_http_data_only=True, **options
        )

    def hurry(self) -> None:
        """Shorten the maximum outage from now on: this process is being stopped."""
        self._patience = self._patience._replace(outage_seconds=self._patience.drain_seconds)

    def _request(
        self, verb: str, call: Callable[..., Any], *arguments: Any,
        resource: str = TRAINJOBS, none_for: int | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """The parsed answer to a request, or None if its status is `none_for`.

        Raises:
            AutoFormerError: the API refuses it.
            JobFailed: the API has not answered for `outage_seconds`.
        """
        reported = False

        def attempt() -> Any:
            with _translate_errors():
                answer = call(*arguments, **options, _preload_content=False, _request_timeout=TIMEOUT_SECONDS)
                return json.loads(whole(answer.read1, "the Kubernetes API"))

        def report(error: OSError, failures: int) -> None:
            nonlocal reported
            if failures == 2:  # do not report a single failure
                print_line(f"the Kubernetes API does not answer ({error}); asking again", sys.stderr)
                reported = True

        patience = self._patience
        pauses = doubling(patience.pause_seconds, (0.5, 1.5), max(patience.poll_seconds, patience.pause_seconds))
        try:
            answer = retry(attempt, OSError, within(patience.outage_seconds, pauses), report)
        except OSError as error:
            raise JobFailed(
                f"the Kubernetes API does not answer ({error}); the job continues without this process; the same "
                "command follows it again",
                LOST,
            ) from None
        except RefusedError as refused:
            if refused.status == none_for:
                return None
            raise self._refusal(refused, verb, resource) from None
        if reported:
            print_line("the Kubernetes API answers again", sys.stderr)
        return answer

    def _refusal(self, refused: RefusedError, verb: str, resource: str) -> AutoFormerError:
        where = f"{resource} in namespace {self.namespace}"
        if refused.status == 403 and "admission webhook" not in str(refused):
            return AutoFormerError(
                f"not allowed to {verb} {where}; apply the Role and the RoleBinding of {MANIFESTS}: {refused}"
            )
        if refused.status == 401:
            return AutoFormerError(
                f"the cluster does not recognise who wants to {verb} {where}: {refused}; renew the token"
            )
        if refused.status == 404:
            return AutoFormerError(f"the cluster has no {where}; install Kubeflow Trainer, and apply {MANIFESTS}")
        return AutoFormerError(f"the cluster refuses to {verb} {where}: {refused}")


def index_of(pod: Object) -> int:
    """The index of a pod's machine in the job, from 0."""
    marks = {**pod["metadata"].get("annotations", {}), **pod["metadata"].get("labels", {})}
    return int(marks.get(POD_INDEX, 0))


def container_state(pod: Object) -> Object:
    """The state of a pod's container: {"running" | "waiting" | "terminated": …}, empty if unknown."""
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status["name"] == CONTAINER:
            return dict(status.get("state") or {})
    return {}


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise `RefusedError` for a refusal, and `OSError` with a short message for a temporary failure."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        message = _message(error)
        if error.status and error.status not in RETRIED:
            raise RefusedError(error.status, message) from None
        raise ConnectionError(f"{error.status} {message}" if error.status else message) from None
    except (HTTPError, OSError, ValueError) as error:
        raise ConnectionError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _message(error: Any) -> str:
    """The message in the API's Status object."""
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        return str(error.reason)


def _namespace() -> str:
    if os.environ.get("KFP_NAMESPACE"):
        return os.environ["KFP_NAMESPACE"]
    if Path(NAMESPACE_FILE).is_file():
        return Path(NAMESPACE_FILE).read_text(encoding="utf-8").strip()
    from kubernetes import config

    try:
        return str(config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))[1]["context"]["namespace"])
    except (config.ConfigException, OSError, KeyError, TypeError):
        raise AutoFormerError("in which namespace? set KFP_NAMESPACE") from None

"""The Kubernetes API as far as a launcher needs it: repetitions where it does not answer, one line where it refuses."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autoformer.errors import AutoFormerError
from runtime.common.console import print_line
from runtime.common.exit_codes import LOST, JobFailed
from runtime.common.retrying import doubling, retry, within
from runtime.kubernetes.job import GROUP, PLURAL, POD_JOB, VERSION

RETRIED = (408, 410, 429, 500, 502, 503, 504)  # answers that another time may be others
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
MANIFESTS = "pipeline/manifests/training"
TIMEOUT_SECONDS = (10, 30)  # to connect, and to hear something
LAST_SECONDS = (0.4, 0.5)  # the same for a process that is about to be killed
_WITH_PODS = {"propagationPolicy": "Foreground"}
Object = dict[str, Any]
Query = list[tuple[str, str]]


class Patience(NamedTuple):
    """How often is asked, and how long is waited."""

    poll_seconds: float = 10.0  # between two looks at a job
    pause_seconds: float = 0.5  # before the first repetition of a request; doubled up to poll_seconds, with jitter
    outage_seconds: float = 900.0  # that the API may be away
    silent_seconds: float = 60.0  # that a log may say nothing until it is asked for again
    drain_seconds: float = 20.0  # for the last lines of a log, and for the deletion of a job


PATIENCE = Patience()


class RefusedError(Exception):
    """An answer that no repetition changes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _AwayError(Exception):
    """No answer, or one that another time may be another. The message is the short reason."""


class KubernetesApi:
    """A namespace of a cluster.

    Args:
        api: a `kubernetes.client.ApiClient`.
        last: another one, which nothing but `delete_at_once` uses: a signal may come while locks of `api` are held.
        namespace: of jobs and pods.
        patience: how long an API that is away is waited for.
    """

    def __init__(self, api: Any, last: Any, namespace: str, patience: Patience) -> None:
        self._api, self._last, self.namespace, self._patience = api, last, namespace, patience

    @classmethod
    def connect(cls, patience: Patience) -> "KubernetesApi":
        """The cluster that this pod is in, or, at a desk, the one of `KUBECONFIG`.

        Raises:
            AutoFormerError: there is neither, or no namespace.
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
        configuration.retries = False  # requests are repeated here, and told of
        return cls(client.ApiClient(configuration), client.ApiClient(configuration), _namespace(), patience)

    def create(self, manifest: Object) -> Object | None:
        """Make a job; None where one of its name exists."""
        try:
            return self._json("POST", self._path(), "create", body=manifest)
        except RefusedError as refused:
            if refused.status == 409:
                return None
            raise self._line(refused, "create") from None

    def get(self, name: str) -> Object | None:
        """A job; None where there is none of that name."""
        return self._found("GET", self._path(name), "get")

    def jobs(self, labels: Mapping[str, str]) -> list[Object]:
        """The jobs that carry these labels."""
        return self._items(self._path(), "list", labels)

    def patch(self, name: str, change: Object) -> None:
        """Change fields of a job, where it is still there."""
        self._found("PATCH", self._path(name), "patch", body=change)

    def delete(self, name: str) -> None:
        """Delete a job with its pods, where it is still there."""
        self._found("DELETE", self._path(name), "delete", body=_WITH_PODS)

    def delete_at_once(self, name: str) -> None:
        """Ask once for a job's deletion, within a second, and look at no answer. For a signal's handler."""
        with contextlib.suppress(OSError, RefusedError):
            self._once("DELETE", self._path(name), [], _WITH_PODS, LAST_SECONDS, self._last)

    def pods(self, job: str) -> list[Object]:
        """The pods of a job, oldest first."""
        found = self._items(self._core("pods"), "list", {POD_JOB: job}, what="pods")
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def events(self, about: str) -> list[Object]:
        """The events about an object, by its name."""
        query = [("fieldSelector", f"involvedObject.name={about}")]
        return self._items(self._core("events"), "list", {}, what="events", query=query)

    def log(
        self, pod: str, container: str, since: str | None = None, tail: int | None = None, follow: bool = False
    ) -> Any:
        """A container's log as the open answer, each line with its time.

        Not repeated. Raises `RefusedError`, or `OSError`.
        """
        query = [("container", container), ("timestamps", "true")]
        query += [("sinceTime", since)] if since else []
        query += [("tailLines", str(tail))] if tail else []
        query += [("follow", "true")] if follow else []
        timeout = (TIMEOUT_SECONDS[0], self._patience.silent_seconds)
        return self._once("GET", f"{self._core('pods')}/{pod}/log", query, None, timeout)

    def hurry(self) -> None:
        """From now on an API that is away is waited for no longer than a process that was told to end may take."""
        self._patience = self._patience._replace(outage_seconds=self._patience.drain_seconds)

    # --- requests ---

    def _path(self, name: str = "") -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}{f'/{name}' if name else ''}"

    def _core(self, kind: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/{kind}"

    def _found(self, method: str, path: str, verb: str, body: Object | None = None) -> Object | None:
        try:
            return self._json(method, path, verb, body=body)
        except RefusedError as refused:
            if refused.status == 404:
                return None
            raise self._line(refused, verb) from None

    def _items(
        self,
        path: str,
        verb: str,
        labels: Mapping[str, str],
        what: str = f"{PLURAL}.{GROUP}",
        query: Query | None = None,
    ) -> list[Object]:
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        query = [*(query or []), *([("labelSelector", selector)] if selector else [])]
        try:
            return list(self._json("GET", path, verb, query)["items"])
        except RefusedError as refused:
            raise self._line(refused, verb, what) from None

    def _json(
        self,
        method: str,
        path: str,
        verb: str,
        query: Query | None = None,
        body: Object | None = None,
    ) -> Object:
        def ask() -> Object:
            answer: Object = json.loads(self._once(method, path, query or [], body, TIMEOUT_SECONDS).data)
            return answer

        return self._repeated(ask)

    def _repeated(self, ask: Callable[[], Object]) -> Object:
        """What the API answers, if it does so within `outage_seconds`."""
        patience, told = self._patience, False

        def tell(away: _AwayError, failures: int) -> None:
            nonlocal told
            if failures == 2:  # a single blip is not worth a line
                print_line(f"the Kubernetes API does not answer ({away}); asking again", sys.stderr)
                told = True

        pauses = doubling(patience.pause_seconds, (0.5, 1.5), max(patience.poll_seconds, patience.pause_seconds))
        try:
            answer = retry(lambda: _answered(ask), _AwayError, within(patience.outage_seconds, pauses), tell)
        except _AwayError as away:
            raise JobFailed(
                f"the Kubernetes API does not answer ({away}); the job goes on without this process, and the "
                "same command follows it again",
                LOST,
            ) from None
        if told:
            print_line("the Kubernetes API answers again", sys.stderr)
        return answer

    def _once(
        self, method: str, path: str, query: Query, body: Object | None, timeout: tuple[float, float], api: Any = None
    ) -> Any:
        """One request. Raises `RefusedError` for an answer that is none, `OSError` where there is no answer."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            return (api or self._api).call_api(
                path,
                method,
                query_params=query,
                header_params={"Accept": "application/json", "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeout,
            )
        except HTTPError as error:
            raise ConnectionError(str(error)) from None
        except ApiException as error:
            if not error.status:
                raise ConnectionError(error.reason) from None
            raise RefusedError(error.status, _message(error)) from None

    def _line(self, refused: RefusedError, verb: str, what: str = f"{PLURAL}.{GROUP}") -> AutoFormerError:
        where = f"{what} in namespace {self.namespace}"
        if refused.status == 403 and "admission webhook" not in str(refused):
            return AutoFormerError(
                f"not allowed to {verb} {where}; apply the Role and the RoleBinding of {MANIFESTS}: {refused}"
            )
        if refused.status == 401:
            return AutoFormerError(f"the cluster does not know who asks to {verb} {where}: {refused}; renew the token")
        if refused.status == 404:
            return AutoFormerError(f"the cluster has no {where}; install Kubeflow Trainer, and apply {MANIFESTS}")
        return AutoFormerError(f"the cluster refuses to {verb} {where}: {refused}")


def _answered(ask: Callable[[], Object]) -> Object:
    """The answer of one request. Raises `_AwayError`, and `RefusedError` for what no repetition changes."""
    try:
        return ask()
    except (OSError, ValueError) as error:
        raise _AwayError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    except RefusedError as refused:
        if refused.status not in RETRIED:
            raise
        raise _AwayError(f"{refused.status} {refused}") from None


def _message(error: Any) -> str:
    """What the API says of its refusal: the message of its Status."""
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

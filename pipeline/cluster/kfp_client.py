"""`kfp.Client` with time limits and retries, with one line for each error, and without hidden files or logins."""

import contextlib
import json
import os
import re
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import kfp_server_api as api
import urllib3
from kfp import Client
from urllib3 import exceptions

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from pipeline.cluster.kfp_access import (
    ENDED,
    OLDEST,
    MissingError,
    NoAnswerError,
    TakenError,
    address,
    bounded,
    server_message,
    token,
)
from pipeline.cluster.workflow import Workflow
from runtime.common.answers import close_unread, pieces

TIMEOUT_SECONDS = (10, 60)  # to connect, and between two parts of the answer
RETRIES = 3  # for requests that create nothing
RETRY_SECONDS = 0.3  # before the first retry; doubled for each later one
KEPT_LINES = 200  # of a pod's log
LOG_PIECES = 1024  # of its end; a piece may be a line only
_REFUSED_UPLOAD = "Failed to create a pipeline version"  # with 400, for any reason
_FORWARD = "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
Answer = TypeVar("Answer")


class KfpClient(Client):
    """A KFP server (API v2beta1) and the namespace of its runs. Every error is an `AutoFormerError`.

    `kfp.Client` alone sets no time limit, takes a web page for an empty answer, reads ~/.config/kfp, which may hold
    another server's namespace and cookies, writes into it, and logs in to Google by variables of the environment.

    Args:
        host: address of the UI, which forwards API requests, or of the API itself.
        namespace: the user's profile on a multi-user server; ignored by a single-user server.

    Raises:
        AutoFormerError: nothing answers, the server is not KFP, or it refuses the token.
    """

    def __init__(self, host: str, namespace: str = "") -> None:
        self.host, self.namespace = address(host), ""
        self.wanted_namespace, self.pod_namespace = namespace, namespace or "kubeflow"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "only works with v2.0.0-beta.2 and later"
            super().__init__(self.host)
        self._api = self.runs.api_client
        self._call, self._api.call_api = self._api.call_api, self._checked_call  # for all methods
        close_unread()
        pool = self._api.rest_client.pool_manager
        pool.request = bounded(pool.request, self.host, RETRIES)
        try:
            health = self.healthzs.healthz_service_get_healthz()
        except MissingError:
            version = self.version()
            raise AutoFormerError(
                f"{self.host}: KFP {version[0]}.{version[1]}, without the API v2beta1; "
                f"{OLDEST[0]}.{OLDEST[1]} or later is needed"
                if version
                else f"{self.host}: a server, but no KFP API: /apis/v2beta1/healthz is not there (404)"
            ) from None
        if health.multi_user and not namespace:
            raise AutoFormerError(f"{self.host}: several users share this server; name your namespace, NAMESPACE=…")
        self.namespace = namespace if health.multi_user else ""

    def _load_config(self, *_: Any) -> api.Configuration:
        """Proxy, certificates, token and retries."""
        configuration = api.Configuration(host=self.host)
        configuration.retries = urllib3.Retry(
            total=10, connect=RETRIES, read=RETRIES, status=RETRIES, redirect=5, other=0,
            backoff_factor=RETRY_SECONDS, status_forcelist=(429, 502, 503, 504), allowed_methods=("GET",),
            raise_on_status=False, respect_retry_after_header=False,
        )  # fmt: skip
        configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
        parts = urlsplit(self.host)
        if not proxy_bypass(parts.hostname or ""):
            configuration.proxy = getproxies().get(parts.scheme)
        if token() is not None:
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.api_key["authorization"] = ""
            # Read again for each request: a projected token is replaced every hour.
            configuration.refresh_api_key_hook = lambda own: own.api_key.update(authorization=token())
        return configuration

    def _load_context_setting_or_default(self) -> None:
        self._context_setting = {"namespace": "unused"}  # otherwise the constructor would request it from the server

    def get_user_namespace(self) -> str:
        return self.namespace

    def version(self) -> tuple[int, int] | None:
        """Major and minor version; None if the server does not report it."""
        try:
            health = self._get_v1("healthz")
        except AutoFormerError:
            return None
        # The UI's port is answered by its front end, which uses other names.
        tag = health.get("tag_name") or health.get("apiServerTagName") or ""
        numbers = re.match(r"v?(\d+)\.(\d+)", str(tag))
        return (int(numbers[1]), int(numbers[2])) if numbers else None

    def upload(self, name: str, about: str, version: str, package: Path, description: str) -> tuple[Any, bool]:
        """Upload the package as a version of the pipeline `name`; return the version, and whether it is new.

        Args:
            about: the description of a pipeline that is created.
            description: of the version.
        """
        namespace = self.namespace or None

        def create_pipeline() -> Any:  # kfp.Client can create a pipeline only together with a version
            body = self.api_models.V2beta1Pipeline(name=name, display_name=name, description=about, namespace=namespace)
            return self.pipelines.pipeline_service_create_pipeline(body)

        def find() -> Any:
            return self.find("pipeline_versions", version, pipeline_id=pipeline)

        pipeline = _create(lambda: self.find("pipelines", name, namespace=namespace) or create_pipeline()).pipeline_id
        arguments = {"pipeline_id": pipeline, "description": description}
        known = find()
        made = known or _create(lambda: find() or self.upload_pipeline_version(str(package), version, **arguments))
        return made, known is None

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, created if missing."""
        return str(_create(lambda: self.find("experiments", name) or self.create_experiment(name)).experiment_id)

    def start(self, name: str, arguments: dict[str, Any]) -> str:
        """Start a run with arguments of `run_pipeline`; returns its id.

        The name must be unique: if the server does not confirm the creation, the run is found by its name.
        """

        def find() -> Any:
            return self.find("runs", name, experiment_id=arguments["experiment_id"])

        return str(_create(lambda: find() or self.run_pipeline(job_name=name, **arguments)).run_id)

    def workflow(self, run_id: str) -> Workflow | None:
        """The Argo workflow of a run; None if it has none yet, or the server does not return it."""
        try:
            run = self._get_v1(f"runs/{quote(run_id, safe='')}")
            return Workflow(json.loads(run["pipeline_runtime"]["workflow_manifest"]))
        except (AutoFormerError, KeyError, TypeError, ValueError):
            return None

    def log(self, run_id: str, pod: str, namespace: str) -> list[str]:
        """The last lines of a pod's log, from the UI or the API; empty if neither has it."""
        by_ui = [("podname", pod), ("runid", run_id), ("podnamespace", namespace)]
        by_api = f"/apis/v1alpha1/runs/{quote(run_id, safe='')}/nodes/{quote(pod, safe='')}/log"
        for path, query in (("/k8s/pod/logs", by_ui), (by_api, None)):
            with contextlib.suppress(api.ApiException, exceptions.HTTPError, OSError, AutoFormerError):
                response = self._call(path, "GET", query_params=query, auth_settings=["Bearer"],
                                      _return_http_data_only=True, _preload_content=False,
                                      _request_timeout=TIMEOUT_SECONDS)  # fmt: skip
                if "html" not in response.headers.get("Content-Type", ""):  # the UI's answer to an unknown path
                    last = deque(pieces(response.read1, self.host, BOUNDS.log_bytes), LOG_PIECES)
                    return b"".join(last).decode(errors="replace").splitlines(keepends=True)[-KEPT_LINES:]
        return []

    def recurring(self, name: str, experiment: str) -> list[str]:
        """The ids of the recurring runs of that name, in the experiment of that name."""
        parent = self.find("experiments", experiment)
        runs = self.list_named("recurring_runs", name, experiment_id=parent.experiment_id) if parent else []
        return [str(run.recurring_run_id) for run in runs]

    def recurring_names(self, experiment: str) -> list[str]:
        """The names of all recurring runs of an experiment."""
        parent = self.find("experiments", experiment)
        answer = self.list_recurring_runs(page_size=100, experiment_id=parent.experiment_id) if parent else None
        return sorted({str(run.display_name) for run in (answer and answer.recurring_runs) or []})

    def end_recurring(self, recurring_run_id: str) -> str | None:
        """Delete a recurring run, or pause it where a run of it is at work, whose id is returned.

        A deletion would stop that run: Kubernetes deletes its workflow, too, and KFP lists it as running for ever.
        """
        with contextlib.suppress(MissingError):
            self.disable_recurring_run(recurring_run_id)  # first: no further run starts
            wanted = {"operation": "EQUALS", "key": "recurring_run_id", "string_value": recurring_run_id}
            newest = {"page_size": 10, "sort_by": "created_at desc", "filter": json.dumps({"predicates": [wanted]})}
            runs = self.list_runs(**newest).runs or []
            at_work = [str(run.run_id) for run in runs if run.state not in ENDED]  # at first it has no state
            if at_work:
                return at_work[0]
            self.delete_recurring_run(recurring_run_id)
        return None

    def page(self, run_id: str) -> str:
        """The address of a run in the UI."""
        return f"{os.environ.get('KF_PIPELINES_UI_ENDPOINT', self.host).rstrip('/')}/#/runs/details/{run_id}"

    def list_named(self, kind: str, name: str, **where: Any) -> list[Any]:
        """The objects of that name, of a kind that `list_<kind>` lists."""
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        answer = getattr(self, f"list_{kind}")(filter=json.dumps({"predicates": [predicate]}), page_size=100, **where)
        return getattr(answer, kind) or []

    def find(self, kind: str, name: str, **where: Any) -> Any:
        return next(iter(self.list_named(kind, name, **where)), None)

    # --- requests ---

    def _get_v1(self, path: str) -> Any:
        """The JSON object at a path of the API v1beta1, which kfp.Client does not support."""
        options = {"response_type": "object", "auth_settings": ["Bearer"], "_return_http_data_only": True}
        return self._api.call_api(f"/apis/v1beta1/{path}", "GET", **options)

    def _checked_call(self, *arguments: Any, **options: Any) -> Any:
        """Send a request with a time limit, and check that KFP answers. No message contains the token."""
        try:
            answer = self._call(*arguments, **(options | {"_request_timeout": TIMEOUT_SECONDS}))
        except api.ApiException as error:
            raise self._refusal(error) from None
        except exceptions.HTTPError as error:
            raise self._no_answer(error) from None
        except AutoFormerError:  # the token no longer exists
            raise
        except (
            UnicodeDecodeError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ):
            raise self._foreign() from None
        text = str(self._api.last_response.data)
        if text.lstrip().startswith("<"):
            raise AutoFormerError(
                f"{self.host}: a web page answers, not KFP's API: a login page, or the address of something else"
            )
        try:
            is_object = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise self._foreign()
        return answer

    def _foreign(self) -> AutoFormerError:
        return AutoFormerError(f"{self.host}: the answer is not one of KFP's API v2beta1")

    def _refusal(self, error: api.ApiException) -> AutoFormerError:
        status, message = error.status, server_message(error.body, error.reason)
        where = f" in the namespace '{self.namespace}'" if self.namespace else ""
        if status in (401, 403) and self._api.configuration.refresh_api_key_hook is None:
            advice = "put one into KFP_TOKEN, or the path of one into KFP_TOKEN_FILE"
            return AutoFormerError(f"{self.host} wants a token ({status}); {advice}: {message}")
        if status == 401:
            advice = "it may have expired, or be for another server"
            return AutoFormerError(f"{self.host} refuses the token (401); {advice}: {message}")
        if status == 403:
            return AutoFormerError(f"{self.host} does not let this token do that{where} (403): {message}")
        if status == 404:
            return MissingError(f"{self.host}: {message}")
        if status == 400 and message == _REFUSED_UPLOAD:
            why = "KFP gives no reason; this token may lack the permission to create pipelineversions"
            return AutoFormerError(f"{self.host} refuses the package{where} (400); {why}, else its log has it")
        if status == 409:
            return TakenError(f"{self.host}: {message}")
        kind = NoAnswerError if (status or 0) >= 500 or status == 429 else AutoFormerError
        return kind(f"{self.host} answers {status}: {message}")

    def _no_answer(self, error: exceptions.HTTPError) -> AutoFormerError:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, exceptions.SSLError):
            short = re.search(r"\[SSL: \w+\] (.+?) \(_ssl", str(reason))
            return AutoFormerError(
                f"{self.host}: TLS fails ({short[1] if short else reason}); "
                "SSL_CERT_FILE names the certificate of its authority, and http:// is for a server without TLS"
            )
        if isinstance(reason, exceptions.NameResolutionError):
            return NoAnswerError(f"{self.host}: no host of that name is known here")
        if isinstance(reason, exceptions.NewConnectionError | exceptions.ConnectTimeoutError):
            return NoAnswerError(f"{self.host}: nothing answers there; is the server up, and `{_FORWARD}` running?")
        if isinstance(reason, exceptions.ReadTimeoutError):
            return NoAnswerError(f"{self.host}: no answer within {TIMEOUT_SECONDS[1]:g} s")
        if isinstance(reason, exceptions.ProtocolError | exceptions.ResponseError):
            return NoAnswerError(f"{self.host}: the connection broke off")
        return AutoFormerError(f"{self.host}: cannot be asked ({type(reason).__name__})")


def _create(attempt: Callable[[], Answer]) -> Answer:
    """Find or create an object, without the link that kfp.Client prints.

    After a broken connection a second attempt finds the object if the first has created it.
    """
    with contextlib.redirect_stdout(None):
        try:
            return attempt()
        except (NoAnswerError, TakenError):
            return attempt()

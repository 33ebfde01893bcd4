"""A KFP API server (v2beta1), asked through the client that KFP generates for it. What it refuses is one line.

`kfp.Client` stands on the same generated client, and is not used: it asks a server that is not there five times, with a
traceback each, sets no time limit, takes a web page for an empty answer, waits for ever for a run that was terminated,
and adds a namespace and cookies from a file in the home folder.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from urllib3 import exceptions

from autoformer.errors import AutoFormerError
from pipeline.cluster.kfp_access import address, configuration, said, token

OLDEST = (2, 17)  # the KFP whose SDK compiles our package
TIMEOUT_SECONDS = (10, 60)  # to connect, and to wait for a part of the answer
_FOREIGN = "the answer is not one of KFP's API v2beta1"
_FORWARD = "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"


class NoAnswerError(AutoFormerError):
    """The server is not there, or not now."""


class MissingError(AutoFormerError):
    """The server knows no such thing (404)."""


class TakenError(AutoFormerError):
    """The server has one of that name already (409)."""


class Version(NamedTuple):
    """A package that a server has."""

    pipeline_id: str
    version_id: str
    is_new: bool


class Start(NamedTuple):
    """What is started: a run, or each of a recurring one."""

    version: Version
    experiment: str  # its id
    parameters: dict[str, Any]
    service_account: str  # of its pods; empty for KFP's own

    def body(self) -> dict[str, Any]:
        """What the models of a run and of a recurring run have in common."""
        import kfp_server_api as api

        return {
            "experiment_id": self.experiment,
            "service_account": self.service_account or None,
            "runtime_config": api.V2beta1RuntimeConfig(parameters=self.parameters),
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(
                pipeline_id=self.version.pipeline_id, pipeline_version_id=self.version.version_id
            ),
        }


class Server:
    """A KFP server and the place in it that runs belong to."""

    def __init__(self, host: str, namespace: str = "") -> None:
        """Asks the server whether it is one.

        Args:
            host: its address; of the UI, which hands the API on, or of the API itself.
            namespace: of the user's profile, where several share the server; a server of one user has none.

        Raises:
            AutoFormerError: one line, where nothing answers, it is no KFP, or it refuses the token.
        """
        import kfp_server_api as api

        self.host = address(host)
        self._ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT", self.host).rstrip("/")
        self._given = token() is not None
        client = api.ApiClient(configuration(self.host))
        self._client = client
        self._pipelines, self._uploads = api.PipelineServiceApi(client), api.PipelineUploadServiceApi(client)
        self._experiments, self._runs = api.ExperimentServiceApi(client), api.RunServiceApi(client)
        self._recurring = api.RecurringRunServiceApi(client)
        try:
            health = self._ask(api.HealthzServiceApi(client).healthz_service_get_healthz)
        except MissingError:
            raise self._no_kfp() from None
        if health.multi_user and not namespace:
            raise AutoFormerError(f"{self.host}: several users share this server; name your namespace, NAMESPACE=…")
        self.namespace = namespace if health.multi_user else ""
        self.pods = namespace or "kubeflow"  # the Kubernetes namespace that those of a run are in

    def version(self) -> tuple[int, int] | None:
        """Major and minor version, where the server tells."""
        try:
            told = self._ask(self._client.call_api, "/apis/v1beta1/healthz", "GET", response_type="object",
                             auth_settings=["Bearer"], _return_http_data_only=True)  # fmt: skip
        except AutoFormerError:
            return None
        found = re.match(r"v?(\d+)\.(\d+)", str(told.get("tag_name", ""))) if isinstance(told, dict) else None
        return (int(found[1]), int(found[2])) if found else None

    def upload(self, name: str, version: str, package: Path, description: str) -> Version:
        """The package as a version of the pipeline `name`; a version of that name is used again."""
        pipeline = self._found_or_made(lambda: self._pipeline(name), lambda: self._make_pipeline(name)).pipeline_id
        listed = self._pipelines.pipeline_service_list_pipeline_versions

        def find() -> Any:
            found = self._ask(listed, pipeline, filter=_named(version)).pipeline_versions
            return found[0] if found else None

        def make() -> Any:
            upload = self._uploads.upload_pipeline_version
            return self._ask(upload, str(package), name=version, pipelineid=pipeline, description=description)

        known = find()
        made = known or self._found_or_made(find, make, look_first=False)
        return Version(pipeline, made.pipeline_version_id, known is None)

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is made where there is none of that name."""
        import kfp_server_api as api

        body = api.V2beta1Experiment(display_name=name, **self._place())
        create = self._experiments.experiment_service_create_experiment
        made = self._found_or_made(lambda: self._experiment(name), lambda: self._ask(create, body))
        return str(made.experiment_id)

    def start(self, name: str, start: Start) -> str:
        """Start a run; its id. Its name must be its own: by it a run is known whose creation nobody confirmed."""
        import kfp_server_api as api

        listed, create = self._runs.run_service_list_runs, self._runs.run_service_create_run

        def find() -> Any:
            found = self._ask(listed, experiment_id=start.experiment, filter=_named(name)).runs
            return found[0] if found else None

        body = api.V2beta1Run(display_name=name, **start.body())
        return str(self._found_or_made(find, lambda: self._ask(create, body), look_first=False).run_id)

    def run(self, run_id: str) -> Any:
        """What the server knows of a run: a `V2beta1Run`."""
        return self._ask(self._runs.run_service_get_run, run_id)

    def terminate(self, run_id: str) -> None:
        self._ask(self._runs.run_service_terminate_run, run_id)

    def scheduled(self, name: str, experiment: str) -> list[str]:
        """The ids of the recurring runs of that name, in the experiment of that name."""
        place = self._experiment(experiment)
        if place is None:
            return []
        listed = self._recurring.recurring_run_service_list_recurring_runs
        found = self._ask(listed, experiment_id=place.experiment_id, filter=_named(name))
        return [str(each.recurring_run_id) for each in found.recurring_runs or []]

    def schedule(self, name: str, start: Start, trigger: dict[str, Any]) -> str:
        """Make a recurring run; its id. One at a time, and what was missed is not made up for."""
        import kfp_server_api as api

        body = api.V2beta1RecurringRun(
            display_name=name, max_concurrency="1", mode="ENABLE", no_catchup=True, trigger=trigger,
            **self._place(), **start.body(),
        )  # fmt: skip
        return str(self._ask(self._recurring.recurring_run_service_create_recurring_run, body).recurring_run_id)

    def unschedule(self, recurring_run_id: str) -> None:
        """Delete a recurring run; the runs that it has started stay."""
        with contextlib.suppress(MissingError):
            self._ask(self._recurring.recurring_run_service_delete_recurring_run, recurring_run_id)

    def page(self, run_id: str) -> str:
        """Where the UI shows a run."""
        return f"{self._ui}/#/runs/details/{run_id}"

    def _pipeline(self, name: str) -> Any:
        found = self._ask(
            self._pipelines.pipeline_service_list_pipelines, filter=_named(name), **self._place()
        ).pipelines
        return found[0] if found else None

    def _experiment(self, name: str) -> Any:
        listed = self._experiments.experiment_service_list_experiments
        found = self._ask(listed, filter=_named(name), **self._place()).experiments
        return found[0] if found else None

    def _make_pipeline(self, name: str) -> Any:
        import kfp_server_api as api

        body = api.V2beta1Pipeline(name=name, display_name=name, **self._place())
        return self._ask(self._pipelines.pipeline_service_create_pipeline, body)

    def _place(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    def _found_or_made(self, find: Callable[[], Any], make: Callable[[], Any], look_first: bool = True) -> Any:
        """What `find` finds, else what `make` makes, once: after a broken connection it looks before it makes again."""
        found = find() if look_first else None
        for last in (False, True):
            if found is not None:
                return found
            try:
                return make()
            except (NoAnswerError, TakenError):
                if last:
                    raise
                found = find()
        return found

    def _ask(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call the generated client. Every refusal is an `AutoFormerError`, and holds no token."""
        from kfp_server_api import ApiException

        try:
            answer = call(*arguments, **named, _request_timeout=TIMEOUT_SECONDS)
        except ApiException as error:
            raise self._refusal(error) from None
        except exceptions.HTTPError as error:
            raise self._silence(error) from None
        except AutoFormerError:  # no token any more
            raise
        except (UnicodeDecodeError, ValueError, TypeError, AttributeError, KeyError):
            raise AutoFormerError(f"{self.host}: {_FOREIGN}") from None
        text = str(self._client.last_response.data)  # the client makes an empty answer of what it cannot read
        if text.lstrip().startswith("<"):
            raise AutoFormerError(
                f"{self.host}: a web page answers, not KFP's API: a login page, or the address of something else"
            )
        if not _is_object(text):
            raise AutoFormerError(f"{self.host}: {_FOREIGN}")
        return answer

    def _refusal(self, error: Any) -> AutoFormerError:
        told = said(error)
        if error.status in (401, 403):
            return AutoFormerError(f"{self.host} {self._denial(error.status)}: {told}")
        if error.status == 404:
            return MissingError(f"{self.host}: {told}")
        if error.status == 409:
            return TakenError(f"{self.host}: {told}")
        kind = NoAnswerError if (error.status or 0) >= 500 or error.status == 429 else AutoFormerError
        return kind(f"{self.host} answers {error.status}: {told}")

    def _denial(self, status: int) -> str:
        """401 is about who asks, 403 about what that one may do."""
        where = f" in the namespace '{self.namespace}'" if getattr(self, "namespace", "") else ""
        if not self._given:
            return f"wants a token ({status}); put one into KFP_TOKEN, or the path of one into KFP_TOKEN_FILE"
        if status == 401:
            return f"refuses the token{where} (401); it may have expired, or be for another server"
        return f"does not let this token do that{where} (403)"

    def _silence(self, error: exceptions.HTTPError) -> AutoFormerError:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, exceptions.SSLError):
            found = re.search(r"\[SSL: \w+\] (.+?) \(_ssl", str(reason))
            return AutoFormerError(
                f"{self.host}: TLS fails ({found[1] if found else reason}); "
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

    def _no_kfp(self) -> AutoFormerError:
        version = self.version()
        if version is None:
            return AutoFormerError(f"{self.host}: a server, but no KFP API: /apis/v2beta1/healthz is not there (404)")
        return AutoFormerError(
            f"{self.host}: KFP {version[0]}.{version[1]}, without the API v2beta1; "
            f"{OLDEST[0]}.{OLDEST[1]} or later is needed"
        )


def _named(name: str) -> str:
    """A filter for the things of one name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False

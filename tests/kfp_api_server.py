"""A KFP API server in this process: the real paths of v2beta1 over HTTP, and the backend's checks of a request.

Bodies are parsed into the models of KFP's generated API and written from them, packages into KFP's message
`PipelineSpec`. Paths, the form of errors, the check of a run's parameters and the rules for namespaces (one user: none;
several: one that the token may use) are the backend's.
"""

import contextlib
import json
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

import kfp_server_api as api
import yaml
from background_server import answering_in_background
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_answers import Answers
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

V2 = "/apis/v2beta1"
JSON = "application/json"
_FILTERED = ("display_name", "recurring_run_id")
_KINDS = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool}
_MODELS = api.ApiClient()  # reads and writes the models; asks nobody
# The backend's codes of gRPC, as its gateway turns them into those of HTTP.
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13}
Answer = tuple[int, Any]


class RefusedError(Exception):
    def __init__(self, status: int, message: str, is_upload: bool = False) -> None:
        super().__init__(message)
        self.status, self.is_upload = status, is_upload


class Fault(NamedTuple):
    """A fault of one request of this kind."""

    method: str
    path: str  # a regular expression
    what: Callable[["KfpServer", Request], Response]
    after: bool  # the request is carried out first, and its answer lost


class KfpServer:
    """The server's state."""

    def __init__(self) -> None:
        self.host = ""
        self.token: str | None = None  # that requests must have
        self.namespaces: set[str] = set()  # that it may use; empty: a server of one user
        self.old_version: str | None = None  # of a server whose v1 API reports it
        self.speaks_v2 = self.is_api = True
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        self.cookies: list[str | None] = []
        self.pipelines: dict[str, api.V2beta1Pipeline] = {}
        self.versions: dict[str, api.V2beta1PipelineVersion] = {}
        self.experiments: dict[str, api.V2beta1Experiment] = {}
        self.runs: dict[str, api.V2beta1Run] = {}
        self.recurring: dict[str, api.V2beta1RecurringRun] = {}
        self.story: list[Answers] = []  # the answers about a run, one for each request; the last one stays
        self.logs: dict[str, str] = {}  # by pod
        self.has_v1_runs = self.has_ui = True
        self.faults: list[Fault] = []
        self.terminated: list[str] = []
        self.without_workflow: list[str] = []  # runs
        self._lock = threading.RLock()
        self._polls = 0
        self._look: Answers | None = None
        rules = {
            ("GET", f"{V2}/healthz"): self._healthz,
            ("GET", "/apis/v1beta1/healthz"): self._old_healthz,
            ("GET", f"{V2}/pipelines"): self._list_pipelines,
            ("POST", f"{V2}/pipelines"): self._create_pipeline,
            ("POST", f"{V2}/pipelines/upload_version"): self._upload_version,
            ("GET", f"{V2}/pipelines/<pipeline_id>/versions"): self._list_versions,
            ("GET", f"{V2}/experiments"): self._list_experiments,
            ("POST", f"{V2}/experiments"): self._create_experiment,
            ("GET", f"{V2}/runs"): self._list_runs,
            ("POST", f"{V2}/runs"): self._create_run,
            ("GET", f"{V2}/runs/<run_id>"): self._get_run,
            ("GET", "/apis/v1beta1/runs/<run_id>"): self._get_v1_run,
            ("GET", "/apis/v1alpha1/runs/<run_id>/nodes/<node_id>/log"): self._api_log,
            ("GET", "/k8s/pod/logs"): self._ui_log,
            ("POST", f"{V2}/runs/<run_id>:terminate"): self._terminate_run,
            ("GET", f"{V2}/recurringruns"): self._list_recurring,
            ("POST", f"{V2}/recurringruns"): self._create_recurring,
            ("POST", f"{V2}/recurringruns/<recurring_run_id>:disable"): self._disable_recurring,
            ("DELETE", f"{V2}/recurringruns/<recurring_run_id>"): self._delete_recurring,
        }
        self._routes = Map([Rule(path, methods=[method], endpoint=call) for (method, path), call in rules.items()])

    # Faults

    def fail(self, method: str, path: str, what: Callable[..., Response], times: int = 1, after: bool = False) -> None:
        """Let the next `times` requests of this kind fail."""
        self.faults += [Fault(method, path, what, after)] * times

    def request_count(self, method: str, path: str) -> int:
        """Requests of this kind so far."""
        return sum(each == method and re.fullmatch(path, route) is not None for each, route in self.requests)

    @contextlib.contextmanager
    def serving(self, certificate: tuple[str, str] | None = None) -> Iterator["KfpServer"]:
        """Serve on a port of its own, over TLS with a certificate and its key."""
        server = make_server("127.0.0.1", 0, self._serve, threaded=True, ssl_context=certificate)
        server.daemon_threads = True
        server.log = lambda *_: None  # type: ignore[method-assign]
        self.host = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
        with answering_in_background(server):
            yield self

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        with self._lock:
            self.requests.append((request.method, request.path))
            self.authorizations.append(request.headers.get("Authorization"))
            self.cookies.append(request.headers.get("Cookie"))
            fault = next((each for each in self.faults if _hits(each, request)), None)
            if fault is not None:
                self.faults.remove(fault)
        if fault is None or fault.after:
            with self._lock:
                response = self._answer(request)
        if fault is not None:
            response = fault.what(self, request)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        try:
            call, values = self._routes.bind_to_environ(request.environ).match()
            if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
                raise RefusedError(401, "Request header error: the user identity cannot be authenticated")
            status, value = 200, call(request, **values)
        except HTTPException as error:
            status, value = int(error.code or 500), {"error": "Not Found", "code": 5, "message": "Not Found"}
        except RefusedError as refused:
            status, value = refused.status, _error(refused)
        if isinstance(value, str):
            return Response(value, status, content_type="text/plain")
        return Response(json.dumps(_MODELS.sanitize_for_serialization(value)), status, content_type=JSON)

    # The services

    def _healthz(self, request: Request) -> Any:
        if not self.speaks_v2:
            raise RefusedError(404, "Not Found")
        return {"multi_user": bool(self.namespaces), "pipeline_store": "database"}

    def _old_healthz(self, request: Request) -> Any:
        if self.old_version is None:
            raise RefusedError(404, "Not Found")
        tag = "tag_name" if self.is_api else "apiServerTagName"  # the UI answers for itself, with names of its own
        return {tag: self.old_version, "multi_user": bool(self.namespaces)}

    def _list_pipelines(self, request: Request) -> Any:
        self._check_namespace(request.args.get("namespace"))
        return {"pipelines": _filtered(request, self.pipelines.values())}

    def _create_pipeline(self, request: Request) -> Any:
        body = _read(request, "V2beta1Pipeline")
        self._check_namespace(body.namespace)
        if any(each.name == body.name for each in self.pipelines.values()):
            raise RefusedError(409, f"Already exist error: The name {body.name} already exist")
        body.pipeline_id, body.created_at = _id(), _now()
        self.pipelines[body.pipeline_id] = body
        return body

    def _upload_version(self, request: Request) -> Any:
        pipeline_id, name = request.args.get("pipelineid"), request.args.get("name")
        if pipeline_id not in self.pipelines or "uploadfile" not in request.files:
            raise RefusedError(400, "Failed to create a pipeline version", is_upload=True)
        if any(each.pipeline_id == pipeline_id and each.name == name for each in self.versions.values()):
            raise RefusedError(409, "Failed to create a pipeline version", is_upload=True)
        file = request.files["uploadfile"]
        try:
            if not str(file.filename).endswith((".yaml", ".zip", ".tar.gz")):
                raise ValueError("unexpected pipeline file format")
            spec = _package(file.read().decode())
        except (ValueError, json_format.ParseError) as error:
            raise RefusedError(400, f"Failed to read a pipeline spec file: {error}", is_upload=True) from None
        version = api.V2beta1PipelineVersion(
            pipeline_id=pipeline_id, pipeline_version_id=_id(), name=name, display_name=name, created_at=_now(),
            description=request.args.get("description"), pipeline_spec=spec,
        )  # fmt: skip
        self.versions[version.pipeline_version_id] = version
        return version

    def _list_versions(self, request: Request, pipeline_id: str) -> Any:
        versions = [each for each in self.versions.values() if each.pipeline_id == pipeline_id]
        return {"pipeline_versions": _filtered(request, versions)}

    def _list_experiments(self, request: Request) -> Any:
        self._check_namespace(request.args.get("namespace"))
        return {"experiments": _filtered(request, self.experiments.values())}

    def _create_experiment(self, request: Request) -> Any:
        body = _read(request, "V2beta1Experiment")
        self._check_namespace(body.namespace)
        body.experiment_id, body.created_at = _id(), _now()
        self.experiments[body.experiment_id] = body
        return body

    def _list_runs(self, request: Request) -> Any:
        parent = request.args.get("experiment_id")
        runs = [each for each in self.runs.values() if parent in (None, each.experiment_id)]
        return {"runs": _filtered(request, runs)}

    def _create_run(self, request: Request) -> Any:
        body = _read(request, "V2beta1Run")
        if not body.display_name:
            raise RefusedError(400, "The run name is empty. Please specify a valid name")
        self._check_reference(body)
        body.run_id, body.created_at, body.state = _id(), _now(), "PENDING"
        self.runs[body.run_id] = body
        return body

    def _get_run(self, request: Request, run_id: str) -> Any:
        run = self._known_run(run_id)
        if not self.story:
            return run
        self._look = self.story[min(self._polls, len(self.story) - 1)]
        self._polls += 1
        return self._look.v2 | {"run_id": run_id, "display_name": run.display_name}

    def _get_v1_run(self, request: Request, run_id: str) -> Any:
        if not self.has_v1_runs:
            raise RefusedError(404, "Not Found")
        self._known_run(run_id)
        return self._look.v1_text() if self._look else {"run": {"id": run_id}, "pipeline_runtime": {}}

    def _ui_log(self, request: Request) -> Any:
        if not self.has_ui or request.args["podname"] not in self.logs:
            raise RefusedError(404, "Could not get main container logs")
        return self.logs[request.args["podname"]]

    def _api_log(self, request: Request, run_id: str, node_id: str) -> Any:
        if node_id not in self.logs:
            raise RefusedError(500, "Failed to read logs", is_upload=True)
        return self.logs[node_id]

    def _terminate_run(self, request: Request, run_id: str) -> Any:
        self.terminated.append(self._known_run(run_id).run_id)
        return {}

    def _list_recurring(self, request: Request) -> Any:
        runs = [each for each in self.recurring.values() if each.experiment_id == request.args.get("experiment_id")]
        return {"recurringRuns": _filtered(request, runs)}

    def _create_recurring(self, request: Request) -> Any:
        body = _read(request, "V2beta1RecurringRun")
        self._check_reference(body)
        body.namespace = self.experiments[body.experiment_id].namespace
        self._check_namespace(body.namespace)
        if not 1 <= int(body.max_concurrency or 0) <= 10:
            raise RefusedError(400, "The max concurrency of the recurring run is out of range. Support 1-10")
        cron = body.trigger.cron_schedule
        if cron and not 5 <= len(cron.cron.split()) <= 6:  # five: seconds to months, as its parser has it
            raise RefusedError(400, "Schedule cron is not a supported format")
        if not cron and int(body.trigger.periodic_schedule.interval_second) < 1:
            raise RefusedError(400, "Found invalid period schedule interval")
        body.recurring_run_id, body.created_at = _id(), _now()
        self.recurring[body.recurring_run_id] = body
        return body

    def _disable_recurring(self, request: Request, recurring_run_id: str) -> Any:
        if recurring_run_id not in self.recurring:
            raise RefusedError(404, f"Job {recurring_run_id} not found")
        self.recurring[recurring_run_id].mode = "DISABLE"
        return {}

    def _delete_recurring(self, request: Request, recurring_run_id: str) -> Any:
        """Kubernetes then deletes the workflows of its runs, whose state in KFP stays as it was."""
        if self.recurring.pop(recurring_run_id, None) is None:
            raise RefusedError(404, f"Job {recurring_run_id} not found")
        of_it = [run.run_id for run in self.runs.values() if run.recurring_run_id == recurring_run_id]
        self.without_workflow += of_it
        return {}

    # The backend's checks

    def _known_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise RefusedError(404, f"Failed to get a run: ResourceNotFoundError: Run {run_id} not found")
        return self.runs[run_id]

    def _check_namespace(self, namespace: str | None) -> None:
        if not self.namespaces and namespace:
            raise RefusedError(400, "In single-user mode, the request shouldn't contain namespace")
        if self.namespaces and not namespace:
            raise RefusedError(400, "Namespace cannot be empty in multi-user mode")
        if self.namespaces and namespace not in self.namespaces:
            raise RefusedError(403, f"PermissionDenied: User 'me' is not authorized in namespace {namespace}")

    def _check_reference(self, body: Any) -> None:
        if body.experiment_id not in self.experiments:
            raise RefusedError(404, f"Experiment {body.experiment_id} not found")
        version = self.versions.get(body.pipeline_version_reference.pipeline_version_id)
        if version is None or version.pipeline_id != body.pipeline_version_reference.pipeline_id:
            raise RefusedError(404, "PipelineVersion not found")
        known = version.pipeline_spec["root"].get("inputDefinitions", {}).get("parameters", {})
        for name, value in (body.runtime_config.parameters or {}).items():
            if name not in known:
                raise RefusedError(400, f"parameter {name} is not an input of the pipeline")
            kind = _KINDS[known[name]["parameterType"]]
            if not isinstance(value, kind):  # type: ignore[arg-type]
                raise RefusedError(400, f"input parameter {name} requires type {known[name]['parameterType']}")


def status(code: int, body: str = "", content_type: str = JSON, **headers: str) -> Callable[..., Response]:
    return lambda server, request: Response(body, code, headers, content_type=content_type)


def page(server: KfpServer, request: Request) -> Response:
    """The answer of a login in front of the server."""
    return Response("<!DOCTYPE html><html><title>Log in</title></html>", 200, content_type="text/html; charset=utf-8")


def reset(server: KfpServer, request: Request) -> Response:
    """Break the connection off, without an answer."""
    connection: socket.socket = request.environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    return Response()


def slow(seconds: float) -> Callable[..., Response]:
    def wait(server: KfpServer, request: Request) -> Response:
        time.sleep(seconds)
        return Response("{}", content_type=JSON)

    return wait


def _hits(fault: Fault, request: Request) -> bool:
    return fault.method == request.method and re.fullmatch(fault.path, request.path) is not None


def _error(refused: RefusedError) -> Any:
    if refused.is_upload:  # which is no service of the gateway
        return {"error_message": str(refused), "error_details": f"{refused}: details"}
    return {"error": str(refused), "code": _CODES[refused.status], "message": str(refused), "details": []}


def _read(request: Request, model: str) -> Any:
    """The body as a model; a field that the model does not have is refused, as protobuf does."""
    body = json.loads(request.get_data())
    known = set(getattr(api, model).attribute_map.values())
    if not isinstance(body, dict) or set(body) - known:
        raise RefusedError(400, f"unknown fields: {sorted(set(body) - known)}")
    return _MODELS.deserialize(SimpleNamespace(data=json.dumps(body)), model)


def _package(text: str) -> dict[str, Any]:
    """The package's first document, read as KFP's own message; the second is the platform's part."""
    documents = list(yaml.load_all(text, yaml.CSafeLoader))
    json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    for platform in documents[1:]:
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    return dict(documents[0])


def _filtered(request: Request, items: Any) -> list[Any]:
    """The items that a `Filter` selects."""
    args: MultiDict[str, str] = request.args
    if "filter" not in args:
        return list(items)
    wanted = json.loads(args["filter"])["predicates"]
    if any(each["operation"] not in (1, "EQUALS") or each["key"] not in _FILTERED for each in wanted):
        raise RefusedError(400, "Invalid filter")
    values = {each["key"]: each.get("stringValue") or each["string_value"] for each in wanted}
    return [item for item in items if all(getattr(item, key) == value for key, value in values.items())]


def _id() -> str:
    return str(uuid.uuid4())


def _now() -> datetime:
    return datetime.now(UTC)

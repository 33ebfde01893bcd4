"""A Kubernetes API server of one namespace with the requests of a launcher of TrainJobs: real paths over real HTTP.

A test plays Trainer's controller, the scheduler and the kubelets: it starts pods, writes into their logs, ends them,
sets conditions. The number of requests for the job triggers each action (`script`), never a clock. `Kubelet` really
runs the commands of the pods.
"""

import contextlib
import copy
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import yaml
from background_server import answering_in_background
from trainer_schema import problems

NAMESPACE = "kubeflow-tests"
TOKEN = "a-token-of-the-tests"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
Object = dict[str, Any]


class Fault(NamedTuple):
    """A fault of one request whose path holds a text: a status, "reset", or "lost" for done, and then reset."""

    method: str
    path: str
    kind: int | str


class Pod:
    """A pod of a job, in the state that the test gives it."""

    def __init__(self, job: str, index: int, number: int) -> None:
        self.name, self.index, self.number = f"{job}-node-0-{index}-{number:05d}", index, number
        self.job = job
        self.lines: list[tuple[str, str]] = []
        self.rest = ""  # what stands behind the last line end
        self.state: Object = {"running": {}}
        self.status: Object = {"phase": "Running"}
        self.changed = threading.Condition()

    def say(self, *lines: str, at: int | None = None) -> None:
        """Write lines into the log; `at`: all in that nanosecond of the day, else each in one of its own."""
        with self.changed:
            for line in lines:
                self.lines.append((stamp(len(self.lines) * 400_000_000 if at is None else at), line))
            self.changed.notify_all()

    def end(self, code: int, message: str = "", reason: str | None = None, at: str = "2026-01-01T02:00:00Z") -> None:
        with self.changed:
            ended = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "finishedAt": at}
            self.state = {"terminated": ended | ({"message": message} if message else {})}
            self.status = {"phase": "Failed" if code else "Succeeded"}
            self.changed.notify_all()

    @property
    def ended(self) -> bool:
        return "terminated" in self.state

    def object(self) -> Object:
        labels = {"jobset.sigs.k8s.io/jobset-name": self.job, "jobset.sigs.k8s.io/replicatedjob-name": "node"}
        index = {"batch.kubernetes.io/job-completion-index": str(self.index)}
        return {
            "metadata": {
                "name": self.name, "uid": f"uid-of-{self.name}", "labels": labels | index, "annotations": index,
                "creationTimestamp": f"2026-01-01T00:{self.number:02d}:00Z",
            },
            "status": self.status | {"containerStatuses": [{"name": "node", "state": self.state}]},
        }  # fmt: skip


def stamp(nanosecond: int) -> str:
    """A time as a kubelet writes it before a line."""
    seconds, rest = divmod(nanosecond, 10**9)
    return f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}.{rest:09d}Z"


def _ago(seconds: int) -> str:
    return f"{datetime.now(UTC) - timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"


class ApiServer:
    """The state of the namespace, and the requests so far."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[str, Object] = {}
        self.pods: list[Pod] = []
        self.events: list[Object] = []
        self.faults: list[Fault] = []  # each befalls one request
        self.forbidden: set[str] = set()  # verbs
        self.installed = True  # whether the cluster knows TrainJobs
        self.refuses: str | None = None  # message of Trainer's admission webhook about a new job
        self.breaks: list[int] = []  # lines after which the next answers with a log are cut off
        self.script: list[Callable[[], Any]] = []  # one each time that a job is looked at; again where it is False
        self.created: Callable[[Object], Any] = lambda job: None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.deletions: list[Object] = []
        self.lingers: list[str] = []  # jobs that are being deleted; one is gone each time that it is looked at
        self.host = ""

    # --- what the cluster does ---

    @property
    def job(self) -> Object:
        """The newest one."""
        return next(reversed(self.jobs.values()))

    def start(self, count: int = 2) -> list[Pod]:
        """New pods for all machines of the newest job, in place of former ones."""
        name = self.job["metadata"]["name"]
        with self.lock:
            for pod in self.pods:
                if pod.job == name and not pod.ended:
                    pod.end(143)
            self.pods = [pod for pod in self.pods if pod.job != name]
            number = len(self.requests) % 60
            self.pods += (pods := [Pod(name, index, number) for index in range(count)])
        return pods

    def set(self, kind: str, status: bool = True, reason: str = "", message: str = "") -> None:
        """Set a condition of the newest job."""
        conditions = self.job.setdefault("status", {}).setdefault("conditions", [])
        conditions[:] = [each for each in conditions if each["type"] != kind]
        conditions.append({"type": kind, "status": str(status), "reason": reason or kind, "message": message})

    def complete(self) -> None:
        """All pods end well."""
        for pod in self.pods:
            if not pod.ended:
                pod.end(0)
        self.set("Complete", reason="JobsCompleted", message="jobset completed successfully")

    def fail(self) -> None:
        self.set("Failed", reason="FailedJobs", message="jobset failed due to one or more job failures")

    def event(self, about: str, reason: str, message: str, kind: str = "Warning") -> None:
        self.events.append(
            {"involvedObject": {"name": about}, "type": kind, "reason": reason, "message": message,
             "lastTimestamp": f"2026-01-01T00:00:{len(self.events):02d}Z"}
        )  # fmt: skip

    # --- requests ---

    def kubeconfig(self, folder: Path) -> Path:
        """A file for `KUBECONFIG`."""
        file = folder / "kubeconfig.yaml"
        name = "tests"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": self.host}}],
            "users": [{"name": name, "user": {"token": TOKEN}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": NAMESPACE}}],
        }  # fmt: skip
        file.write_text(yaml.safe_dump(content))
        return file

    def verbs(self) -> list[str]:
        """Requests about jobs, without the looks at them."""
        return [method for method, path, _ in self.requests if path.startswith(JOBS) and method != "GET"]


@contextlib.contextmanager
def api_server() -> Iterator[ApiServer]:
    state = ApiServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.host = f"http://127.0.0.1:{server.server_port}"
    with answering_in_background(server):
        yield state


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ApiServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = None
        with self.state.lock:
            self.state.requests.append((self.command, parts.path, query))
            for each in self.state.faults:
                if each.method == self.command and each.path in parts.path:
                    fault = each
                    self.state.faults.remove(each)
                    break
        if fault is not None and fault.kind == "reset":
            return self._reset()
        if fault is not None and isinstance(fault.kind, int):
            return self._refuse(fault.kind, "something is wrong for a moment")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Unauthorized")
        self.drops = fault is not None
        log = re.fullmatch(rf"{CORE}/pods/([^/]+)/log", parts.path)
        if log:
            return self._log(log[1], query)
        with self.state.lock:
            self._route(parts.path, query, json.loads(body) if body else {})
        return None

    def _route(self, path: str, query: dict[str, str], body: Object) -> None:
        state = self.state
        selector = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        if path == f"{CORE}/pods":
            return self._items([pod.object() for pod in state.pods], selector)
        if path == f"{CORE}/events":
            about = query["fieldSelector"].removeprefix("involvedObject.name=")
            return self._items([event for event in state.events if event["involvedObject"]["name"] == about], {})
        if not path.startswith(JOBS) or not state.installed:
            return self._refuse(404, "the server could not find the requested resource")
        if path == JOBS:
            return self._create(body) if self.command == "POST" else self._items(list(state.jobs.values()), selector)
        return self._job(path.removeprefix(f"{JOBS}/"), body)

    def _job(self, name: str, body: Object) -> None:
        state = self.state
        verb = {"GET": "get", "PATCH": "patch", "DELETE": "delete"}[self.command]
        if verb in state.forbidden:
            return self._forbid(verb)
        if verb == "get":
            self._look(name)
        if name not in state.jobs:
            return self._refuse(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        job = state.jobs[name]
        if verb == "patch":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            _merge(job, body)
        elif verb == "delete":
            state.deletions.append({"name": name} | body)
            if name in state.lingers:
                job["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
            else:
                del state.jobs[name]
        return self._send(200, job)

    def _look(self, name: str) -> None:
        """What happens between two looks at a job."""
        script = self.state.script
        if script and name in self.state.jobs and script[0]() is not False:
            script.pop(0)
        if name in self.state.lingers:
            self.state.lingers.remove(name)
            if name not in self.state.lingers:
                self.state.jobs.pop(name, None)

    def _create(self, job: Object) -> None:
        state = self.state
        if "create" in state.forbidden:
            return self._forbid("create")
        if state.refuses:
            hook = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
            return self._refuse(403, hook + state.refuses)
        found = problems(job)
        name = job["metadata"]["name"]
        if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
            found.append("metadata.name must match RFC 1035 DNS label format")
        if found:
            return self._refuse(422, "; ".join(found))
        if name in state.jobs:
            return self._refuse(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        made = copy.deepcopy(job)
        made["metadata"] |= {"uid": f"uid-of-{name}", "creationTimestamp": "2026-01-01T00:00:00Z"}
        state.jobs[name] = made
        state.created(made)
        return self._send(201, made)

    def _items(self, items: list[Object], selector: dict[str, str]) -> None:
        if "list" in self.state.forbidden:
            return self._forbid("list")
        found = [
            item for item in items
            if all(item["metadata"].get("labels", {}).get(name) == value for name, value in selector.items())
        ] if selector else items  # fmt: skip
        return self._send(200, {"items": found})

    def _log(self, name: str, query: dict[str, str]) -> None:
        """Lines with their times; with `follow` until the pod ends; `sinceSeconds` is by this machine's clock."""
        pod = next((pod for pod in self.state.pods if pod.name == name), None)
        if pod is None:
            return self._refuse(404, f'pods "{name}" not found')
        assert query["container"] == "node" and query["timestamps"] == "True"  # as Kubernetes' client writes it
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        since = _ago(int(query["sinceSeconds"])) if "sinceSeconds" in query else ""
        cut = self.state.breaks.pop(0) if self.state.breaks and "follow" in query else None
        lines, sent = pod.lines[-int(query["tailLines"]) :] if "tailLines" in query else pod.lines, 0
        while True:
            with pod.changed:
                if sent == len(lines) and "follow" in query and not pod.ended:
                    pod.changed.wait(10)
                new, sent = lines[sent:], len(lines)
                over = pod.ended or "follow" not in query
            for at, text in new:
                if at < since:
                    continue
                if cut == 0:
                    self._chunk(f"{at} {text[:3]}")  # in the middle of a line
                    return self._reset()
                cut = None if cut is None else cut - 1
                self._chunk(f"{at} {text}\n")
            if over and sent == len(lines):
                break
        if pod.rest:
            self._chunk(f"{stamp(10**11)} {pod.rest}")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _chunk(self, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    def _forbid(self, verb: str) -> None:
        who = 'User "system:serviceaccount:kubeflow-tests:pipeline-runner"'
        self._refuse(403, f'trainjobs.trainer.kubeflow.org is forbidden: {who} cannot {verb} resource "trainjobs"')

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"kind": "Status", "status": "Failure", "code": status, "message": message})

    def _send(self, status: int, content: Object) -> None:
        if getattr(self, "drops", False):
            return self._reset()
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(data)
        return None

    def _reset(self) -> None:
        """End the connection as a machine does that is gone."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _merge(target: Object, change: Object) -> None:
    for name, value in change.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict) and isinstance(target.get(name), dict):
            _merge(target[name], value)
        else:
            target[name] = value


class Kubelet:
    """Runs the pods of each job that is made, as Trainer would have them run, and tells how they end.

    `start`: from arguments, environment and the file of the log to a process; `ended`: its exit code, negative where a
    signal has killed it. `own`: a pod's variable -> the folder of that pod alone that it names.
    """

    def __init__(
        self,
        server: ApiServer,
        folder: Path,
        start: Callable[[list[str], dict[str, str], Path], Any],
        ended: Callable[[Any], int],
        port: Callable[[], int],
        own: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.own = own
        self.server, self.folder, self.start, self.ended, self.port = server, folder, start, ended, port
        self.threads: list[threading.Thread] = []
        server.created = self.run

    def run(self, job: Object) -> None:
        trainer = job["spec"]["trainer"]
        count, port = trainer["numNodes"], self.port()
        pods = self.server.start(count)
        left = list(pods)
        for pod in pods:
            torchrun = {
                "PET_NNODES": count, "PET_NODE_RANK": pod.index, "PET_NPROC_PER_NODE": trainer["numProcPerNode"],
                "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo",
                "AUTOFORMER_TERMINATION": self.folder / f"{pod.name}.said",
            }  # fmt: skip
            given = {each["name"]: each["value"] for each in trainer["env"]}
            given |= {name: str(self.folder / pod.name / folder) for name, folder in self.own.items()}
            environment = {**os.environ, **given, **{name: str(value) for name, value in torchrun.items()}}
            thread = threading.Thread(target=self._run, args=(pod, trainer["command"], environment, left), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _run(self, pod: Pod, command: list[str], environment: dict[str, str], left: list[Pod]) -> None:
        assert command[:3] == ["python", "-m", "runtime.steps.job_node"]
        log, said = self.folder / f"{pod.name}.log", Path(environment["AUTOFORMER_TERMINATION"])
        code = self.ended(self.start(command[3:], environment, log))
        pod.say(*log.read_text().splitlines())
        with self.server.lock:
            pod.end(128 - code if code < 0 else code, said.read_text() if said.exists() else "")
            left.remove(pod)
            if not left:
                ends = [each.state["terminated"]["exitCode"] for each in self.server.pods if each.job == pod.job]
                self.server.fail() if any(ends) else self.server.set("Complete")

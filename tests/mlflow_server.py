"""A real MLflow server, and a proxy that refuses, cuts, hangs or answers with an error."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

PATIENCE_SECONDS = 120.0


@contextlib.contextmanager
def server(
    folder: Path, port: int, artifacts: str = "", environment: Mapping[str, str] | None = None, store: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """`mlflow server` on `folder/mlflow.db`; its clients send artifacts through it, to a folder or to S3."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store or f"sqlite:///{folder / 'mlflow.db'}", "--serve-artifacts"]
    command += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by name
    own = {"PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**inherited, **own, **(environment or {})},
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a server with all its workers."""
    signal_all(process, signal.SIGKILL)
    process.wait(60)


def signal_all(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def wait_for(port: int, path: str = "health") -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < give_up, "the server did not start"
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Line:
    """A proxy of a server, on a port of its own.

    `now` is "open", "refused" (nothing listens), "cut" (a connection is closed at once), "silent" (no request is
    answered), "slow" (each connection waits a second), or the status of an HTTP answer.
    """

    def __init__(self, to_port: int) -> None:
        self.to_port, self.port, self.now = to_port, free_port(), "open"
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._listen()

    def turn(self, now: str) -> None:
        """Change the behaviour; open connections end."""
        self.now = now
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open = []
        if now == "refused":
            self.close()
        elif self._listener is None:
            self._listen()

    def close(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        now = self.now
        if now == "cut":
            client.close()
            return
        self._open.append(client)
        if now == "silent":
            return
        with contextlib.suppress(OSError), client:
            if now == "slow":
                time.sleep(1.0)
            elif now != "open":
                client.recv(65536)
                answer = f"HTTP/1.1 {now} Away\r\nRetry-After: 3600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                client.sendall(answer.encode())
                return
            with socket.create_connection(("127.0.0.1", self.to_port)) as upstream:
                self._open.append(upstream)
                back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
                back.start()
                _pump(client, upstream)
                back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)

"""Serve MLflow's pages on this machine, and print the addresses worth opening: `python -m commands.ui`."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError
from runtime.common.console import Parser, run_command
from runtime.common.redaction import without_password
from runtime.tracking.store import connect, sqlite_file, tracking_uri, translate_errors
from runtime.tracking.views import save_views

HOST = "127.0.0.1"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.ui", description="Open MLflow's pages.")
    parser.add_argument("--port", type=int, default=5000, help="of the server on this machine (default: 5000)")
    return run_command("ui", parser, lambda arguments: serve(arguments.port), argv, after="")


def serve(port: int) -> None:
    """Print the addresses, and run the server in this process, unless the runs are on a remote server."""
    uri = tracking_uri()
    remote = sqlite_file(uri) is None and uri.startswith("http")
    if not remote and not _is_free(port):
        raise AutoFormerError(f"port {port} is taken, perhaps by an earlier `make ui`; choose another: make ui PORT=…")
    client = connect()
    with translate_errors(uri):
        pages = save_views(client)
    server = without_password(uri).rstrip("/") if remote else f"http://{HOST}:{port}"
    print(f"MLflow: {server}", flush=True)
    for page in pages:
        print(f"  {page.shows}:\n    {server}{page.path}", flush=True)
    if len(pages) == 1:
        print("  no search has finished yet; `make run` makes one", flush=True)
    if remote:
        return
    print("Ctrl-C ends the server.", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    # one worker is enough for one person, and starts in a quarter of the time; requests are not worth a line each
    command += ["--host", HOST, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # it starts uvicorn by name
    os.execve(command[0], command, os.environ | {"PATH": folder, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})


def _is_free(port: int) -> bool:
    if not 0 < port < 65536:
        raise AutoFormerError(f"--port {port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())

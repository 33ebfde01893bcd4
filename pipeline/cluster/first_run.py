"""Run the smoke preset on the platform of pipeline/manifests with one command: `make first-run CLUSTER=name`.

It opens the ways into the cluster by `kubectl port-forward`, uploads Fashion-MNIST to its bucket, submits and follows
the run, and keeps KFP's page open until Ctrl-C.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence

from autoformer.errors import AutoFormerError
from commands.fetch import fetch
from components.resolve_config.step import resolve
from pipeline.cluster import submit
from pipeline.cluster.settings import Cluster, load_cluster
from pipeline.cluster.submit_arguments import check_filled_in
from runtime.common.config import ROOT
from runtime.common.console import Parser, print_line, run_command
from runtime.common.stopping import Stopped
from runtime.storage import upload_folder

UI, S3 = ("ml-pipeline-ui", 80), ("seaweedfs", 8333)  # services of the platform, and their ports
SECRET = "autoformer-s3"
DATA = "s3://autoformer/data/fashion-mnist"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.cluster.first_run", description="Run the smoke preset on a new platform.")
    parser.add_argument(
        "--cluster", required=True, help="settings of the cluster: a file of configs/cluster/, or a path"
    )
    parser.add_argument("--preset", default="smoke", help="(default: %(default)s)")
    return run_command("first-run", parser, _run, argv, after="; a run that was started continues")


def _run(arguments: argparse.Namespace) -> int:
    cluster = load_cluster(arguments.cluster)
    check_filled_in(cluster, arguments.cluster)
    resolve(arguments.preset, ())
    if shutil.which("kubectl") is None:
        raise AutoFormerError("kubectl is not there; install it: https://kubernetes.io/docs/tasks/tools/")
    _kubectl(cluster, "get", "deployment", "ml-pipeline", "-o", "name")
    with forward(cluster, *UI) as ui, forward(cluster, *S3) as s3:
        os.environ |= _keys(cluster) | {"AWS_ENDPOINT_URL": s3}
        folder = ROOT / "data" / "fashion-mnist"
        fetch(folder)
        upload_folder(folder, DATA)
        print_line(f"first-run: the images are in {DATA}")
        command = [f"--host={ui}", f"--cluster={arguments.cluster}", f"--preset={arguments.preset}", f"--data={DATA}"]
        code = submit.main([*command, "--wait"])
        if code == 0:
            webbrowser.open(ui)
            print_line(f"first-run: KFP's page is {ui} until Ctrl-C")
            with contextlib.suppress(Stopped):
                while True:
                    time.sleep(1)
    return code


@contextlib.contextmanager
def forward(cluster: Cluster, service: str, port: int) -> Iterator[str]:
    """Forward a local port to a service of the cluster; yields the local address."""
    command = ["kubectl", "-n", cluster.namespace, "port-forward", f"svc/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found is None:
                process.kill()
                reason = " ".join((line + process.stdout.read()).split())[-300:]
                raise AutoFormerError(f"svc/{service} in '{cluster.namespace}' cannot be reached: {reason}")
            # kubectl prints a line for each connection; a full pipe would block it
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.kill()


def _keys(cluster: Cluster) -> dict[str, str]:
    secret = json.loads(_kubectl(cluster, "get", "secret", SECRET, "-o", "json")).get("data") or {}
    missing = [name for name in ("access_key", "secret_key") if name not in secret]
    if missing:
        where = f"the secret '{SECRET}' in '{cluster.namespace}'"
        raise AutoFormerError(f"{where} has no {' and no '.join(missing)}; pipeline/manifests/mlflow makes it")
    access, key = (base64.b64decode(secret[name]).decode() for name in ("access_key", "secret_key"))
    region = cluster.env.get("AWS_DEFAULT_REGION", "us-east-1")
    return {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": key, "AWS_DEFAULT_REGION": region}


def _kubectl(cluster: Cluster, *arguments: str) -> str:
    command = ["kubectl", "-n", cluster.namespace, "--request-timeout=20s", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
        raise AutoFormerError(f"kubectl {' '.join(arguments[:3])}: {reason}; is the platform there? docs/cluster.md")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())

"""DVC's S3 remote: what one has pushed, another pulls into a fresh clone, and has nothing left to run.

The commands are those of docs/s3.md.
"""

import subprocess

import pytest
from s3_server import S3Server
from whole_run import Checkout, bytes_below

from runtime.storage import connect

pytestmark = pytest.mark.slow
SECRET = "test-secret-key"
CONFIG_LOCAL = """\
['remote "store"']
    endpointurl = {AWS_ENDPOINT_URL}
    region = {AWS_DEFAULT_REGION}
    access_key_id = {AWS_ACCESS_KEY_ID}
    secret_access_key = {AWS_SECRET_ACCESS_KEY}
"""


@pytest.fixture(scope="module")
def pushed(dvc_checkout: Checkout, dvc_repro: "subprocess.CompletedProcess[str]", s3_process: S3Server) -> Checkout:
    """The repository of a finished `make repro`, committed and pushed; keys in the environment, as on a cluster."""
    environment = dvc_checkout.environment | s3_process.environment
    del environment["AWS_ENDPOINT_URL"]
    checkout = Checkout(dvc_checkout.root, environment)
    for command in (
        f"dvc remote add --default store s3://{s3_process.bucket}/dvc",
        f"dvc remote modify --local store endpointurl {s3_process.endpoint}",
        "git add --force artifacts/registration.json artifacts/model_card.md",
        "git add .dvc/config dvc.lock params.yaml",
        "git commit --quiet --message results",
        "dvc push --run-cache",
    ):
        checkout.command(*command.split())
    return checkout


@pytest.fixture(scope="module")
def clone(pushed: Checkout, s3_process: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A fresh clone, on a machine that has none of it; keys in .dvc/config.local."""
    parent = tmp_path_factory.mktemp("clone")
    root = parent / "repository"
    pushed.command("git", "clone", "--quiet", str(pushed.root), str(root))
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    ours = {
        "PYTHONPATH": str(root),
        "AUTOFORMER_WORK": str(parent / "work"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{parent / 'mlflow.db'}",
        "DVC_SITE_CACHE_DIR": str(parent / "dvc"),
    }
    environment = {name: value for name, value in pushed.environment.items() if name not in keys} | ours
    checkout = Checkout(root, environment)
    (root / ".dvc" / "config.local").write_text(CONFIG_LOCAL.format(**s3_process.environment))
    checkout.command("dvc", "pull")
    return checkout


def test_a_fresh_clone_has_the_same_bytes(pushed: Checkout, clone: Checkout) -> None:
    for folder in ("data", "artifacts/supernet", "artifacts/search", "artifacts/retrain", "artifacts/evaluation"):
        assert bytes_below(clone.root / folder) == bytes_below(pushed.root / folder) != {}


def test_nothing_is_left_to_run_in_it(clone: Checkout) -> None:
    said = clone.command("dvc", "repro", "--pull").stdout
    assert "Running stage" not in said and "Data and pipelines are up to date." in said


def test_secrets_are_neither_committed_nor_pushed(pushed: Checkout, clone: Checkout, s3: S3Server) -> None:
    for checkout in (pushed, clone):
        assert SECRET not in checkout.command("git", "log", "--patch", "--all", "--", ".dvc").stdout
        assert "config.local" not in checkout.command("git", "status", "--porcelain").stdout
    assert SECRET in (clone.root / ".dvc" / "config.local").read_text()
    assert SECRET not in (pushed.root / ".dvc" / "config.local").read_text()
    pages = connect().get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix="dvc/")
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    assert {key.split("/")[1] for key in keys} == {"files", "runs"}

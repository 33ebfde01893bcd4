"""Passwords of a new cluster, drawn here: the files that pipeline/manifests make Kubernetes' secrets of.

Git and the builder of images know none of them, since their names begin with a dot. One that is there stays.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError
from runtime.common.config import ROOT
from runtime.common.console import Parser, report_error

MANIFESTS = ROOT / "pipeline" / "manifests"
S3_USER = "autoformer"
_BYTES = 24


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.cluster.new_secrets", description="Draw the passwords of a new cluster.")
    try:
        parser.parse_args(argv)
        for file, is_new in write_secrets(MANIFESTS):
            print(f"{file.relative_to(ROOT)}: {'written' if is_new else 'is there already, and stays'}")
    except (AutoFormerError, OSError) as error:
        return report_error("secrets", error)
    return 0


def write_secrets(manifests: Path) -> list[tuple[Path, bool]]:
    """Write the files that are missing, readable by their owner alone; each with whether it is new.

    SeaweedFS, which KFP installs, and those that use it name the same keys differently.

    Raises:
        AutoFormerError: one of SeaweedFS's two files is there without the other: they hold the same password.
    """
    server, users = manifests / "platform" / "kfp" / ".s3.env", manifests / "mlflow" / ".s3.env"
    for there, missing in ((server, users), (users, server)):
        if there.exists() and not missing.exists():
            raise AutoFormerError(
                f"{missing}: missing, while {there} is there; they hold the same password: copy it, or remove both"
            )
    password = secrets.token_hex(_BYTES)
    contents = {
        server: f"accesskey={S3_USER}\nsecretkey={password}\n",
        users: f"access_key={S3_USER}\nsecret_key={password}\n",
        manifests / "mlflow" / ".postgres.env": f"password={secrets.token_hex(_BYTES)}\n",
    }
    return [(file, _write(file, content)) for file, content in contents.items()]


def _write(file: Path, content: str) -> bool:
    """Whether the file was written: one that is there is not."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(content)
    return True


if __name__ == "__main__":
    raise SystemExit(main())

"""Generate the passwords of a new cluster, in the files from which pipeline/manifests creates Kubernetes secrets.

Their names begin with a dot, so neither git nor an image includes them. Existing files are kept.
"""

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
    """Write the missing files, readable only by their owner; returns each file, and whether it is new.

    SeaweedFS, which KFP installs, and its users name the same keys differently.

    Raises:
        AutoFormerError: only one of the two files with SeaweedFS's password exists.
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
    written = []
    for file, content in contents.items():
        written.append((file, not file.exists()))
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(content, encoding="utf-8")
    return written


if __name__ == "__main__":
    raise SystemExit(main())

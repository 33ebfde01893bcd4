"""Launch a step on several machines by hand: `AUTOFORMER_JOB=… python -m components.trainjob <step> <arguments>`."""

import sys
from collections.abc import Sequence

from autoformer.errors import AutoFormerError
from components.cli import refuse
from components.trainjob.launch import launch
from components.trainjob.settings import VARIABLE, job_settings


def main(argv: Sequence[str] | None = None) -> int:
    step, *arguments = [*(sys.argv[1:] if argv is None else argv)] or [""]
    try:
        settings = job_settings()
        if settings is None:
            raise AutoFormerError(f"{VARIABLE} is not set; it says on which machines: docs/cluster.md")
    except AutoFormerError as error:
        return refuse("trainjob", error)
    return launch(step, arguments, settings)


if __name__ == "__main__":
    raise SystemExit(main())

"""Compile the DAG to a package that a KFP cluster runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from autoformer.files import replacing


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.compile", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist/autoformer.yaml"))
    arguments = parser.parse_args(argv)

    from kfp import compiler

    from components.kfp_edge import IMAGE
    from pipeline.dag import autoformer

    with replacing(arguments.out) as temporary:
        package = temporary.with_suffix(".yaml")  # the compiler goes by the ending
        compiler.Compiler().compile(autoformer, str(package))
        package.rename(temporary)
    print(f"{arguments.out}: the pipeline 'autoformer', its steps on the image {IMAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

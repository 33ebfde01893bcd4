"""Compile the DAG to a package that a KFP cluster runs."""

from collections.abc import Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError
from autoformer.files import replacing
from components.cli import Parser, refuse


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.compile", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist/autoformer.yaml"))
    try:
        out: Path = parser.parse_args(argv).out
        if out.is_dir():
            raise AutoFormerError(f"{out}: a folder; name the file to write")
        print(f"{out}: the pipeline 'autoformer', its steps on the image {write_package(out)}")
    except AutoFormerError as error:
        return refuse("compile", error)
    return 0


def write_package(out: Path) -> str:
    """Write the package; return the image that its steps run on."""
    from kfp import compiler

    from components.kfp_edge import IMAGE
    from pipeline.dag import autoformer

    with replacing(out) as temporary:
        package = temporary.with_suffix(".yaml")  # the compiler goes by the ending
        compiler.Compiler().compile(autoformer, str(package))
        package.rename(temporary)
    return IMAGE


if __name__ == "__main__":
    raise SystemExit(main())

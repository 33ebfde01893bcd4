"""`python -m runtime.storage FROM TO`: upload or download a folder, whole and verified."""

from collections.abc import Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError, quantity
from runtime.common.console import Parser, existing, report_error
from runtime.common.redaction import hide_in_tracebacks
from runtime.storage import download_folder, is_uri, upload_folder


def main(argv: Sequence[str] | None = None) -> int:
    hide_in_tracebacks()
    parser = Parser(prog="python -m runtime.storage", description="Copy a folder to S3, or from there.")
    parser.add_argument("source", metavar="FROM", help="a folder, or s3://bucket/folder")
    parser.add_argument("target", metavar="TO", help="the other of the two")
    try:
        arguments = parser.parse_args(argv)
        source, target = arguments.source, arguments.target
        if is_uri(source) == is_uri(target):
            raise AutoFormerError(f"{source} and {target}: one of the two is a folder, the other s3://bucket/folder")
        if is_uri(target):
            files = upload_folder(existing(Path(source), "you, or `make data`"), target)
            print(f"{target}: {quantity(len(files), 'file')}, {sum(file.bytes for file in files) / 1e6:.3g} MB")
        else:
            download_folder(source, Path(target))
            print(f"{target}: as {source}")
    except (AutoFormerError, OSError) as error:
        return report_error("storage", error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

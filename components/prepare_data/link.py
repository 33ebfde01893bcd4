"""Say where the archives of a large data set are, which stay there: write `source.yaml` into a data folder.

    python -m components.prepare_data.link --dataset imagenet-1k --archives /mnt/ilsvrc2012 --data data/imagenet-1k

The file names each archive by its published md5, so that DVC has what the data set is made of without a copy of it.
Names and sizes are seen to now; the bytes are, by prepare_data, which reads all of them.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from autoformer.dataset import SOURCE, Source
from autoformer.errors import AutoFormerError
from autoformer.files import write_text
from components.cli import Parser, refuse
from components.prepare_data import imagenet


def link(archives: Path, data: Path, published: imagenet.Published = imagenet.PUBLISHED) -> None:
    """Write the `source.yaml` of `data`. Raises `AutoFormerError` where an archive is missing or of another size."""
    location = archives.expanduser().resolve()
    if not location.is_dir():
        raise AutoFormerError(f"{archives}: no such folder; name the one that holds {', '.join(published.archives)}")
    imagenet.check_sizes(location, published.archives, published)
    source = Source(location=location, archives=dict(published.archives))
    text = yaml.safe_dump(source.model_dump(mode="json", exclude_none=True), sort_keys=False)
    write_text(data / SOURCE, f"# Where the archives of {imagenet.TITLE} are, and what they must be.\n{text}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m components.prepare_data.link", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, choices=[imagenet.NAME])
    parser.add_argument("--archives", type=Path, required=True, help="folder that holds the official archives")
    parser.add_argument("--data", type=Path, required=True, help="folder to write source.yaml into")
    try:
        arguments = parser.parse_args(argv)
        link(arguments.archives, arguments.data)
        print(f"{arguments.data / SOURCE}: {imagenet.TITLE}, {', '.join(imagenet.PUBLISHED.archives)}")
    except (AutoFormerError, OSError) as error:
        return refuse("link", error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

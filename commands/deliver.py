"""Fill a data folder out of a data set's official archives, or say in it where they are.

    python -m commands.deliver --dataset flowers-102 --archives ~/downloads --data data/flowers-102

Small archives are verified and copied. One of images that is compressed as a whole has no place to begin reading at: it
is written once without the compression, which gives the same bytes each time. ImageNet, class folders and WebDataset
shards stay where they are: see `link`.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import BinaryIO

from autoformer.errors import AutoFormerError, nearest
from autoformer.files import replacing
from autoformer.images.source import SOURCE
from commands import link
from components.prepare_data import class_folders, imagenet, webdataset
from runtime.common.console import Parser, Progress, report_error
from runtime.storage import is_uri
from runtime.storage.data import open_data

# md5 of each file as published, which torchvision.datasets (BSD-3) has too: cifar, flowers102, oxford_iiit_pet, and
# stanford_cars up to its release 0.17.
PUBLISHED: dict[str, dict[str, str]] = {
    "cifar-10": {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    "cifar-100": {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
    "flowers-102": {
        "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
        "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
        "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
    },
    "oxford-iiit-pets": {
        "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
        "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    },
    "stanford-cars": {
        "cars_train.tgz": "065e5b463ae28d29e77c1b4b166cfe61",
        "cars_test.tgz": "4ce7ebf6a94d07f1952d94dd34c4d501",
        "car_devkit.tgz": "c3b158d763b6e2245038c8ad08e45376",
        "cars_test_annos_withlabels.mat": "b0a2b23655a3edd16d84508592a98d10",
    },
}
# The same images in another form, md5 sums as on https://www.cs.toronto.edu/~kriz/cifar.html.
INSTEAD: dict[str, dict[str, str]] = {
    "cifar-10": {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    "cifar-100": {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
}
UNCOMPRESSED = {
    "102flowers.tgz": "102flowers.tar",
    "images.tar.gz": "images.tar",
    "cars_train.tgz": "cars_train.tar",
    "cars_test.tgz": "cars_test.tar",
}
_BLOCK = 1 << 20
_GZIP = 31  # zlib's word for a gzip header of any window


def deliver(archives: Path, data: Path, published: Mapping[str, str]) -> list[str]:
    """Verify the files in `archives` and write them into `data`, each whole or not at all.

    Args:
        published: the md5 that each file must have.

    Returns:
        the names of the files in `data`.

    Raises:
        AutoFormerError: a file is missing, or not the published one; what was verified before it stays.
    """
    missing = [name for name in published if not (archives / name).is_file()]
    if missing:
        raise AutoFormerError(f"{archives}: holds no {', '.join(missing)}; put the official files there")
    total = sum((archives / name).stat().st_size for name in published)
    names, done = [], 0
    with Progress("verifying", total, "bytes") as bar:
        for name, expected in published.items():
            target = UNCOMPRESSED.get(name, name)
            watch = partial(_further, bar, done)
            with replacing(data / target) as temporary, temporary.open("wb") as out:
                found = _write(archives / name, out, name in UNCOMPRESSED, watch)
                if found != expected:
                    raise AutoFormerError(
                        f"{archives / name}: md5 is {found}, not {expected} as published; download it again"
                    )
            names.append(target)
            done += (archives / name).stat().st_size
    return names


def _further(bar: Progress, before: int, size: int) -> None:
    bar.update(before + size)


def bring(dataset: str, archives: str | Path, data: Path) -> str:
    """Fill `data` in the way that suits the data set; what it holds, in words.

    Args:
        archives: a folder, or s3://bucket/folder.

    Raises `AutoFormerError` where `archives` holds no data set of that name, nor one in a known layout.
    """
    if dataset in PUBLISHED:
        archives = open_data(archives).folder if is_uri(archives) else Path(archives)
        other = INSTEAD.get(dataset, {})
        has_other = other and all((archives / name).is_file() for name in other)
        return ", ".join(deliver(archives, data, other if has_other else PUBLISHED[dataset]))
    place = link.located(archives)
    official = dataset == imagenet.NAME and (place / imagenet.TRAIN).is_file()  # which no look into it has to say
    folders = isinstance(place, Path) and class_folders.is_mine(place)
    if not official and (folders or webdataset.holds_shards(place)):
        link.link_folder(archives, data)
        return f"{SOURCE}, which names {archives}"
    if dataset == imagenet.NAME:
        link.link(archives, data)
        return f"{SOURCE}, which names {', '.join(imagenet.PUBLISHED.archives)}"
    raise AutoFormerError(
        f"{archives}: neither train/ and val/ with class folders nor WebDataset shards; "
        f"DATASET names official archives: {nearest(dataset, [imagenet.NAME, *PUBLISHED])}"
    )


def _write(source: Path, out: BinaryIO, uncompress: bool, watch: Callable[[int], None]) -> str:
    """Copy a file, or what it holds uncompressed; the md5 of the file itself."""
    digest, gunzip, size = md5(), zlib.decompressobj(_GZIP), 0
    with source.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            watch(size)
            while uncompress and block:
                try:
                    out.write(gunzip.decompress(block))
                except zlib.error as error:
                    raise AutoFormerError(f"{source}: not readable as gzip ({error}); download it again") from None
                block = gunzip.unused_data
                if gunzip.eof and block:  # a file may hold several, one behind the other
                    gunzip = zlib.decompressobj(_GZIP)
            if not uncompress:
                out.write(block)
    if uncompress and not gunzip.eof:
        raise AutoFormerError(f"{source}: ends too early; download it again")
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.deliver", description=__doc__.splitlines()[0])
    known = ", ".join([imagenet.NAME, *PUBLISHED])
    parser.add_argument("--dataset", required=True, help=f"{known}; or a name for class folders or shards")
    parser.add_argument("--archives", required=True, help="folder of the downloaded files, or s3://bucket/folder")
    parser.add_argument("--data", type=Path, required=True, help="folder to fill")
    try:
        arguments = parser.parse_args(argv)
        print(f"{arguments.data}: {bring(arguments.dataset, arguments.archives, arguments.data)}")
    except (AutoFormerError, OSError) as error:
        return report_error("deliver", error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Fill a data folder from a data set's official archives, or record their location in it.

    python -m commands.deliver --dataset flowers-102 --archives ~/downloads --data data/flowers-102

Small archives are verified and copied. A gzipped tar of images gives no random access, so it is written uncompressed,
with the same bytes each time. ImageNet, class folders and WebDataset shards stay where they are, and the data folder
gets a `source.yaml`. For ImageNet it names the archives by their published md5, so DVC versions the data set without a
copy; this command checks names and sizes, prepare_data the bytes. Class folders and shards have no published checksums:
later steps check them against the rows that prepare_data writes.
"""

import argparse
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from hashlib import md5
from pathlib import Path
from typing import BinaryIO

import yaml
from pydantic import TypeAdapter

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, nearest, validated
from autoformer.files import replacing, write_text
from autoformer.frozen import FolderName
from autoformer.images.source import SOURCE, Source, SourceArchive
from commands.inside import accepted_inside, did_you_mean
from components.prepare_data import class_folders, imagenet, webdataset
from runtime.common.console import Parser, Progress, run_command
from runtime.storage import is_uri
from runtime.storage.archives import S3Archives
from runtime.storage.data import ArchiveFolder, open_data

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
# The same images in binary form, md5 sums from https://www.cs.toronto.edu/~kriz/cifar.html.
BINARY_FORM: dict[str, dict[str, str]] = {
    "cifar-10": {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    "cifar-100": {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
}
UNCOMPRESSED = {
    "102flowers.tgz": "102flowers.tar",
    "images.tar.gz": "images.tar",
    "cars_train.tgz": "cars_train.tar",
    "cars_test.tgz": "cars_test.tar",
}
OFFICIAL = (imagenet.NAME, *PUBLISHED)  # data sets with official archives
_BLOCK = 1 << 20
_GZIP = 31  # zlib's `wbits` for a gzip header and any window


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.deliver", description=__doc__.splitlines()[0])
    known = ", ".join(OFFICIAL)
    parser.add_argument("--dataset", required=True, help=f"{known}; or a name for class folders or shards")
    parser.add_argument("--archives", required=True, help="folder of the downloaded files, or s3://bucket/folder")
    parser.add_argument("--data", type=Path, required=True, help="folder to fill")

    def work(arguments: argparse.Namespace) -> None:
        validated(TypeAdapter(FolderName), arguments.dataset, f"DATASET={arguments.dataset}")
        print(f"{arguments.data}: {fill_data_folder(arguments.dataset, arguments.archives, arguments.data)}")

    return run_command("deliver", parser, work, argv, after="")


def fill_data_folder(dataset: str, archives: str | Path, data: Path) -> str:
    """Copy or link the archives of a data set into `data`; return its content in words.

    Args:
        archives: a folder, or s3://bucket/folder.

    Raises:
        AutoFormerError: `archives` holds neither the official archives nor a known layout.
    """
    if dataset in PUBLISHED:
        folder = open_data(archives).folder if is_uri(archives) else Path(archives)
        published = BINARY_FORM.get(dataset, {})
        if not published or not all((folder / name).is_file() for name in published):
            published = PUBLISHED[dataset]
        return ", ".join(copy_verified(folder, data, published))
    place = _archive_folder(archives)
    official = dataset == imagenet.NAME and any(
        (place / name).is_file() for name in (imagenet.TRAIN, imagenet.VAL)
    )  # avoids listing the folder
    if not official and _is_layout(place):
        _write_source(place, data, "Where the images are: in train/<class>/ and so on, or in WebDataset shards.")
        return f"{SOURCE}, which names {archives}"
    if dataset == imagenet.NAME:
        missing = link_imagenet(archives, data)
        lacks = f"; {missing} is not there: `make evaluate-official` needs val alone, a run both" if missing else ""
        return f"{SOURCE}, which names {', '.join(imagenet.PUBLISHED.archives)}{lacks}"
    inside = accepted_inside(place, _is_layout) if isinstance(place, Path) else None
    do = (
        did_you_mean("ARCHIVES", inside) if inside else f"DATASET names official archives: {nearest(dataset, OFFICIAL)}"
    )
    raise AutoFormerError(f"{archives}: neither train/ and val/ with class folders nor WebDataset shards; {do}")


def _is_layout(place: ArchiveFolder) -> bool:
    """Whether the folder has class folders or shards, which are not copied."""
    return (isinstance(place, Path) and class_folders.is_mine(place)) or webdataset.holds_shards(place)


def copy_verified(archives: Path, data: Path, published: Mapping[str, str]) -> list[str]:
    """Copy published files into `data`, each verified, and each whole or not at all.

    Args:
        published: file name -> md5.

    Returns:
        The names of the files in `data`.

    Raises:
        AutoFormerError: a file is missing, or not the published one; files copied before it stay.
    """
    missing = [name for name in published if not (archives / name).is_file()]
    if missing:
        inside = accepted_inside(archives, lambda folder: all((folder / name).is_file() for name in published))
        do = did_you_mean("ARCHIVES", inside) if inside else "put the official files there"
        raise AutoFormerError(f"{archives}: holds no {', '.join(missing)}; {do}")
    total = sum((archives / name).stat().st_size for name in published)
    copied: list[str] = []
    with Progress("verifying", total, "bytes") as progress:
        for name, expected in published.items():
            target = UNCOMPRESSED.get(name, name)
            with replacing(data / target) as temporary, temporary.open("wb") as out:
                checksum = _copy(archives / name, out, name in UNCOMPRESSED, progress.advance)
                if checksum != expected:
                    raise AutoFormerError(
                        f"{archives / name}: md5 is {checksum}, not {expected} as published; download it again"
                    )
            copied.append(target)
    return copied


def _copy(source: Path, out: BinaryIO, uncompress: bool, advance: Callable[[int], None]) -> str:
    """Copy a file, or its uncompressed content; return the md5 of the original file."""
    digest, gunzip, written = md5(), zlib.decompressobj(_GZIP), 0
    most = BOUNDS.expanded(source.stat().st_size)
    with source.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
            while uncompress and block:
                try:
                    written += out.write(gunzip.decompress(block, _BLOCK))
                except zlib.error as error:
                    raise AutoFormerError(f"{source}: not readable as gzip ({error}); download it again") from None
                if written > most:
                    raise AutoFormerError(f"{source}: holds more than {most} bytes of images; download it again")
                block = gunzip.unconsumed_tail or gunzip.unused_data
                if gunzip.eof and block:  # a gzip file may have several members
                    gunzip = zlib.decompressobj(_GZIP)
            out.write(block)  # empty if uncompressed data was written
    if uncompress and not gunzip.eof:
        raise AutoFormerError(f"{source}: ends too early; download it again")
    return digest.hexdigest()


def link_imagenet(archives: str | Path, data: Path, published: imagenet.Published = imagenet.PUBLISHED) -> str:
    """Write the `source.yaml` of `data`; return the name of the missing archive of images, or "".

    Raises `AutoFormerError` if both or the devkit are missing, or one has another size.
    """
    folder = _archive_folder(archives)
    if isinstance(folder, Path) and not folder.is_dir():
        raise AutoFormerError(f"{archives}: no such folder; name the one that holds {', '.join(published.archives)}")
    images = (imagenet.TRAIN, imagenet.VAL)
    missing = [name for name in images if not (folder / name).is_file()]
    lacking = missing[0] if len(missing) == 1 else ""
    needed = {name: archive for name, archive in published.archives.items() if name != lacking}
    imagenet.check_sizes(folder, published.archives, published._replace(archives=needed))
    title = f"Where the archives of {imagenet.TITLE} are, and what they must be."
    _write_source(folder, data, title, published.archives)
    return lacking


def _write_source(
    folder: ArchiveFolder, data: Path, title: str, archives: Mapping[str, SourceArchive] | None = None
) -> None:
    location = folder if isinstance(folder, Path) else str(folder)
    source = Source(location=location, archives=dict(archives or {})).model_dump(mode="json", exclude_defaults=True)
    write_text(data / SOURCE, f"# {title}\n{yaml.safe_dump(source, sort_keys=False)}")


def _archive_folder(archives: str | Path) -> ArchiveFolder:
    return S3Archives(str(archives)) if is_uri(archives) else Path(os.path.realpath(Path(archives).expanduser()))


if __name__ == "__main__":
    raise SystemExit(main())

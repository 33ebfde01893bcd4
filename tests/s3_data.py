"""Data in moto's S3, and the same on disk: what several tests put there."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from s3_server import S3Server
from transfer_archives import Files, jpeg, write_tar

from components.prepare_data.step import SPLITS, main
from runtime.storage import connect

SPACE = {
    "name": "two",
    "image_size": 32,
    "patch_size": 16,
    "in_channels": 3,
    "num_classes": 2,
    "head_dim": 8,
    "max_relative_position": 2,
    "supernet": {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0},
    "choices": {"embed_dim": [8, 16], "depth": [1], "num_heads": [1, 2], "mlp_ratio": [1.0, 2.0]},
}


def upload(s3: S3Server, folder: Path, name: str) -> str:
    """All files below a folder, as objects below `name`; the URI."""
    for file in folder.rglob("*"):
        if file.is_file():
            key = f"{name}/{file.relative_to(folder).as_posix()}"
            connect().put_object(Bucket=s3.bucket, Key=key, Body=file.read_bytes())
    return s3.uri(name)


def source(data: Path, location: str) -> Path:
    """A data folder whose archives lie elsewhere."""
    data.mkdir(parents=True)
    (data / "source.yaml").write_text(yaml.safe_dump({"location": location}))
    return data


def shards(root: Path, images: int = 12) -> Path:
    """Three WebDataset shards of two classes: two of as many training images, one of a third of them to test."""
    for number, split in enumerate(("train", "train", "test")):
        files: Files = {}
        for image in range(images if split == "train" else images // 3):
            key = f"{number}-{image:04d}"
            files |= {f"{key}.jpg": jpeg(100 * number + image), f"{key}.cls": str(image % 2).encode()}
        write_tar(root / f"{split}-{number:04d}.tar", files)
    return root


def prepare_argv(data: str | Path, out: Path, settings: Sequence[str] = ()) -> list[str]:
    config = {"name": "test", "seed": 0, "dataset": "test", "space": SPACE, "prepare_data": {"search_percent": 25}}
    given = ["--config", json.dumps(config), "--data", str(data), "--card", str(out / "card.json")]
    for split in SPLITS:
        given += [f"--{split.replace('_', '-')}-split", str(out / f"{split}.parquet")]
    return [
        *given,
        "--record",
        str(out.with_name(f"{out.name}-record.json")),
        *(p for s in settings for p in ("--set", s)),
    ]


def prepared(data: str | Path, out: Path, *settings: str) -> dict[str, bytes]:
    """What prepare_data makes of the data, by file."""
    assert main(prepare_argv(data, out, settings)) == 0
    return {file.name: file.read_bytes() for file in out.iterdir()}

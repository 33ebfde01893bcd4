"""Images that are decoded during evaluation give the logits of images in memory."""

import errno
import json
from argparse import Namespace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from small import perturb, small_space
from transfer_archives import jpeg, write_tar

from autoformer.cards import Preprocessing, SubnetCard
from autoformer.checkpoint import save_subnet
from autoformer.errors import AutoFormerError
from autoformer.evaluation import predict_batches, predict_logits
from autoformer.files import UnwritableError, hash_file, write_json
from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.pixels import model_pixels
from autoformer.images.prefetch import prefetched
from autoformer.images.split_files import Split, hash_split, write_split
from autoformer.images.split_images import DecodedSplit
from autoformer.images.streaming import StreamedPixels
from autoformer.supernet import Supernet
from components.evaluate_subnet.measure import measure
from components.evaluate_subnet.results import Model, Results
from components.prepare_data.delivered import make_rows
from components.prepare_data.tars import read_tar
from runtime.common.config import load_config
from runtime.steps.inputs import read_images_to_evaluate

IMAGES, SIZE, MEAN, STD = 11, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PIXELS_OF = partial(model_pixels, channels=3, image_size=SIZE)


def rows(folder: Path, *more: bytes) -> Split:
    contents = [jpeg(seed, 30 + seed, 20 + seed % 3) for seed in range(IMAGES)] + list(more)
    members, _ = read_tar(write_tar(folder / "images.tar", {f"{i:02d}.jpg": c for i, c in enumerate(contents)}))
    _, offsets, sizes, checksums, _ = zip(*members, strict=True)
    return make_rows("images.tar", offsets, sizes, 0, checksums)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 5)).eval()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [4, 11, 100])
def test_logits_equal_those_of_images_in_memory(workers: int, batch_size: int, tmp_path: Path) -> None:
    encoded = EncodedImages(tmp_path, rows(tmp_path), 3)
    pixels = np.stack([PIXELS_OF(encoded.image(index)) for index in range(IMAGES)])
    forward = model()
    streamed = StreamedPixels(encoded, PIXELS_OF, batch_size, workers)
    told: list[int] = []
    first, second = predict_batches([forward, lambda x: -forward(x)], streamed, MEAN, STD, watch=told.append)
    assert streamed.images == told[-1] == IMAGES
    assert torch.equal(first, predict_logits(forward, pixels, MEAN, STD, batch_size))
    assert torch.equal(second, -first)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_one_line(workers: int, tmp_path: Path) -> None:
    encoded = EncodedImages(tmp_path, rows(tmp_path, jpeg(0)[:200]), 3)
    with pytest.raises(AutoFormerError, match=r"^image of 200 bytes: a damaged image") as error:
        list(StreamedPixels(encoded, PIXELS_OF, 4, workers))
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_from_a_worker_keeps_its_type(workers: int, tmp_path: Path) -> None:
    """By it a caller tells an unavailable server from bad input."""
    encoded = EncodedImages(tmp_path, rows(tmp_path), 3)

    def full(picture: Image.Image) -> npt.NDArray[np.uint8]:
        raise UnwritableError("/somewhere", errno.ENOSPC)

    with pytest.raises(UnwritableError, match=r"^/somewhere: no space left on device; ") as error:
        list(StreamedPixels(encoded, full, 4, workers))
    assert (error.value.path, error.value.number) == ("/somewhere", errno.ENOSPC)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_an_endless_source_and_past_an_error(workers: int) -> None:
    stream = prefetched(_unless_three, count(), workers, factor=2)
    assert [next(stream).item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AutoFormerError, match=r"^three$"):
        next(stream)
    assert [next(stream).item() for _ in range(3)] == [4, 5, 6]


def _unless_three(number: int) -> torch.Tensor:
    if number == 3:
        raise AutoFormerError("three")
    return torch.tensor(number)


def test_evaluate_subnet_gives_the_same_whether_its_images_fit_into_memory(tmp_path: Path) -> None:
    """Metrics, predictions and thumbnails of mistakes, through the step's own reading."""
    split = rows(tmp_path / "data")
    split = split._replace(labels=np.arange(IMAGES, dtype=np.int32) % 5)
    write_split(tmp_path / "test.parquet", split)
    space = small_space()
    card = DatasetCard(
        name="noise", classes=tuple("abcde"), image_size=None, channels=3, encoding="image", mean=MEAN, std=STD,
        counts={"test": IMAGES}, licence="none", source="none",
        archives={"images.tar": hash_file(tmp_path / "data" / "images.tar")},
        split_hashes={"test": hash_split(split.checksums, split.labels)},
    )  # fmt: skip
    write_json(tmp_path / "card.json", card.model_dump(mode="json"))
    preprocessing = Preprocessing(mean=MEAN, std=STD, classes=card.classes)
    models: dict[Model, Path] = {"retrained": tmp_path / "model", "inherited": tmp_path / "inherited"}
    for seed, folder in enumerate(models.values()):
        subnet = perturb(Supernet(space), seed).extract(space.largest).float()
        save_subnet(
            folder, subnet, SubnetCard(space=space, preprocessing=preprocessing, provenance={}, subnet=space.largest)
        )
    arguments = Namespace(card=tmp_path / "card.json", data=tmp_path / "data", test_split=tmp_path / "test.parquet")
    text = {"name": "t", "seed": 0, "dataset": "noise", "space": space.model_dump(mode="json"), "evaluate_subnet": {}}
    config = load_config(json.dumps(text), steps=["evaluate_subnet"])
    nothing: Any = None
    results = Results(card, space, nothing, "scratch", models, nothing, {}, {}, {}, {})
    found = []
    for megabytes, kind in ((2000, DecodedSplit), (0, EncodedSplit)):
        _, images = read_images_to_evaluate(arguments, config, "test", megabytes)
        assert isinstance(images, kind)
        found.append(measure(results, images, batch_size=4, mistakes=3))
    kept, streamed = found
    assert kept.scores == streamed.scores and kept.differences == streamed.differences
    assert np.array_equal(kept.predicted, streamed.predicted) and len(kept.mistakes) == 3
    for one, other in zip(kept.mistakes, streamed.mistakes, strict=True):
        assert np.array_equal(one.pixels, other.pixels) and one[1:] == other[1:]
    copied = results._replace(models=models | {"scratch": models["retrained"]})
    again = measure(copied, images, batch_size=4, mistakes=3)
    assert again.scores == kept.scores | {"scratch": kept.scores["retrained"]}
    assert [len(set(one.weights.values())) for one in (kept, again)] == [2, 2], "equal weights are evaluated once"

"""Batches as a function of their number, for any workers: order, copies, augmentation."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import sample_photograph
from PIL import Image
from timm.data.mixup import mixup_target
from torch import Tensor

from autoformer.distributed import World
from autoformer.images.augmentation import BatchAugmentation, picture_transform
from autoformer.images.decoding import Decoder
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import ArrayPictures, Batch, BatchOrder, DecodingLoader, training_loader
from autoformer.named import load_space
from autoformer.randomness import repeated_order, seeded
from autoformer.recipe import Augmentation, Recipe
from autoformer.sampling import uniform
from autoformer.supernet import Supernet
from autoformer.training import Trainer

FULL: dict[str, Any] = {
    "crop_scale": (0.3, 1.0),
    "flip": True,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "repeats": 3,
}


def split(count: int = 30, channels: int = 3, size: int = 20) -> DecodedSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return DecodedSplit(pixels, np.arange(count, dtype=np.int64), [])


def recipe(**augmentation: Any) -> Recipe:
    return Recipe(epochs=1, batch_size=8, learning_rate=1, augmentation=Augmentation(**augmentation))


def source(workers: int = 0, images: DecodedSplit | None = None, seed: int = 4, **augmentation: Any) -> Any:
    images = images or split()
    mean = (0.5,) * images.pixels.shape[1]
    return training_loader(images, recipe(**augmentation), seed, images.pixels.shape[2], mean, 1, workers)


@pytest.mark.parametrize("options", [FULL, FULL | {"color_jitter": 0, "fast": True}], ids=["exact", "fast"])
def test_batches_do_not_depend_on_workers_or_earlier_batches(options: dict[str, Any]) -> None:
    """Workers prefetch, and out of step with each other."""
    plain = source(**options)
    wanted = [plain.batch(number) for number in range(7)]  # two epochs of three batches, and one more
    for workers in (1, 2):
        ahead = source(workers, **options)
        for number in (0, 1, 2, 5, 6, 1, 2):  # in order, then on from elsewhere, as after a resume or a rollback
            batch = ahead.batch(number)
            assert torch.equal(batch.pixels, wanted[number].pixels), (workers, number)
            assert torch.equal(batch.labels, wanted[number].labels)
        ahead.close()
    assert not torch.equal(wanted[0].pixels, source(seed=5, **options).batch(0).pixels)
    assert wanted[0].pixels.dtype == torch.uint8 and wanted[0].pixels.shape == (8, 3, 20, 20)


@pytest.mark.parametrize(
    "options", [FULL, FULL | {"color_jitter": 0, "fast": True}, {"rand_augment": FULL["rand_augment"]}],
    ids=["exact", "fast", "middle"],
)  # fmt: skip
def test_worker_processes_need_not_be_forked(options: dict[str, Any]) -> None:
    """Spawned workers get a pickle of the loader."""
    plain = source(**options)
    sent = pickle.loads(pickle.dumps(plain))
    assert torch.equal(sent.batch(2).pixels, plain.batch(2).pixels)


def test_the_augmentation_of_an_image_does_not_depend_on_its_batch() -> None:
    images, transform = split(), picture_transform(Augmentation(**FULL), 20, (0.5,) * 3)
    labels = torch.from_numpy(images.labels)

    def batches(batch_size: int) -> DecodingLoader:
        order = BatchOrder(0, 30, 30, batch_size)
        return DecodingLoader(Decoder(ArrayPictures(images.pixels)), labels, order, transform, (3, 20, 20), 0)

    halves = batches(15)
    assert torch.equal(batches(30).batch(0).pixels, torch.cat([halves.batch(0).pixels, halves.batch(1).pixels]))


def test_augmentation_restores_the_global_generators() -> None:
    import random

    def states() -> list[Any]:
        return [random.random(), np.random.random(), torch.rand(1).item()]

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    wanted = states()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    source(**FULL).batch(0)
    assert states() == wanted
    with seeded("a", 1):
        one = states()
    with seeded("a", 1):
        assert states() == one
    with seeded("a", 2):
        assert all(x != y for x, y in zip(states(), one, strict=True))


def test_repeated_augmentation_by_hand() -> None:
    """Ten images, three copies: the first four of the shuffled order, the fourth of them once."""
    plain, _ = repeated_order(0, 0, 10, 1)
    samples, copies = repeated_order(0, 0, 10, 3)
    assert samples.tolist() == [*np.repeat(plain[:3], 3), plain[3]]
    assert copies.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_repeated_augmentation_has_the_order_of_timms_sampler() -> None:
    """timm's needs 256 samples at least for its rounding; its order is the shuffled one, three times each."""
    from timm.data.distributed_sampler import RepeatAugSampler

    ranks = [RepeatAugSampler(range(768), num_replicas=3, rank=rank, shuffle=False) for rank in range(3)]
    theirs = np.stack([np.array(list(sampler)) for sampler in ranks])  # 3 x 256: copies of one image in a column
    order = np.argsort(repeated_order(0, 0, 768, 1)[0])
    samples, _ = repeated_order(0, 0, 768, 3)
    ours = np.stack([order[samples[rank::3]] for rank in range(3)])  # places in the shuffled order
    assert np.array_equal(ours, theirs)


def test_copies_of_an_image_differ() -> None:
    for augmentation in ({"crop_padding": 4, "repeats": 4}, FULL | {"repeats": 4}):
        batch = source(**augmentation).batch(0)
        assert batch.labels[:4].unique().numel() == 1
        assert len({image.numpy().tobytes() for image in batch.pixels[:4]}) > 1


def test_an_incomplete_step_at_the_end_of_an_epoch_is_dropped() -> None:
    batches = [source().batch(number).labels for number in range(3)]
    assert len(torch.cat(batches).unique()) == 24  # of 30


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("augmentation", [FULL, FULL | {"repeats": 1}, {"crop_padding": 2, "flip": True, "repeats": 3}])
def test_ranks_together_see_the_batches_of_a_single_process(count: int, augmentation: dict[str, Any]) -> None:
    """W ranks with A batches per step each, and one rank with W x A: the same batches in turn, byte by byte."""
    images, parts = split(60), 12 // count * count
    options = Recipe(epochs=1, batch_size=parts * 2, learning_rate=1, augmentation=Augmentation(**augmentation))

    def batches(world: World, first: int, last: int) -> list[Batch]:
        source = training_loader(images, options, 0, 20, (0.5,) * 3, parts, world=world)
        return [source.batch(number) for number in range(first, last)]

    single = batches(World(0, 1), 0, 3 * parts)  # a step of the second epoch too
    for rank in range(count):
        own = batches(World(rank, count), 0, 3 * parts // count)
        for ours, wanted in zip(own, single[rank::count], strict=True):
            assert torch.equal(ours.pixels, wanted.pixels) and torch.equal(ours.labels, wanted.labels)
        resumed = batches(World(rank, count), 5, 3 * parts // count)[0]  # as after a resume
        assert torch.equal(resumed.pixels, own[5].pixels)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_sample_comes_once_per_epoch_on_one_of_the_ranks(count: int) -> None:
    """Without the incomplete step: 96 of 100 samples."""
    orders = [BatchOrder(0, 100, 12, 12 // count, world=World(rank, count)) for rank in range(count)]
    for epoch in (0, 1):
        numbers = range(epoch * 8, (epoch + 1) * 8)
        seen = np.concatenate([order.batch(number)[1] for order in orders for number in numbers])
        assert len(seen) == 96 == len(np.unique(seen))
        assert {order.batch(number)[0] for order in orders for number in numbers} == {epoch}


def test_copies_of_a_sample_are_in_one_step_and_mostly_on_one_rank() -> None:
    """Ranks take turns by batch, so the copies, which stand side by side, share a batch unless it ends between them.

    timm's sampler deals them out one by one. The gradient of a step is the same: it is the mean over all ranks.
    """
    orders = [BatchOrder(0, 96, 24, 12, 3, World(rank, 2)) for rank in range(2)]
    for number in range(4):
        for order in orders:
            _, samples, copies = order.batch(number)
            assert (np.bincount(samples)[np.unique(samples)] == 3).all() and copies.tolist() == [0, 1, 2] * 4


def test_weights_do_not_depend_on_workers_or_interruptions() -> None:
    """Stochastic depth draws from the generator that augmentation and the start of a loader draw from."""
    space = load_space("photos-32").model_copy(update={"num_classes": 30})
    options = Recipe(
        epochs=2, batch_size=8, learning_rate=1e-3, drop_path=0.5, ema_decay=0.9,
        augmentation=Augmentation(**FULL, mixup=0.5, erase_probability=0.5),
    )  # fmt: skip

    def trainer(workers: int) -> Trainer:
        torch.manual_seed(0)
        images = training_loader(split(size=32), options, 0, 32, (0.5,) * 3, workers=workers)
        model = Supernet(space, options.drop_path)
        return Trainer(model, uniform(space, 0), images, 30, (0.5,) * 3, (0.2,) * 3, options, 0)

    def ended(training: Trainer) -> dict[str, Tensor]:
        training.images.close()
        return dict(training.averaged.state_dict()) | {f"raw {k}": v for k, v in training.model.state_dict().items()}

    plain = trainer(0)
    plain.advance(5)
    wanted = ended(plain)
    through = trainer(1)
    through.advance(5)
    killed, resumed = trainer(1), trainer(1)
    killed.advance(2)
    resumed.load_state_dict(killed.state_dict())
    resumed.advance(3)
    for training in (through, resumed):
        assert all(torch.equal(value, wanted[name]) for name, value in ended(training).items())


# --- timm's parts ---


def test_an_image_goes_through_timms_own_transforms() -> None:
    """The same draws through timm's `transforms_imagenet_train`, which is what the official recipe calls."""
    from timm.data.transforms_factory import transforms_imagenet_train
    from torchvision import transforms

    picture = sample_photograph("coffee")
    theirs = transforms_imagenet_train(
        64, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, color_jitter=None, interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1", normalize=False, mean=(0.5, 0.4, 0.3),
    )  # fmt: skip
    assert isinstance(theirs, transforms.Compose)
    augmentation = Augmentation(crop_scale=(0.3, 1.0), flip=True, rand_augment="rand-m9-mstd0.5-inc1")
    ours = picture_transform(augmentation, 64, (0.5, 0.4, 0.3))
    for number in range(10):
        with seeded("picture", number):
            wanted = theirs(picture)
        with seeded("picture", number):
            assert torch.equal(ours(picture), wanted), number


def test_no_image_in_two_thousand_is_refused_by_rand_augment() -> None:
    """Pillow 13 refuses one or two in a thousand ("bits must be between or equal to 1 and 8")."""
    transform = picture_transform(Augmentation(rand_augment="rand-m9-mstd0.5-inc1"), 16, (0.5,) * 3)
    picture = sample_photograph("cat").resize((18, 18))
    for number in range(2000):
        with seeded("many", number):
            assert transform(picture).shape == (3, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_images(channels: int) -> None:
    batch = source(images=split(channels=channels), **FULL).batch(0)
    assert batch.pixels.shape == (8, channels, 20, 20) and len(batch.pixels.unique()) > 50


@pytest.mark.parametrize("text", ["rand-nonsense", "rand-m9-q3", "rand-mx", "rand-w0", "rand-p.5", "augmix"])
def test_an_unknown_rand_augment_is_named(text: str) -> None:
    """timm ignores most unknown words: a misspelt one would train without a warning."""
    with pytest.raises(ValueError, match=r"rand-m9-mstd0.5-inc1"):
        Augmentation(rand_augment=text)


def mixed(images: Tensor, labels: Sequence[int], *seed: object, **augmentation: Any) -> tuple[Tensor, Tensor]:
    augment = BatchAugmentation(Augmentation(**augmentation), 5, 0.1, torch.device("cpu"))
    return augment(images.clone(), torch.tensor(labels), *seed)


def test_mixup_mixes_images_and_targets_by_the_same_weight() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 6, 6)
    shares = set()
    for step in range(5):
        out, targets = mixed(images, [0, 1, 2, 3], 0, step, mixup=0.8)
        share = float(1 - out[0, 0, 0, 0] / 3)  # image 0 with image 3
        shares.add(round(share, 6))
        torch.testing.assert_close(out, images * share + images.flip(0) * (1 - share))
        torch.testing.assert_close(targets, mixup_target(torch.arange(4), 5, share, 0.1))
    assert len(shares) == 5
    again = mixed(images, [0, 1, 2, 3], 0, 2, mixup=0.8)[0]
    assert torch.equal(again, mixed(images, [0, 1, 2, 3], 0, 2, mixup=0.8)[0])


def test_cutmix_targets_follow_the_area() -> None:
    images = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)])
    out, targets = mixed(images, [0, 1], 7, cutmix=1.0)
    share = float(out[0].mean())  # of the second image, by area
    assert 0 < share < 1
    torch.testing.assert_close(targets, mixup_target(torch.tensor([0, 1]), 5, 1 - share, 0.1))


def test_erasing_has_the_given_probability() -> None:
    out, labels = mixed(torch.ones(400, 1, 32, 32), [0] * 400, 1, erase_probability=0.25, erase_mode="const")
    erased = [image[0] == 0 for image in out if (image == 0).any()]
    assert 70 < len(erased) < 130 and labels.shape == (400,)
    for mask in erased:
        rows, columns = mask.any(dim=1).sum(), mask.any(dim=0).sum()
        assert mask.sum() == rows * columns
        assert 0.01 < mask.float().mean() < 0.4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"crop_scale": (0.5, 0.2)}, "0 < least <= most <= 1"),
        ({"crop_scale": (0.5, 1), "crop_padding": 2}, "exclude each other"),
        ({"rand_augment": "auto"}, "rand-m9-mstd0.5-inc1"),
        ({"erase_mode": "white"}, "'const', 'rand' or 'pixel'"),
    ],
)
def test_wrong_augmentations(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        Augmentation(**changes)


def test_mixing_needs_pairs() -> None:
    with pytest.raises(ValueError, match="work on pairs: 5 images"):
        Recipe(epochs=1, batch_size=10, accumulation=2, learning_rate=1, augmentation=Augmentation(mixup=0.5))


def test_array_pictures_have_those_pixels(tmp_path: Path) -> None:
    images = split(count=2)
    picture = ArrayPictures(images.pixels).image(1)
    picture.save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as again:
        assert np.array_equal(np.asarray(again).transpose(2, 0, 1), images.pixels[1])

"""The fast path has timm's draws, and its pixels within the bounds stated here."""

import random
from collections import Counter
from random import Random

import numpy as np
import pytest
from photographs import sample_photograph
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.functional import resized_crop

from autoformer.images.augmentation import rand_augment
from autoformer.images.cache import Pixels
from autoformer.images.decoding import GAP, Box, Decoder, least_scale
from autoformer.images.fast_augmentation import Draw, FastAugmentation, Operation, draw_crop, draw_operation
from autoformer.images.pixel_operations import ON_ARRAYS
from autoformer.images.training_loader import ArrayPictures
from autoformer.randomness import derived_rng
from autoformer.recipe import Augmentation

SIDE, MEAN, SCALE = 96, (0.5, 0.4, 0.3), (0.08, 1.0)
NAMES = ("astronaut", "cat", "coffee", "rocket")


def fast_path(config: str | None = "rand-m9-mstd0.5-inc1", flip: bool = True) -> FastAugmentation:
    return FastAugmentation(Augmentation(crop_scale=SCALE, flip=flip, rand_augment=config, fast=True), SIDE, MEAN)


# --- draws ---


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (300, 20), (20, 300), (31, 29)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.9, 1.0)])
def test_crops_are_timms_for_the_same_generator(size: tuple[int, int], scale: tuple[float, float]) -> None:
    """Equal draws, also in the fallback for narrow images, so the distribution is timm's."""
    picture = Image.new("L", size)
    for seed in range(200):
        random.seed(seed)
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(picture, scale, (3 / 4, 4 / 3))
        assert draw_crop(Random(seed), *size, scale) == Box(left, top, width, height)


@pytest.mark.parametrize(
    "config", ["rand-m9-mstd0.5-inc1", "rand-m7-mstd0.5", "rand-m9-mstdinf-inc1", "rand-m15-mmax20-p0.9-inc1", "rand"]
)
def test_operations_have_timms_arguments_for_the_same_generator(config: str) -> None:
    """Each of the 15, with either sign: whether it is applied, and the argument of timm's function."""
    for operation in rand_augment(config, SIDE, MEAN).ops:
        told: list[Operation] = []
        name = operation.name
        operation.aug_fn = lambda image, *strength, name=name, told=told, **_: told.append(
            Operation(name, strength[0] if strength else None)
        )
        for seed in range(100):
            random.seed(seed)
            told.clear()
            operation(None)
            assert draw_operation(Random(seed), operation) == (told[0] if told else None), (operation.name, seed)


def test_each_operation_and_each_mirror_is_as_likely() -> None:
    """2 of 15, with replacement, each applied half of the time: enough draws that 5 deviations are a twelfth."""
    fast = fast_path()
    draws = [fast.draw(derived_rng("draws", number)) for number in range(20_000)]
    done = Counter(operation.name for draw in draws for operation in draw.operations)
    expected, deviation = 20_000 / 15, (20_000 / 15) ** 0.5
    assert len(done) == 15 and all(abs(count - expected) < 5 * deviation for count in done.values()), done
    pairs = Counter(tuple(operation.name for operation in draw.operations) for draw in draws)
    both = [count for names, count in pairs.items() if len(names) == 2]
    assert len(both) == 225 and sum(count - 20_000 / 900 for count in both) < 5 * 5000**0.5
    assert abs(pairs[()] - 5000) < 5 * 5000**0.5
    assert abs(sum(draw.mirrored for draw in draws) - 10_000) < 5 * 5000**0.5
    signs = Counter(
        operation.strength > 0 for draw in draws for operation in draw.operations if operation.name == "Rotate"
    )
    assert abs(signs[True] - signs[False]) < 5 * sum(signs.values()) ** 0.5
    assert not any(
        draw.mirrored or draw.operations for draw in map(fast_path(None, False).draw, map(Random, range(99)))
    )


# --- pixels ---


def part(name: str, side: int = SIDE) -> Pixels:
    return np.asarray(sample_photograph(name).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", ON_ARRAYS)
@pytest.mark.parametrize("grey", [False, True])
def test_operations_on_arrays_are_timms(name: str, grey: bool) -> None:
    """At most 1 level apart, in fewer than 2 of 10,000 pixels; moved by nothing, far, and out of the image."""
    apart, rng = [], Random(0)
    fill = 7 if grey else (10, 20, 30)
    for picture in NAMES:
        pixels = part(picture)[:, :, :1] if grey else part(picture)
        for strength in (0.0, 1 / SIDE, 1.9, -1.9, *(rng.uniform(-0.45, 0.45) for _ in range(6))):
            image = Image.fromarray(pixels[:, :, 0] if grey else pixels)
            timms = NAME_TO_OP[name](image, strength, fillcolor=fill, resample=Image.Resampling.BICUBIC)
            ours = ON_ARRAYS[name](pixels, strength, fill)
            apart.append(np.abs(ours.astype(int) - np.asarray(timms).reshape(ours.shape)))
    assert np.max(apart) <= 1 and np.mean(apart) < 2e-4


def exact(image: Image.Image, box: Box, draw: Draw) -> Pixels:
    """The same draw by timm's functions and Pillow alone: crop, mirror, operations."""
    size, bicubic = [SIDE, SIDE], Image.Resampling.BICUBIC
    picture = resized_crop(image, box.top, box.left, box.height, box.width, size, bicubic)
    if draw.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    options = rand_augment("rand", SIDE, MEAN).ops[0].kwargs
    for name, strength in draw.operations:
        picture = NAME_TO_OP[name](picture, *(() if strength is None else (strength,)), **options)
    return np.asarray(picture)


def test_the_whole_path_has_the_pixels_of_the_exact_one() -> None:
    """Resized pixels lie two levels apart at most. An operation may widen that (a threshold is passed or is not): of
    all pixels, under augmentation, 999 of 1000 are one level apart at most, and the mean is a fiftieth of a level."""
    fast, resized_apart, apart = fast_path(), [], []
    pictures = [np.asarray(sample_photograph(name)) for name in NAMES]
    for number in range(150):
        pixels = pictures[number % len(NAMES)]
        decoder = Decoder(ArrayPictures(pixels.transpose(2, 0, 1)[None]))
        rng = derived_rng("whole", number)
        box = draw_crop(rng, pixels.shape[1], pixels.shape[0], SCALE)
        resized = fast.resize(decoder.crop(0, lambda *_, box=box: box, SIDE))
        resized_apart.append(np.abs(resized.astype(int) - exact(Image.fromarray(pixels), box, Draw(False, ()))))
        out = np.empty((3, SIDE, SIDE), dtype=np.uint8)
        fast(decoder, 0, derived_rng("whole", number), out)
        wanted = exact(Image.fromarray(pixels), box, fast.draw(rng))
        apart.append(np.abs(out.transpose(1, 2, 0).astype(int) - wanted))
    assert np.max(resized_apart) <= 2 and np.mean(resized_apart) < 0.01
    assert np.mean(np.array(apart) > 1) < 0.001 and np.mean(apart) < 0.02


def test_images_decoded_at_a_smaller_scale_keep_their_statistics(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of real photographs, enlarged as a camera would have them: by channel the mean within half a level, the
    deviation within a percent; each crop's own contrast within two percent, and the detail in it (the mean step from
    pixel to pixel) within five."""
    from test_pixel_cache import archive_of

    pictures = [sample_photograph(name).resize((900, 675), Image.Resampling.BICUBIC) for name in NAMES]
    noise = np.random.default_rng(0).normal(0, 5, (675, 900, 1))
    pictures = [Image.fromarray((np.asarray(one) + noise).clip(0, 255).astype(np.uint8)) for one in pictures]
    decoder = Decoder(
        archive_of(tmp_path_factory.mktemp("large"), [(one, "JPEG", {"quality": 90}) for one in pictures])
    )
    fast, smaller, whole = fast_path(), [], []
    for number in range(60):
        box = draw_crop(derived_rng("smaller", number), 900, 675, SCALE)
        if least_scale(box, SIDE) == 1:
            continue
        index = number % len(pictures)
        smaller.append(fast.resize(decoder.crop(index, lambda *_, box=box: box, SIDE)).astype(float))
        area = (box.left, box.top, box.left + box.width, box.top + box.height)
        full = np.array(decoder.image(index).crop(area))
        whole.append(np.asarray(Image.fromarray(full).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(float))
    ours, exacts = np.stack(smaller), np.stack(whole)
    assert len(ours) > 30 and GAP == 2
    assert np.abs(ours.mean((0, 1, 2)) - exacts.mean((0, 1, 2))).max() < 0.5
    assert np.abs(ours.std((0, 1, 2)) / exacts.std((0, 1, 2)) - 1).max() < 0.01
    assert np.abs(ours.std((1, 2)) / exacts.std((1, 2)) - 1).max() < 0.02
    detail = [np.abs(np.diff(pixels, axis=2)).mean((1, 2, 3)) for pixels in (ours, exacts)]
    assert np.abs(detail[0] / detail[1] - 1).max() < 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_all_draws_come_from_the_generator(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 40, 50), dtype=np.uint8)
    decoder = Decoder(ArrayPictures(pixels))
    fast = FastAugmentation(
        Augmentation(crop_scale=SCALE, flip=True, rand_augment="rand-m9-mstd0.5-inc1", fast=True),
        24,
        MEAN[:channels],
    )

    def made(seed: int) -> bytes:
        out = np.empty((channels, 24, 24), dtype=np.uint8)
        fast(decoder, 1, Random(seed), out)
        return out.tobytes()

    random.seed(1)
    once = [made(seed) for seed in range(30)]
    random.seed(2)
    assert once == [made(seed) for seed in range(30)] and len(set(once)) == 30
    random.seed(2)
    untouched = random.getstate()
    made(0)
    assert random.getstate() == untouched


@pytest.mark.parametrize("changes", [{}, {"crop_padding": 2}, {"crop_scale": (0.5, 1), "color_jitter": 0.4}])
def test_options_that_the_fast_path_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="fast is for a random resized crop"):
        Augmentation(fast=True, **changes)

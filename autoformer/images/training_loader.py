"""Training images by batch number: order, repeated augmentation, decoding, in this process or in workers.

`TrainingLoader.batch(number)` is a function of its arguments: whichever batches came before, and however many worker
processes decode ahead, the same number gives the same bytes. That is what makes training resume in mid-epoch.
Dimensions: n images, B images of a batch, C channels, S pixels on a side.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.images.archives import EncodedSplit
from autoformer.images.augmentation import picture_transform
from autoformer.images.batches import augment
from autoformer.images.decoding import Decoder
from autoformer.images.fast_augmentation import FastAugmentation
from autoformer.images.prefetch import prefetched
from autoformer.images.split_images import DecodedSplit
from autoformer.randomness import IntArray, derived_rng, repeated_order, seeded
from autoformer.recipe import Augmentation, Recipe

PREFETCH_FACTOR = 4  # batches that a worker decodes before they are asked for


class Batch(NamedTuple):
    pixels: Tensor  # uint8 (B, C, S, S)
    labels: Tensor  # int64 (B,)


class BatchOrder:
    """Which sample, and which copy of it, stands at each place of training.

    Several ranks take the batches of one order in turns, so that together they see what one alone would see: a step
    of one rank with two batches is a step of two ranks with one batch each.

    Args:
        images_per_step: of an optimiser step, all ranks together; what does not fill a step at the end of an epoch is
            left out.
        batch_size: of one batch, a whole part of a step.
        ranks: whose batches these are; it numbers its own from 0.
    """

    def __init__(
        self,
        seed: int,
        samples: int,
        images_per_step: int,
        batch_size: int,
        repeats: int = 1,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.seed, self.samples, self.batch_size, self.repeats = seed, samples, batch_size, repeats
        self.images_per_step, self.world = images_per_step, world
        self.batches_per_epoch = samples // images_per_step * (images_per_step // batch_size)
        self._epoch: tuple[int, tuple[IntArray, IntArray]] | None = None

    def batch(self, number: int) -> tuple[int, IntArray, IntArray]:
        """Epoch, samples (B,) and copies (B,) of this rank's batch of that number."""
        epoch, place = divmod(number * self.world.size + self.world.rank, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, repeated_order(self.seed, epoch, self.samples, self.repeats)
        here = slice(place * self.batch_size, (place + 1) * self.batch_size)
        samples, copies = self._epoch[1]
        return epoch, samples[here], copies[here]


class InMemoryLoader:
    """Images that lie in memory at the model's size, augmented batch by batch.

    Args:
        pixels: uint8 (n, C, S, S). labels: int64 (n,).
    """

    def __init__(self, pixels: Tensor, labels: Tensor, order: BatchOrder, augmentation: Augmentation) -> None:
        self._pixels, self._labels, self.order, self._augmentation = pixels, labels, order, augmentation

    def batch(self, number: int) -> Batch:
        epoch, samples, copies = self.order.batch(number)
        index = torch.from_numpy(samples)
        drawn = samples + copies * self.order.samples  # a copy draws as a sample of its own
        pixels = augment(self._pixels[index], drawn, self._augmentation, self.order.seed, epoch)
        return Batch(pixels, self._labels[index])

    def close(self) -> None:
        pass


Augment = Callable[[Decoder, int, tuple[object, ...], npt.NDArray[np.uint8]], None]


class DecodingLoader:
    """Images that are decoded and augmented one at a time.

    Args:
        decoder: of n images.
        labels: int64 (n,).
        augment: writes one augmented image, uint8 (C, S, S); a function of its arguments alone. See `exactly` and
            `quickly`.
        shape: C, S, S.
        workers: processes that decode ahead; 0 for none, then the caller's own process does.
    """

    def __init__(
        self,
        decoder: Decoder,
        labels: Tensor,
        order: BatchOrder,
        augment: Augment,
        shape: tuple[int, int, int],
        workers: int,
    ) -> None:
        self._labels, self.order, self._workers = labels, order, workers
        self._decode = _Decoded(decoder, augment, shape, order.seed)
        self._next = 0
        self._stream: Iterator[Tensor] | None = None

    def batch(self, number: int) -> Batch:
        if self._stream is None or self._next != number:
            self.close()
            wanted = map(self.order.batch, count(number))
            self._stream = prefetched(self._decode, wanted, self._workers, PREFETCH_FACTOR)
        self._next = number + 1
        _, samples, _ = self.order.batch(number)
        return Batch(next(self._stream), self._labels[torch.from_numpy(samples)])

    def close(self) -> None:
        """End the workers."""
        self._stream = None


class _Decoded:
    """Batches, by what `Order.batch` says of them."""

    def __init__(self, decoder: Decoder, augment: Augment, shape: tuple[int, int, int], seed: int) -> None:
        self._decoder, self._augment, self._shape, self._seed = decoder, augment, shape, seed

    def __call__(self, batch: tuple[int, IntArray, IntArray]) -> Tensor:
        """uint8 (B, C, S, S)."""
        epoch, samples, copies = batch
        self._decoder.prefetch(dict.fromkeys(samples.tolist()))
        pixels = np.empty((len(samples), *self._shape), dtype=np.uint8)
        for out, sample, copy in zip(pixels, samples.tolist(), copies.tolist(), strict=True):
            self._augment(self._decoder, sample, ("augmentation", self._seed, epoch, sample, copy), out)
        return torch.from_numpy(pixels)


def exactly(transform: Callable[[Image.Image], Tensor]) -> Augment:
    """By a transform that draws from the global generators, which are seeded around it."""
    return partial(_exactly, transform)


def _exactly(
    transform: Callable[[Image.Image], Tensor],
    decoder: Decoder,
    index: int,
    seed: tuple[object, ...],
    out: npt.NDArray[np.uint8],
) -> None:
    picture = decoder.image(index)
    with seeded(*seed):
        out[:] = transform(picture).numpy()


def quickly(fast: FastAugmentation) -> Augment:
    """By the fast path, whose draws come from one generator an image."""
    return partial(_quickly, fast)


def _quickly(
    fast: FastAugmentation, decoder: Decoder, index: int, seed: tuple[object, ...], out: npt.NDArray[np.uint8]
) -> None:
    fast(decoder, index, derived_rng(*seed), out)


class ArrayPictures:
    """Pixels in memory as pictures. `pixels`: uint8 (n, C, S, S), grey or RGB."""

    def __init__(self, pixels: "np.ndarray") -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def image(self, index: int) -> Image.Image:
        pixels = self._pixels[index]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


TrainingLoader = InMemoryLoader | DecodingLoader


def training_loader(
    images: DecodedSplit | EncodedSplit,
    recipe: Recipe,
    seed: int,
    image_size: int,
    mean: Sequence[float],
    parts: int | None = None,
    workers: int = 0,
    world: World = SINGLE_PROCESS,
    cache_bytes: int = 0,
) -> TrainingLoader:
    """The batches that a recipe asks for.

    Args:
        images: pixels in memory, or images that are decoded when they are wanted.
        seed: of order and augmentation.
        mean: of pixels in [0, 1], one a channel.
        parts: batches to an optimiser step, of all ranks together; by default the recipe's accumulation, 1 where it is
            to be found.
        workers: processes that decode and augment ahead, where images are worked on one at a time.
        world: which of the processes that train together this is.
        cache_bytes: of memory in which decoded images are kept; what fits is decoded once. No result depends on it.

    Raises:
        AutoFormerError: so much memory is not to be had.
    """
    labels, augmentation = torch.from_numpy(images.labels), recipe.augmentation
    batch_size = recipe.batch_size // parts if parts else recipe.forward_images
    order = BatchOrder(seed, len(labels), recipe.batch_size, batch_size, augmentation.repeats, world)
    if isinstance(images, DecodedSplit) and not augmentation.by_image:
        return InMemoryLoader(torch.from_numpy(images.pixels), labels, order, augmentation)
    pictures = ArrayPictures(images.pixels) if isinstance(images, DecodedSplit) else images.pictures
    if augmentation.fast:
        augment = quickly(FastAugmentation(augmentation, image_size, mean))
    else:
        augment = exactly(picture_transform(augmentation, image_size, mean))
    shape = (len(mean), image_size, image_size)
    return DecodingLoader(Decoder(pictures, cache_bytes), labels, order, augment, shape, workers)

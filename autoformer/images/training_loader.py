"""Training images by batch number: sample order, repeated augmentation, decoding in worker processes.

`batch(number)` depends on its argument alone, not on earlier batches or the number of workers. So training resumes in
mid-epoch.

Dimensions: n images, B images of a batch, C channels, S pixels on a side.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.images.archives import EncodedSplit
from autoformer.images.augmentation import picture_transform
from autoformer.images.batches import augment
from autoformer.images.cache import Pixels
from autoformer.images.decoding import Decoder
from autoformer.images.fast_augmentation import FastAugmentation
from autoformer.images.prefetch import prefetched
from autoformer.images.split_images import DecodedSplit
from autoformer.randomness import IntArray, derived_rng, repeated_order, seeded
from autoformer.recipe import Augmentation, Recipe

PREFETCH_FACTOR = 4  # batches that each worker decodes in advance


class Batch(NamedTuple):
    pixels: Tensor  # uint8 (B, C, S, S)
    labels: Tensor  # int64 (B,)


class BatchOrder:
    """The samples of each batch. Ranks take the batches of one order in turn, so W ranks see the same images as one.

    Args:
        samples: n.
        images_per_step: over all ranks. An incomplete optimiser step at the end of an epoch is dropped.
        batch_size: B, the images of a micro-batch.
        repeats: copies of each sample, for repeated augmentation.
        world: each rank numbers its own batches from 0.
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
        """Epoch, samples (B,) and copy numbers (B,) of this rank's batch `number`."""
        epoch, position = divmod(number * self.world.size + self.world.rank, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, repeated_order(self.seed, epoch, self.samples, self.repeats)
        here = slice(position * self.batch_size, (position + 1) * self.batch_size)
        samples, copies = self._epoch[1]
        return epoch, samples[here], copies[here]


class InMemoryLoader:
    """Images in memory, uint8 (n, C, S, S), with labels (n,), augmented batch by batch."""

    def __init__(self, pixels: Tensor, labels: Tensor, order: BatchOrder, augmentation: Augmentation) -> None:
        self._pixels, self._labels, self.order, self._augmentation = pixels, labels, order, augmentation

    def batch(self, number: int) -> Batch:
        epoch, samples, copies = self.order.batch(number)
        index = torch.from_numpy(samples)
        keys = samples + copies * self.order.samples  # each copy has its own draws
        pixels = augment(self._pixels[index], keys, self._augmentation, self.order.seed, epoch)
        return Batch(pixels, self._labels[index])

    def close(self) -> None:
        pass


class DecodingLoader:
    """Images that are decoded and augmented one at a time.

    Args:
        labels: int64 (n,).
        augmentation: the fast path, or a transform to uint8 (C, S, S) that draws from the global generators.
        shape: C, S, S.
        workers: processes that decode in advance; 0 to decode in this process.
    """

    def __init__(
        self,
        decoder: Decoder,
        labels: Tensor,
        order: BatchOrder,
        augmentation: FastAugmentation | Callable[[Image.Image], Tensor],
        shape: tuple[int, int, int],
        workers: int,
    ) -> None:
        self._decoder, self._labels, self.order, self._augmentation = decoder, labels, order, augmentation
        self._shape, self._workers = shape, workers
        self._next = 0
        self._stream: Iterator[Tensor] | None = None

    def batch(self, number: int) -> Batch:
        if self._stream is None or self._next != number:
            self.close()
            self._stream = prefetched(
                self._decode, map(self.order.batch, count(number)), self._workers, PREFETCH_FACTOR
            )
        self._next = number + 1
        _, samples, _ = self.order.batch(number)
        return Batch(next(self._stream), self._labels[torch.from_numpy(samples)])

    def close(self) -> None:
        """Stop the workers."""
        self._stream = None

    def _decode(self, batch: tuple[int, IntArray, IntArray]) -> Tensor:
        """uint8 (B, C, S, S)."""
        epoch, samples, copies = batch
        self._decoder.prefetch(dict.fromkeys(samples.tolist()))
        pixels = np.empty((len(samples), *self._shape), dtype=np.uint8)
        for out, sample, copy in zip(pixels, samples.tolist(), copies.tolist(), strict=True):
            key = ("augmentation", self.order.seed, epoch, sample, copy)
            if isinstance(self._augmentation, FastAugmentation):
                self._augmentation(self._decoder, sample, derived_rng(*key), out)
            else:
                image = self._decoder.image(sample)
                with seeded(*key):
                    out[:] = self._augmentation(image).numpy()
        return torch.from_numpy(pixels)


class ArrayPictures:
    """Pixels in memory, uint8 (n, C, S, S), as grey or RGB images."""

    def __init__(self, pixels: Pixels) -> None:
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
    micro_batches: int | None = None,
    workers: int = 0,
    world: World = SINGLE_PROCESS,
    cache_bytes: int = 0,
) -> TrainingLoader:
    """The training batches of a recipe.

    Args:
        seed: seed of order and augmentation.
        mean: of pixels in [0, 1], one per channel.
        micro_batches: per optimiser step, over all ranks; by default the recipe's accumulation, 1 for "auto".
        workers: processes that decode and augment in advance, unless whole batches are augmented in memory.
        cache_bytes: size of the cache of decoded images. No result depends on it.

    Raises:
        AutoFormerError: not enough memory for the cache.
    """
    labels, augmentation = torch.from_numpy(images.labels), recipe.augmentation
    batch_size = recipe.batch_size // micro_batches if micro_batches else recipe.forward_images
    order = BatchOrder(seed, len(labels), recipe.batch_size, batch_size, augmentation.repeats, world)
    if isinstance(images, DecodedSplit) and not augmentation.by_image:
        return InMemoryLoader(torch.from_numpy(images.pixels), labels, order, augmentation)
    pictures = ArrayPictures(images.pixels) if isinstance(images, DecodedSplit) else images.pictures
    make = FastAugmentation if augmentation.fast else picture_transform
    shape = (len(mean), image_size, image_size)
    transform = make(augmentation, image_size, mean)
    return DecodingLoader(Decoder(pictures, cache_bytes), labels, order, transform, shape, workers)

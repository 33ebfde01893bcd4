"""Images that are decoded during evaluation, for splits that do not fit into memory.

Dimensions: B images of a batch, C channels, S pixels on a side.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from autoformer.images.decoding import Decoder, Pictures
from autoformer.images.prefetch import prefetched

PREFETCH_FACTOR = 2  # batches that each worker decodes in advance


class StreamedPixels:
    """Batches of model inputs, in order, without padding.

    Args:
        pictures: the images; picklable if workers are not forked.
        pixels_of: decoded image -> uint8 (C, S, S), such as `autoformer.images.pixels.model_pixels`.
        batch_size: B; the last batch may be smaller.
        workers: processes that decode; 0 to decode in this process.
    """

    def __init__(
        self,
        pictures: Pictures,
        pixels_of: Callable[[Image.Image], npt.NDArray[np.uint8]],
        batch_size: int,
        workers: int = 0,
    ) -> None:
        self.images = len(pictures)
        self._batches = [range(self.images)[start : start + batch_size] for start in range(0, self.images, batch_size)]
        self._decoder, self._pixels_of, self._workers = Decoder(pictures), pixels_of, workers

    def __iter__(self) -> Iterator[Tensor]:
        """uint8 (B, C, S, S). Raises `AutoFormerError` for an image that cannot be decoded."""
        return prefetched(self._decode, self._batches, self._workers, PREFETCH_FACTOR)

    def _decode(self, indices: Sequence[int]) -> Tensor:
        self._decoder.prefetch(indices)
        return torch.from_numpy(np.stack([self._pixels_of(self._decoder.image(index)) for index in indices]))

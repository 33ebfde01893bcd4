"""Images that are decoded while those before them are classified: what does not fit into memory is evaluated all same.

Dimensions: n images, B images of a batch, C channels, S pixels on a side.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.images.decoding import Decoder, Pictures
from autoformer.images.prefetch import prefetched

PREFETCH_FACTOR = 2  # batches that a worker decodes before they are asked for


class StreamedPixels:
    """Images as a model sees them, batch by batch, in their order: each once, none padded, none left out.

    Args:
        pictures: n images. Workers are forked, or it is picklable.
        pixels_of: a picture as uint8 (C, S, S), the same for each call; `autoformer.images.pixels.model_pixels`, say.
        batch_size: B; the last batch has what is left.
        workers: processes that decode; 0 for none, then the caller's own does.
        world: which of the processes that evaluate together this is. It sees its share of the images, every
            `count`-th, and `autoformer.evaluation.gather_logits` brings the shares together.
        limit: the first so many images only.
    """

    def __init__(
        self,
        pictures: Pictures,
        pixels_of: Callable[[Image.Image], npt.NDArray[np.uint8]],
        batch_size: int,
        workers: int = 0,
        world: World = SINGLE_PROCESS,
        limit: int | None = None,
    ) -> None:
        share = world.shard(range(len(pictures))[:limit])
        self.images = len(share)
        self._batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
        self._decoder, self._pixels_of, self._workers = Decoder(pictures), pixels_of, workers

    def __iter__(self) -> Iterator[Tensor]:
        """uint8 (B, C, S, S). Raises `AutoFormerError` for an image that cannot be decoded."""
        return prefetched(self._decode, self._batches, self._workers, PREFETCH_FACTOR)

    def _decode(self, indices: Sequence[int]) -> Tensor:
        self._decoder.prefetch(indices)
        return torch.from_numpy(np.stack([self._pixels_of(self._decoder.image(index)) for index in indices]))

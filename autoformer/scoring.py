"""Score subnets of a supernet on decoded images in memory.

Dimensions: N images of the split, m images of a task, B images of a batch, C channels, S pixels on a side.
"""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autoformer.devices import autocast, halve_on_oom
from autoformer.errors import AutoFormerError
from autoformer.images.batches import Normalisation
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.recipe import Dtype
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet

_GPU_FRACTION = 0.5  # of the free memory is for pixels, the rest for forward passes


class SubnetScorer:
    """Scores subnets with weights inherited from the supernet.

    Pixels are on the device if they fit into half of its free memory, otherwise in host memory, and are copied through
    pinned memory during the computation. A batch that does not fit into memory is halved, down to single images, which
    changes results by rounding.

    Args:
        supernet: on its device, in evaluation mode.
        images: the N images.
        card: for the pixel statistics.
        batch_size: B.
        precision: precision of the forward pass; logits and loss are float32.
    """

    def __init__(
        self,
        supernet: Supernet,
        images: DecodedSplit,
        card: DatasetCard,
        batch_size: int,
        precision: Dtype = "float32",
    ) -> None:
        self.supernet, self.batch_size, self.precision = supernet, batch_size, precision
        self.device = supernet.cls_token.device
        self.pixels = _placed(torch.from_numpy(images.pixels), self.device)
        self.labels = torch.from_numpy(images.labels).to(self.device)
        self.normalise = Normalisation(card.mean, card.std, self.device)

    def __call__(self, tasks: Iterable[ScoringTask]) -> Iterator[ScoringResult]:
        """The result of each task, in order. Raises `AutoFormerError` if a logit is not finite.

        On a GPU the next task is queued before a result is read, so the GPU is never idle.
        """
        queued = 1 if self.device.type == "cuda" else 0
        waiting: list[tuple[SubnetSpec, Tensor, Tensor]] = []
        for spec, images in tasks:
            waiting.append((spec, *self._start(spec, images)))
            while len(waiting) > queued:
                yield self._result(*waiting.pop(0))
        for started in waiting:
            yield self._result(*started)

    @torch.inference_mode()
    def _start(self, spec: SubnetSpec, images: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Correctness (m,) and losses (m,) on the device, without synchronisation."""
        parts = [halve_on_oom(partial(self._score, spec), *batch) for batch in self._batches(images)]
        return torch.cat([correct for correct, _ in parts]), torch.cat([losses for _, losses in parts])

    def _batches(self, images: npt.NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 (B, C, S, S) and labels (B,) on the device; the next batch is copied during the computation."""
        index = torch.from_numpy(images)
        device_index = index.to(self.device, non_blocking=True)
        if self.pixels.device == self.device:
            for part in device_index.split(self.batch_size):
                yield self.pixels[part], self.labels[part]
            return
        stream = torch.cuda.Stream(self.device)

        def copy(part: Tensor) -> Tensor:
            gathered = torch.empty((len(part), *self.pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
            torch.index_select(self.pixels, 0, part, out=gathered)
            with torch.cuda.stream(stream):
                return gathered.to(self.device, non_blocking=True)

        parts = index.split(self.batch_size)
        following = copy(parts[0])
        for part, next_part in zip(device_index.split(self.batch_size), [*parts[1:], None], strict=True):
            torch.cuda.current_stream(self.device).wait_stream(stream)
            batch = following
            batch.record_stream(torch.cuda.current_stream(self.device))
            if next_part is not None:
                following = copy(next_part)
            yield batch, self.labels[part]

    def _score(self, spec: SubnetSpec, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Correctness (B,) and losses (B,)."""
        with autocast(self.device, self.precision):
            logits = self.supernet(self.normalise(pixels), spec).float()
        return logits.argmax(dim=1) == labels, cross_entropy(logits, labels, reduction="none")

    def _result(self, spec: SubnetSpec, correct: Tensor, losses: Tensor) -> ScoringResult:
        result = ScoringResult(correct.cpu().numpy(), losses.cpu().numpy())
        if not np.isfinite(result.losses).all():
            advice = "its weights have diverged; train at a lower rate"
            if self.precision == "float16":
                advice = "score in bfloat16 or float32"
            raise AutoFormerError(f"a logit of subnet {spec.to_json()} is not finite in {self.precision}: {advice}")
        return result


def _placed(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels on the device, or in host memory if they are too large for a GPU."""
    if device.type == "cuda" and pixels.nbytes > _GPU_FRACTION * torch.cuda.mem_get_info(device)[0]:
        return pixels
    return pixels.to(device)

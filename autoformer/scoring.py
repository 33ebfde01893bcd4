"""Scores subnets of a supernet on images that are decoded once and stay in memory.

Letters in shapes: N images of the split, m images to answer, B images of a batch, C channels, S pixels on a side.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

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
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet

_SHARE_OF_FREE = 0.5  # of a GPU's free memory; the rest is for what a forward pass needs


class SubnetScorer:
    """Answers with weights inherited from the supernet, without gradients.

    The bytes of all images lie on the device where they fit in half of its free memory, else in the host's memory, in
    pages that the device can copy from while it works. A batch that does not fit into memory is halved, down to single
    images: that moves a result by its rounding.

    Args:
        supernet: on its device, in evaluation mode.
        images: N of them.
        card: of their data set, for its pixel statistics.
        batch_size: B.
        precision: of the forward pass; logits and loss are float32.
    """

    def __init__(
        self,
        supernet: Supernet,
        images: DecodedSplit,
        card: DatasetCard,
        batch_size: int,
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        self.supernet, self.batch_size, self.precision = supernet, batch_size, precision
        self.device = supernet.cls_token.device
        self.pixels = _placed(torch.from_numpy(images.pixels), self.device)
        self.labels = torch.from_numpy(images.labels).to(self.device)
        self.normalise = Normalisation(card.mean, card.std, self.device)

    def __call__(self, tasks: Iterable[ScoringTask]) -> Iterator[ScoringResult]:
        """The answers to each task, in their order.

        On a GPU the next task is under way before the answers to one are waited for, so that it never stands still.

        Raises:
            AutoFormerError: a logit is not finite.
        """
        behind = 1 if self.device.type == "cuda" else 0
        waiting: list[tuple[SubnetSpec, Tensor, Tensor]] = []
        for spec, images in tasks:
            waiting.append((spec, *self._start(spec, images)))
            while len(waiting) > behind:
                yield self._fetch(*waiting.pop(0))
        for started in waiting:
            yield self._fetch(*started)

    @torch.inference_mode()
    def _start(self, spec: SubnetSpec, images: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Right or wrong (m,) and losses (m,), both on the device, without waiting for it."""
        parts = [halve_on_oom(partial(self._answer, spec), *batch) for batch in self._batches(images)]
        return torch.cat([right for right, _ in parts]), torch.cat([losses for _, losses in parts])

    def _batches(self, images: npt.NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 (B, C, S, S) and labels (B,) on the device, the next copied there while the last is at work."""
        wanted = torch.from_numpy(images)
        there = wanted.to(self.device, non_blocking=True)
        if self.pixels.device == self.device:
            for part in there.split(self.batch_size):
                yield self.pixels[part], self.labels[part]
            return
        copies = torch.cuda.Stream(self.device)

        def copied(part: Tensor) -> Tensor:
            gathered = torch.empty((len(part), *self.pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
            torch.index_select(self.pixels, 0, part, out=gathered)
            with torch.cuda.stream(copies):
                return gathered.to(self.device, non_blocking=True)

        parts = wanted.split(self.batch_size)
        ahead = copied(parts[0])
        for part, following in zip(there.split(self.batch_size), [*parts[1:], None], strict=True):
            torch.cuda.current_stream(self.device).wait_stream(copies)
            batch = ahead
            batch.record_stream(torch.cuda.current_stream(self.device))
            if following is not None:
                ahead = copied(following)
            yield batch, self.labels[part]

    def _answer(self, spec: SubnetSpec, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Right or wrong (B,) and losses (B,) of a batch."""
        with autocast(self.device, self.precision):
            logits = self.supernet(self.normalise(pixels), spec).float()
        return logits.argmax(dim=1) == labels, cross_entropy(logits, labels, reduction="none")

    def _fetch(self, spec: SubnetSpec, right: Tensor, losses: Tensor) -> ScoringResult:
        found, loss_sum = right.cpu().numpy(), float(losses.cpu().double().sum())
        if not np.isfinite(loss_sum):
            answer = "its weights have diverged; train at a lower rate"
            if self.precision == "float16":
                answer = "score in bfloat16 or float32"
            raise AutoFormerError(f"a logit of subnet {spec.to_json()} is not finite in {self.precision}: {answer}")
        return ScoringResult(found, loss_sum)


def _placed(pixels: Tensor, device: torch.device) -> Tensor:
    """On the device; beyond a share of a GPU's free memory they stay with the host."""
    if device.type == "cuda" and pixels.nbytes > _SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]:
        return pixels
    return pixels.to(device)

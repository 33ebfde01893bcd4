"""Gradients summed over the ranks of a job, in flat buckets, while the last backward pass of a step still runs.

What DistributedDataParallel does (Li et al., arXiv 2006.15704), for a supernet. Every rank takes the same subnets, so
every rank has gradients of the same parameters, and has them in the same order. With that known there is nothing to
ask: DDP, with `find_unused_parameters`, walks the graph of each pass, sends zeros for what no rank has used, and waits
for the device to hear which parameters those were. Here a bucket is what has come, unused blocks are not sent, and
keep no gradient, and the host waits for nothing. What came of it is in benchmarks/ranks.py, DDP beside it.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn

from autoformer.distributed import World

BUCKET_BYTES = 25 * 2**20  # DDP's: large enough for the bandwidth, small enough to begin early


class GradientSync:
    """The gradients of a model's parameters, summed over ranks.

    On making it, all ranks take the weights of rank 0.

    Args:
        model: the same on all ranks.
        bucket_bytes: gradients are sent as soon as there are so many.
    """

    def __init__(self, model: nn.Module, world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.world, self.bucket_bytes = world, bucket_bytes
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._listening = False
        self._waiting: list[Tensor] = []  # parameters whose gradient is complete and not yet sent
        self._waiting_bytes = 0
        self._sent: list[distributed.Work] = []
        self._done: set[int] = set()
        if world.size == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.detach(), src=0)
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._complete)

    @contextlib.contextmanager
    def of_last_pass(self, last: bool = True) -> Iterator[None]:
        """Around the backward passes of a step. When the `last` one is left, gradients are those of all ranks."""
        if self.world.size == 1 or not last:
            yield
            return
        self._listening, self._done, self._waiting, self._waiting_bytes, self._sent = True, set(), [], 0, []
        try:
            yield
        finally:
            self._listening = False
        for parameter in self.parameters:  # of an earlier pass alone
            if parameter.grad is not None and id(parameter) not in self._done:
                self._add(parameter)
        self._send()
        for work in self._sent:
            work.wait()  # on a GPU its stream waits, not the host
        self._sent = []

    def _complete(self, parameter: Tensor) -> None:
        if self._listening:
            self._add(parameter)

    def _add(self, parameter: Tensor) -> None:
        self._done.add(id(parameter))
        self._waiting.append(parameter)
        self._waiting_bytes += parameter.nbytes
        if self._waiting_bytes >= self.bucket_bytes:
            self._send()

    def _send(self) -> None:
        """Begin the sum of what waits; its gradients become views of one flat tensor."""
        if not self._waiting:
            return
        bucket, self._waiting, self._waiting_bytes = self._waiting, [], 0
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in bucket])
        start = 0
        for parameter in bucket:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        work = distributed.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append(work)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad

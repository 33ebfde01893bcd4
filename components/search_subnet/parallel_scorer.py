"""Score candidates on several ranks, usually one a GPU."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from autoformer.complexity import count_macs
from autoformer.distributed import World
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.space import SearchSpace

_ROUND_IMAGES = 4000  # per rank (at least one task) before rank 0 stores the results


class ParallelScorer:
    """Distributes tasks over the ranks: rank 0 calls it, the others `serve` until rank 0 stops them.

    Tasks are sorted by MACs and dealt in turn, which keeps the ranks busy for equal times.

    Args:
        world: this rank and the number of ranks.
        space: space of the subnets.
        score: runs tasks in order, on this rank's device.
    """

    def __init__(
        self, world: World, space: SearchSpace, score: Callable[[Iterable[ScoringTask]], Iterator[ScoringResult]]
    ) -> None:
        self.world, self.space, self.score = world, space, score

    def __call__(self, tasks: Sequence[ScoringTask]) -> Iterator[tuple[ScoringTask, ScoringResult]]:
        """Tasks with their results. A single process yields each result immediately."""
        if self.world.size == 1:
            yield from zip(tasks, self.score(tasks), strict=True)
            return
        left = sorted(tasks, key=lambda task: -count_macs(self.space, task.spec, "ours") * len(task.images))
        while left:
            count = self.world.size * max(1, _ROUND_IMAGES // len(left[0].images))
            dealt, left = left[:count], left[count:]
            self.world.broadcast(dealt)
            for rank, results in enumerate(self._score_shards(dealt)):
                yield from zip(dealt[rank :: self.world.size], results, strict=True)

    def serve(self) -> None:
        """Score the tasks that rank 0 distributes, until `stop`."""
        no_tasks: list[ScoringTask] = []
        while dealt := self.world.broadcast(no_tasks):
            self._score_shards(dealt)

    def stop(self) -> None:
        """On rank 0: end `serve` on the other ranks."""
        if self.world.size > 1:
            self.world.broadcast([])

    def _score_shards(self, dealt: Sequence[ScoringTask]) -> list[list[ScoringResult]]:
        return self.world.all_gather(list(self.score(self.world.shard(dealt))))

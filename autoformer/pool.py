"""Random legal candidates of a search, each subnet once. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from autoformer.candidates import Candidate, Origin
from autoformer.complexity import COUNTED_MACS
from autoformer.errors import AutoFormerError, quantity
from autoformer.latency import LatencyTable
from autoformer.limits import Limits, move_towards
from autoformer.space import SearchSpace, SubnetSpec


@dataclass
class Pool:
    """Draws legal candidates, each subnet once."""

    space: SearchSpace
    limits: Limits
    tries: int
    rng: Random
    table: LatencyTable | None = None
    seen: set[SubnetSpec] = field(default_factory=set)

    def fresh(self, spec: SubnetSpec, origin: Origin, generation: int, parents: Sequence[int] = ()) -> list[Candidate]:
        """The candidate of `spec` as a list of one; empty if it is illegal or was drawn before."""
        if spec in self.seen:
            return []
        if not self.limits.allow(self.limits.count(self.space, spec, self.table)):
            return []
        self.seen.add(spec)
        return [Candidate.counted(self.space, self.table, len(self.seen) - 1, spec, origin, generation, parents)]

    def keep(self, drawn: Sequence[Candidate], chosen: Sequence[int]) -> list[Candidate]:
        """Keep some of the last drawn candidates, by index, with new ids; the others may be drawn again."""
        self.seen -= {candidate.spec for candidate in drawn}
        first = len(self.seen)
        kept = [replace(drawn[place], id=first + number) for number, place in enumerate(chosen)]
        self.seen |= {candidate.spec for candidate in kept}
        return kept

    def random(self, count: int, origin: Origin, generation: int = 0) -> list[Candidate]:
        """Up to `count` random candidates: uniform draws first, then draws moved towards the limits."""
        candidates: list[Candidate] = []
        for move, tries in ((False, self.tries), (True, min(self.tries, 20 * count))):
            for _ in range(tries):
                if len(candidates) == count:
                    return candidates
                spec = self.space.sample(self.rng)
                if move:
                    spec = move_towards(self.space, spec, self.limits, self.rng, self.table)
                candidates += self.fresh(spec, origin, generation)
        return candidates

    def random_or_error(self, count: int, origin: Origin) -> list[Candidate]:
        """`random` for generation 0. Raises `AutoFormerError` if there is no candidate."""
        candidates = self.random(count, origin)
        if candidates:
            return candidates
        low, high = (self.limits.count(self.space, spec) for spec in (self.space.smallest, self.space.largest))
        macs, latencies = COUNTED_MACS[self.limits.relative_position], ""
        if self.table:
            fastest, slowest = self.table.extremes(self.space)
            latencies = f"; latencies are {fastest:.4g} to {slowest:.4g} ms"
        raise AutoFormerError(
            f"no legal candidate in {quantity(self.tries, 'try')} under {self.limits}; in '{self.space.name}' the "
            f"smallest subnet has {low['params_m']:,} parameters and {low['macs_g']:,} {macs}, the largest "
            f"{high['params_m']:,} and {high['macs_g']:,}{latencies}; widen the limits"
        )

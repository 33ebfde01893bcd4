"""Evolutionary search for the best subnet of a trained supernet (paper section 3.4). Torch-free.

The official algorithm, without its faults: the initial population and every generation are ranked; a child is
legal by construction, whatever its parents' depths; loops are bounded and end in an error that says why; a
candidate is scored once. The caller scores: `ask` gives the next candidates, `tell` takes their scores, so the
search itself is a function of the rng and the scores, and is resumed by telling it again what it knew. A candidate
that was stopped before it was scored whole (`autoformer.racing`) becomes no parent, and is never the best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Self

from pydantic import Field, model_validator

from autoformer.candidates import Candidate, Origin, ScoredCandidate
from autoformer.complexity import count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.frozen import Frozen
from autoformer.limits import Limits as Limits
from autoformer.limits import towards
from autoformer.space import SearchSpace, SubnetSpec


class EvolutionSettings(Frozen):
    """How evolution goes. The defaults are the official ones (`evolution.py` of the official code)."""

    population: int = Field(50, gt=0, description="candidates of a generation")
    generations: int = Field(20, ge=0, description="after the initial population")
    parents: int = Field(10, gt=0, description="best candidates so far that mutate and cross over")
    mutations: int = Field(25, ge=0, description="of a generation, made by changing one parent")
    crossovers: int = Field(25, ge=0, description="of a generation, made of two parents; random ones fill it up")
    mutation_probability: float = Field(0.2, ge=0, le=1, description="for each block's heads and MLP ratio")
    structure_probability: float = Field(0.4, ge=0, le=1, description="for depth and for width")
    tries: int = Field(10_000, gt=0, description="draws before a population counts as impossible to fill")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.parents > self.population:
            raise ValueError(f"parents {self.parents} are more than population {self.population}")
        if self.mutations + self.crossovers > self.population:
            raise ValueError(
                f"mutations {self.mutations} + crossovers {self.crossovers} are more than population {self.population}"
            )
        return self


def mutate(space: SearchSpace, parent: SubnetSpec, rng: Random, settings: EvolutionSettings) -> SubnetSpec:
    """A subnet near `parent`.

    With `structure_probability` a new depth is drawn (blocks are cut off, or random ones appended); then each
    block's MLP ratio, then each block's heads, is drawn anew with `mutation_probability`; then the width with
    `structure_probability`. A drawn value may equal the old.
    """
    choices = space.choices
    depth = rng.choice(choices.depth) if rng.random() < settings.structure_probability else parent.depth
    mlp_ratio, num_heads = list(parent.mlp_ratio[:depth]), list(parent.num_heads[:depth])
    mlp_ratio += [rng.choice(choices.mlp_ratio) for _ in range(depth - len(mlp_ratio))]
    num_heads += [rng.choice(choices.num_heads) for _ in range(depth - len(num_heads))]
    p = settings.mutation_probability
    mlp_ratio = [rng.choice(choices.mlp_ratio) if rng.random() < p else value for value in mlp_ratio]
    num_heads = [rng.choice(choices.num_heads) if rng.random() < p else value for value in num_heads]
    embed_dim = rng.choice(choices.embed_dim) if rng.random() < settings.structure_probability else parent.embed_dim
    return SubnetSpec(depth, embed_dim, tuple(num_heads), tuple(mlp_ratio))


def cross(first: SubnetSpec, second: SubnetSpec, rng: Random) -> SubnetSpec:
    """A child that has each value from either parent, with equal chance.

    A block that only one parent has comes from that parent, so the child is whole whatever the depths.
    """
    depth = rng.choice((first.depth, second.depth))

    def block(values: tuple[float, ...], others: tuple[float, ...], index: int) -> float:
        return rng.choice([parent[index] for parent in (values, others) if index < len(parent)])

    mlp_ratio = tuple(block(first.mlp_ratio, second.mlp_ratio, index) for index in range(depth))
    num_heads = tuple(int(block(first.num_heads, second.num_heads, index)) for index in range(depth))
    return SubnetSpec(depth, rng.choice((first.embed_dim, second.embed_dim)), num_heads, mlp_ratio)


@dataclass
class _Pool:
    """Draws legal candidates that were not drawn before."""

    space: SearchSpace
    limits: Limits
    tries: int
    rng: Random
    seen: set[SubnetSpec] = field(default_factory=set)
    drawn: int = 0

    def fresh(self, spec: SubnetSpec, origin: Origin, generation: int, parents: Sequence[int] = ()) -> Candidate | None:
        """The candidate of `spec`, or None where it is not legal or was drawn before."""
        if spec in self.seen:
            return None
        params, macs = count_params(self.space, spec), count_macs(self.space, spec)
        if not self.limits.allow(params, macs):
            return None
        self.seen.add(spec)
        self.drawn += 1
        return Candidate(self.drawn - 1, spec, origin, generation, tuple(parents), params, macs)

    def random(self, count: int, origin: Origin, generation: int) -> list[Candidate]:
        """Up to `count` random candidates; fewer where `tries` draws find no more.

        Where uniform draws find too few, more are moved towards the limits.
        """
        found: list[Candidate] = []
        for move, tries in ((False, self.tries), (True, min(self.tries, 20 * count))):
            for _ in range(tries):
                if len(found) == count:
                    return found
                spec = self.space.sample(self.rng)
                if move:
                    spec = towards(self.space, spec, self.limits, self.rng)
                candidate = self.fresh(spec, origin, generation)
                found += [candidate] if candidate else []
        return found

    def impossible(self) -> AutoFormerError:
        low, high = self.space.smallest, self.space.largest
        return AutoFormerError(
            f"no legal candidate in {self.tries:,} tries under {self.limits}; in '{self.space.name}' the smallest "
            f"subnet has {count_params(self.space, low):,} parameters and {count_macs(self.space, low):,} "
            f"multiply-adds, the largest {count_params(self.space, high):,} and {count_macs(self.space, high):,}; "
            "widen the limits"
        )


class Evolution:
    """Ask for a generation, tell its scores, until `ask` gives none.

    Generation 0 is random. Every later one has mutants and children of the best `parents` of all generations
    so far, and random candidates to fill it up. It ends early where no unseen legal candidate is left.
    """

    def __init__(self, space: SearchSpace, limits: Limits, settings: EvolutionSettings, rng: Random) -> None:
        self.space, self.settings, self.rng = space, settings, rng
        self.generation = 0
        self.scored: list[ScoredCandidate] = []
        self._pool = _Pool(space, limits, settings.tries, rng)

    def ask(self) -> list[Candidate]:
        """The candidates of the next generation; empty at the end.

        Raises `AutoFormerError` where no legal candidate is found for generation 0.
        """
        settings = self.settings
        if self.generation > settings.generations:
            return []
        if self.generation == 0:
            candidates = self._pool.random(settings.population, "initial", 0)
            if not candidates:
                raise self._pool.impossible()
            return candidates
        best = self.best(settings.parents)
        candidates = self._mutants(best) + self._children(best)
        return candidates + self._pool.random(settings.population - len(candidates), "fill", self.generation)

    def tell(self, scored: Sequence[ScoredCandidate]) -> None:
        """Record the scores of all candidates of the last `ask`."""
        self.scored += scored
        self.generation += 1

    def best(self, count: int) -> list[ScoredCandidate]:
        """The best complete candidates of all generations so far, best first."""
        complete = [scored for scored in self.scored if scored.complete]
        return sorted(complete, key=lambda scored: scored.rank)[:count]

    def _mutants(self, best: Sequence[ScoredCandidate]) -> list[Candidate]:
        mutants: list[Candidate] = []
        for _ in range(10 * self.settings.mutations):
            if len(mutants) == self.settings.mutations:
                break
            parent = self.rng.choice(best).candidate
            spec = mutate(self.space, parent.spec, self.rng, self.settings)
            mutant = self._pool.fresh(spec, "mutation", self.generation, [parent.id])
            mutants += [mutant] if mutant else []
        return mutants

    def _children(self, best: Sequence[ScoredCandidate]) -> list[Candidate]:
        """Children of two parents, the second of the first one's depth where there is another such."""
        children: list[Candidate] = []
        for _ in range(10 * self.settings.crossovers):
            if len(children) == self.settings.crossovers or len(best) < 2:
                break
            first = self.rng.choice(best)
            others = [scored for scored in best if scored is not first]
            alike = [scored for scored in others if scored.candidate.spec.depth == first.candidate.spec.depth]
            second = self.rng.choice(alike or others)
            spec = cross(first.candidate.spec, second.candidate.spec, self.rng)
            child = self._pool.fresh(spec, "crossover", self.generation, [first.candidate.id, second.candidate.id])
            children += [child] if child else []
        return children


def random_baseline(space: SearchSpace, limits: Limits, count: int, tries: int, rng: Random) -> list[Candidate]:
    """Random search of the same budget: `count` different legal candidates, drawn without looking at a score.

    Raises `AutoFormerError` where there is none.
    """
    pool = _Pool(space, limits, tries, rng)
    candidates = pool.random(count, "baseline", 0)
    if not candidates:
        raise pool.impossible()
    return candidates

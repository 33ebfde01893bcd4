"""Evolutionary search for the best subnet of a trained supernet (paper section 3.4). Torch-free.

The official algorithm without its faults: the initial population and every generation are ranked, children are legal by
construction whatever their parents' depths, loops are bounded, and each candidate is scored once.

`Evolution` has an ask-and-tell interface: the caller scores the candidates. The search is a function of the rng and the
scores, so passing the stored scores to `tell` again resumes it. A candidate that was stopped early
(`autoformer.racing`) is never a parent or the best.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from autoformer.candidates import Candidate, Origin, ScoredCandidate, check_finite
from autoformer.errors import AutoFormerError
from autoformer.frozen import Frozen
from autoformer.latency import LatencyTable
from autoformer.limits import UNITS, Limits
from autoformer.pool import Pool
from autoformer.predictor import predict
from autoformer.racing import Objective
from autoformer.space import SearchSpace, SubnetSpec


class EvolutionSettings(Frozen):
    """Settings of the evolution; the defaults are those of the official `evolution.py`."""

    method: Literal["evolution", "front"] = Field(
        "evolution",
        description="evolution: the paper's, towards the best subnet; front: NSGA-II, towards the Pareto front of the "
        "objectives",
    )
    population: int = Field(50, gt=0, description="candidates of a generation")
    generations: int = Field(20, ge=0, description="number of generations after the initial population")
    parents: int = Field(
        10,
        gt=0,
        description="number of best candidates so far that mutate and cross over; method front uses all survivors",
    )
    mutations: int = Field(25, ge=0, description="candidates of a generation that are mutants of one parent")
    crossovers: int = Field(
        25, ge=0, description="candidates of a generation with two parents; random candidates fill the rest"
    )
    mutation_probability: float = Field(
        0.2, ge=0, le=1, description="probability that a mutation redraws a block's heads, and its MLP ratio"
    )
    structure_probability: float = Field(
        0.4, ge=0, le=1, description="probability that a mutation redraws the depth, and the width"
    )
    objective: Objective = Field(
        "accuracy", description="what ranks candidates: accuracy, or the loss (mean cross entropy), which varies less"
    )
    objectives: tuple[str, ...] | None = Field(
        None,
        description="objectives of method front: the score that objective names, and one or more of the costs "
        f"{', '.join(UNITS)}; null for objective and params_m",
    )
    predictor: int | None = Field(
        None,
        gt=1,
        le=1000,
        description="offspring drawn for each one scored; a Gaussian process on the complete scores so far picks the "
        "best, and of each two random draws the first generation keeps the larger; null scores all, as the paper does",
    )
    tries: int = Field(10_000, gt=0, description="draws before a population counts as impossible to fill")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.parents > self.population:
            raise ValueError(f"parents {self.parents} are more than population {self.population}")
        if self.mutations + self.crossovers > self.population:
            raise ValueError(
                f"mutations {self.mutations} + crossovers {self.crossovers} are more than population {self.population}"
            )
        if self.predictor and self.method == "front":
            raise ValueError("a predictor ranks by objective alone; set predictor=null, or method=evolution")
        return self

    @model_validator(mode="after")
    def _has_a_front(self) -> Self:
        if self.objectives is None:
            return self
        named, known = ", ".join(self.objectives), (*get_args(Objective), *UNITS)
        if self.method != "front":
            raise ValueError(f"objectives {named} are for method front; set method=front, or objectives=null")
        if unknown := next((name for name in self.objectives if name not in known), None):
            raise ValueError(f"objectives: '{unknown}' is none of {', '.join(known)}")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives {named}: name each once")
        if [name for name in self.objectives if name not in UNITS] != [self.objective]:
            raise ValueError(
                f"objectives {named or '[]'}: expected {self.objective}, as objective = {self.objective}, and no other "
                "score; change one of the two keys"
            )
        if len(self.objectives) < 2:
            raise ValueError(f"objectives {named}: one alone has no front; add {' or '.join(UNITS)}")
        return self

    @property
    def front_objectives(self) -> tuple[str, ...]:
        return self.objectives or (self.objective, "params_m")


def mutate(space: SearchSpace, parent: SubnetSpec, rng: Random, settings: EvolutionSettings) -> SubnetSpec:
    """A mutant of `parent`.

    With `structure_probability` the depth is redrawn: the last blocks are removed, or random ones appended. Then each
    block's MLP ratio, then each block's heads, is redrawn with `mutation_probability`, and then the width with
    `structure_probability`. A redrawn value may equal the old one.
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
    """A child with each value from either parent, with equal probability. Surplus blocks are the deeper parent's."""
    depth = rng.choice((first.depth, second.depth))

    def block(values: tuple[float, ...], others: tuple[float, ...], index: int) -> float:
        return rng.choice([parent[index] for parent in (values, others) if index < len(parent)])

    mlp_ratio = tuple(block(first.mlp_ratio, second.mlp_ratio, index) for index in range(depth))
    num_heads = tuple(int(block(first.num_heads, second.num_heads, index)) for index in range(depth))
    return SubnetSpec(depth, rng.choice((first.embed_dim, second.embed_dim)), num_heads, mlp_ratio)


class Evolution:
    """The paper's evolution: `ask` for a generation, `tell` its scores, until `ask` returns none.

    Generation 0 is random; with a predictor, the larger of each two draws. Each later one has mutants and children of
    the best `parents` of all generations so far, and random candidates to fill it up. The search ends early when no
    unseen legal candidate is left.

    Args:
        known: complete scores of an earlier search; its best `parents` legal subnets enter generation 0.
    """

    def __init__(
        self, space: SearchSpace, limits: Limits, settings: EvolutionSettings, rng: Random,
        table: LatencyTable | None = None, known: Sequence[ScoredCandidate] = (),
    ) -> None:  # fmt: skip
        self.space, self.limits, self.settings, self.rng = space, limits, settings, rng
        self.table, self.known = table, known
        self.generation = 0
        self.scored: list[ScoredCandidate] = []
        self._pool = Pool(space, limits, settings.tries, rng, table)

    def ask(self) -> list[Candidate]:
        """The candidates of the next generation; none at the end. Raises `AutoFormerError` if none can be drawn."""
        settings = self.settings
        if self.generation > settings.generations:
            return []
        if self.generation == 0:
            seeds = self._seeds()
            draw = self._pool.random if seeds else self._pool.random_or_error
            return seeds + self._initial(settings.population - len(seeds), draw)
        parents, draws = self._parents(), settings.predictor or 1
        if not parents:
            raise AutoFormerError("no complete score to breed from; pass `tell` the scores of the candidates of `ask`")
        candidates = self._offspring(draws * settings.mutations, lambda: self._mutant(parents))
        if len(parents) > 1:
            candidates += self._offspring(draws * settings.crossovers, lambda: self._child(parents))
        if settings.predictor:
            candidates = self._predicted_best(candidates)
        return candidates + self._pool.random(settings.population - len(candidates), "fill", self.generation)

    def tell(self, scored: Sequence[ScoredCandidate]) -> None:
        """Record the scores of all candidates of the last `ask`. Raises `AutoFormerError` for NaN or infinity."""
        check_finite(scored)
        self.scored += scored
        self.generation += 1

    def best(self, count: int) -> list[ScoredCandidate]:
        """The best complete candidates of all generations so far, best first."""
        complete = [scored for scored in self.scored if scored.complete]
        return sorted(complete, key=lambda scored: scored.rank(self.settings.objective))[:count]

    def _offspring(self, count: int, draw: Callable[[], list[Candidate]]) -> list[Candidate]:
        """Up to `count` candidates from at most 10 * `count` calls of `draw`."""
        candidates: list[Candidate] = []
        for _ in range(10 * count):
            if len(candidates) == count:
                break
            candidates += draw()
        return candidates

    def _seeds(self) -> list[Candidate]:
        """The known candidates of generation 0; none if no known subnet is legal."""
        known = {one.candidate.spec: one for one in self.known}
        drawn = [candidate for spec in known for candidate in self._pool.fresh(spec, "earlier", 0)]
        if not drawn:
            return []
        order = self._order([known[candidate.spec]._replace(candidate=candidate) for candidate in drawn])
        return self._pool.keep(drawn, order[: self.settings.parents])

    def _initial(self, count: int, draw: Callable[[int, Origin], list[Candidate]]) -> list[Candidate]:
        """Up to `count` random candidates; with a predictor, the one with more parameters of each two drawn."""
        if not self.settings.predictor:
            return draw(count, "initial")
        drawn = draw(2 * count, "initial")
        places = range(len(drawn))
        if len(drawn) == 2 * count:
            pairs = zip(places[::2], places[1::2], strict=True)
            return self._pool.keep(drawn, [max(pair, key=lambda place: drawn[place].params) for pair in pairs])
        return self._pool.keep(drawn, places[:count])  # hardly any other is legal

    def _order(self, scored: Sequence[ScoredCandidate]) -> list[int]:
        """Indices of complete candidates, best first."""
        return sorted(range(len(scored)), key=lambda place: scored[place].rank(self.settings.objective))

    def _predicted_best(self, drawn: Sequence[Candidate]) -> list[Candidate]:
        """The offspring to score, best first by a predictor trained on all complete scores."""
        if not drawn:
            return []
        complete = [one for one in (*self.known, *self.scored) if one.complete]
        known = {one.candidate.spec: one.score(self.settings.objective) for one in complete}
        predicted = predict(self.space, known, [candidate.spec for candidate in drawn])
        order = sorted(range(len(drawn)), key=lambda place: -predicted[place])
        return self._pool.keep(drawn, order[: self.settings.mutations + self.settings.crossovers])

    def _parents(self) -> Sequence[ScoredCandidate]:
        return self.best(self.settings.parents)

    def _pick(self, parents: Sequence[ScoredCandidate]) -> ScoredCandidate:
        return self.rng.choice(parents)

    def _mutant(self, parents: Sequence[ScoredCandidate]) -> list[Candidate]:
        parent = self._pick(parents).candidate
        spec = mutate(self.space, parent.spec, self.rng, self.settings)
        return self._pool.fresh(spec, "mutation", self.generation, [parent.id])

    def _child(self, parents: Sequence[ScoredCandidate]) -> list[Candidate]:
        """A child of two parents, of equal depth if the first parent has such a partner."""
        first = self._pick(parents).candidate
        others = [scored for scored in parents if scored.candidate is not first]
        same_depth = [other for other in others if other.candidate.spec.depth == first.spec.depth]
        second = self._pick(same_depth or others).candidate
        spec = cross(first.spec, second.spec, self.rng)
        return self._pool.fresh(spec, "crossover", self.generation, [first.id, second.id])


def random_baseline(
    space: SearchSpace, limits: Limits, count: int, tries: int, rng: Random, table: LatencyTable | None = None
) -> list[Candidate]:
    """Random search: up to `count` different legal candidates. Raises `AutoFormerError` if there is none."""
    return Pool(space, limits, tries, rng, table).random_or_error(count, "baseline")

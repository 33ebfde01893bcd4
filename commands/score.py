"""Score subnets of your own with inherited weights on the search split, exactly as a search scored its candidates.

    python -m commands.score --subnets my-subnets.yaml

The folder that it writes, dist/scores by default, has the form of a search's: `search_subnet.warm_start.search` takes
the scores over, and the best subnets enter generation 0.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoformer.candidates import COLUMNS, LATENCY, Candidate, ScoredCandidate
from autoformer.errors import AutoFormerError, validated
from autoformer.files import check_writable, hash_path, hash_value, replacing, write_json
from autoformer.frozen import check_name
from autoformer.latency import FILE as LATENCY_FILE
from autoformer.latency import LatencyTable, read_latency_table
from autoformer.named import NamedSubnet
from autoformer.reading import read_json_as, read_yaml_list
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.subnet_text import CELLS, from_cells, shape_text
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.step import STEP, make_scorer, read_inputs
from runtime.common.config import ROOT, Config, load_config
from runtime.common.console import Parser, Progress, check_apart, existing, print_line, run_command
from runtime.common.locks import hold_lock
from runtime.common.overrides import add_option
from runtime.common.records import Provenance
from runtime.common.sections import SearchSubnet
from runtime.common.tables import read_numbered_rows, write_table
from runtime.common.workspace import Workspace, work_root
from runtime.storage.artifacts import local_copy
from runtime.storage.named_files import latency_table

COMMAND = "score"
TABLE, PROVENANCE = "candidates.csv", "provenance.json"
# Beside a search: the folder of `make run`, and that of `dvc repro`.
PLACES = {
    "supernet": ("train-supernet/supernet", "supernet"),
    "card": ("prepare-data/card", "splits/card.json"),
    "search_split": ("prepare-data/search_split", "splits/search.parquet"),
}


class Listed(NamedTuple):
    name: str
    spec: SubnetSpec


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.score", description="Score subnets of your own, as a search did its own.")
    parser.add_argument(
        "--subnets", type=Path, required=True,
        help="a CSV with the columns of candidates.csv, or a YAML list of subnets or of what configs/subnets/ holds",
    )  # fmt: skip
    parser.add_argument("--search", type=Path, help="folder of a finished search (default: the latest in runs/)")
    parser.add_argument("--data", help="the images (default: data/<dataset>)")
    parser.add_argument("--out", type=Path, default=Path("dist/scores"), help="folder to write (default: %(default)s)")
    add_option(parser)
    return run_command(COMMAND, parser, _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    _check_out(arguments.out)
    search = arguments.search or _latest()
    made_by = read_json_as(Provenance, existing(search / PROVENANCE, STEP))
    section_of_search = dict(made_by.section(STEP)) | {"warm_start": None}
    if section_of_search.get("latency") is None:
        section_of_search.pop("latency", None)  # --set may name a table
    try:
        config = load_config(json.dumps(made_by.config | {STEP: section_of_search}), arguments.overrides, [STEP])
    except AutoFormerError as error:
        raise AutoFormerError(str(error).replace("--config:", f"{search / PROVENANCE}:", 1)) from None
    listed = read_subnets(arguments.subnets, config.space)
    paths = argparse.Namespace(data=arguments.data or str(ROOT / "data" / config.dataset))
    check_apart([arguments.out], arguments.subnets, search, paths.data)
    for name in PLACES:
        setattr(paths, name, _find(name, made_by.inputs.get(name, ""), search))
    table_file = search / LATENCY_FILE
    section = config.section(SearchSubnet)
    table = read_latency_table(table_file) if table_file.is_file() else latency_table(section.latency, config.space)
    if table:
        table.check_fits(config.space, str(table_file))
    if table and (note := table.note_on(config.space)):
        print_line(f"{COMMAND}: table of latencies: {note}")
    scored, provenance = score(listed, config, paths, table)
    columns = ("name", *COLUMNS, LATENCY) if table else ("name", *COLUMNS)
    with replacing(arguments.out) as folder:
        folder.mkdir(parents=True)
        rows = [{"name": one.name} | result.to_row() for one, result in zip(listed, scored, strict=True)]
        write_table(folder / TABLE, columns, rows)
        write_json(folder / PROVENANCE, provenance)
    for line in summary(listed, scored, config, table):
        print_line(line)
    print_line(
        f"{COMMAND}: wrote {arguments.out}; search_subnet.warm_start.search={arguments.out} starts a search from it"
    )


def _check_out(out: Path) -> None:
    """Refuse to replace anything but the output of an earlier `make score`."""
    if out.exists() and not (out.is_dir() and {file.name for file in out.iterdir()} <= {TABLE, PROVENANCE}):
        raise AutoFormerError(f"--out {out}: is there, and holds other things than scores; name another folder")
    check_writable(out / TABLE)


def read_subnets(path: Path, space: SearchSpace) -> list[Listed]:
    """The subnets of a list, each with a name of its own: names alone tell them apart in the table.

    Raises `AutoFormerError` naming the line of the first that is not in the space, or has the name of another.
    """
    found, line_of = [], dict[str, int]()
    for line, read in _items(path):
        where = f"{path}, line {line}"
        try:
            name, spec = _subnet(read, where, space)
            check_name(name)
            space.check(spec)
        except ValueError as error:
            raise AutoFormerError(str(error) if str(path) in str(error) else f"{where}: {error}") from None
        name = name or f"line {line}"
        if (first := line_of.setdefault(name, line)) != line:
            raise AutoFormerError(f"{where}: the subnet of line {first} is named '{name}', too; rename one")
        found.append(Listed(name, spec))
    if not found:
        raise AutoFormerError(f"{path}: lists no subnet")
    return found


def _items(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".csv":
        yield from read_numbered_rows(path, CELLS, f"list subnets under the columns {', '.join(CELLS)}")
    elif path.suffix in (".yaml", ".yml"):
        yield from read_yaml_list(path)
    else:
        raise AutoFormerError(f"{path}: expected a .yaml, .yml or .csv file")


def _subnet(value: Any, where: str, space: SearchSpace) -> tuple[str, SubnetSpec]:
    """Name (may be empty) and subnet of a CSV row, of the content of a configs/subnets/ file, or of a bare subnet."""
    if isinstance(value, Mapping) and isinstance(value.get("num_heads"), str):
        return str(value.get("name", "")), from_cells(value)
    if not isinstance(value, Mapping) or "subnet" not in value:
        return "", SubnetSpec.from_dict(value)
    named = validated(NamedSubnet, {"space": space.name, "source": "listed", "name": ""} | dict(value), where)
    if named.space != space.name:
        raise AutoFormerError(f"{where}: a subnet of space '{named.space}', but the supernet is of '{space.name}'")
    return named.name, named.subnet


def _latest() -> Path:
    found = [*(ROOT / "runs").glob("*/search-subnet/search/provenance.json"), ROOT / "artifacts/search/provenance.json"]
    found = [file for file in found if file.is_file()]
    if not found:
        raise AutoFormerError(
            "no finished search in runs/ or artifacts/; `make run` makes one, or name it with SEARCH="
        )
    return max(found, key=lambda file: file.stat().st_mtime).parent


def _find(name: str, content: str, search: Path) -> Path:
    """Find an input of the search by its content hash: beside the search, else in any run.

    A step that was taken from KFP's cache has its output in an older run; large files may be in the store.
    """
    runs = [
        search.absolute().parent.parent,
        search.absolute().parent,
        *sorted((ROOT / "runs").glob("*-*"), reverse=True),
    ]
    for place in (run / place for run in [*runs, ROOT / "artifacts"] for place in PLACES[name]):
        if place.exists() and hash_path(copy := local_copy(place)) == content:
            return copy
    what = name.replace("_", " ")
    raise AutoFormerError(
        f"{search}: its {what} ({content[:12]}) is in no run here; name a search whose run is complete"
    )


def score(
    listed: Sequence[Listed], config: Config, paths: argparse.Namespace, table: LatencyTable | None
) -> tuple[list[ScoredCandidate], dict[str, Any]]:
    """The scores of subnets in their order, and their provenance. A repeated command reuses the stored scores.

    `paths`: the arguments `supernet`, `card`, `search_split` and `data` of a step.
    """
    card, images, count = read_inputs(paths, config)
    made_of = Workspace(STEP, config, {name: getattr(paths, name) for name in PLACES}).provenance
    work = work_root() / COMMAND / hash_value(made_of)[:16]
    with hold_lock(work, "work folder"):
        work.mkdir(parents=True, exist_ok=True)
        run_tasks = make_scorer(paths.supernet, config, card, images)
        file = work / "scores.jsonl"
        cache = ScoreCache(file, len(images.labels), lambda tasks: zip(tasks, run_tasks(tasks), strict=True))
        with Progress(COMMAND, len(listed), "subnets") as bar:
            specs = [one.spec for one in listed]
            results = cache.score(specs, np.arange(count), bar.advance)
        file.unlink()
    scored = [
        ScoredCandidate.measured(Candidate.counted(config.space, table, number, spec, "listed"), result)
        for number, (spec, result) in enumerate(zip(specs, results, strict=True))
    ]
    return scored, made_of | {"step": COMMAND}


def summary(
    listed: Sequence[Listed], scored: Sequence[ScoredCandidate], config: Config, table: LatencyTable | None
) -> list[str]:
    """A line for each subnet, best first by the objective of the search."""
    section = config.section(SearchSubnet)
    pairs = sorted(zip(listed, scored, strict=True), key=lambda pair: pair[1].rank(section.objective))
    width, lines = max(len(one.name) for one in listed), []
    for one, result in pairs:
        cost = f"{result.candidate.params / 1e6:.4g} M parameters, {result.candidate.macs / 1e9:.4g} G MACs"
        if result.candidate.latency_ms is not None:
            cost += f", {result.candidate.latency_ms:.3g} ms"
        if not section.limits.allow(section.limits.count(config.space, one.spec, table)):
            cost += " (beyond the limits)"
        lines.append(
            f"{one.name:<{width}}  {result.top1_percent:6.2f} %  loss {result.loss:.4f}  {cost}  {shape_text(one.spec)}"
        )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())

"""What a KFP 2.17.0 backend answered about runs, and the same at an earlier moment of a run.

tests/data/kfp holds the answers to `GET` of one run, by API v2beta1 and by v1beta1, reduced to the fields below.
"""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "data" / "kfp"
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.json")))


class Answers(NamedTuple):
    """Both answers about a run; in the real one of v1beta1 the workflow is a text of JSON."""

    v2: dict[str, Any]
    v1: dict[str, Any]

    @property
    def workflow(self) -> dict[str, Any]:
        workflow: dict[str, Any] = self.v1["pipeline_runtime"]["workflow_manifest"]
        return workflow

    def v1_text(self) -> dict[str, Any]:
        return self.v1 | {"pipeline_runtime": {"workflow_manifest": json.dumps(self.workflow)}}

    def at(self, time: str) -> "Answers":
        """As the backend would have answered at a time of the run's day, such as "03:11:40": states by their history.

        Nodes that had not started by then are left out; those that had not ended are running.
        """
        moment = f"{self.v2['created_at'][:11]}{time}Z"
        v2, v1 = copy.deepcopy(self.v2), copy.deepcopy(self.v1)
        tasks = [_at(each, moment) for each in v2["run_details"]["task_details"] if each["start_time"] <= moment]
        v2 = _at(v2, moment) | {"run_details": {"task_details": tasks}}
        status = v1["pipeline_runtime"]["workflow_manifest"]["status"]
        status["nodes"] = {id: _node_at(node, moment) for id, node in status["nodes"].items()
                           if node["startedAt"] <= moment}  # fmt: skip
        return Answers(v2, v1)


def answers(name: str) -> Answers:
    """The recorded answers of a file of tests/data/kfp."""
    read = json.loads((FOLDER / f"{name}.json").read_text())
    return Answers(read["GET apis/v2beta1/runs/ID"], read["GET apis/v1beta1/runs/ID"])


def _at(value: dict[str, Any], moment: str) -> dict[str, Any]:
    history = [each for each in value.get("state_history", []) if each["update_time"] <= moment]
    value = value | {"state_history": history}
    value.pop("state", None)
    return value | ({"state": history[-1]["state"]} if history and "state" in history[-1] else {})


def _node_at(node: dict[str, Any], moment: str) -> dict[str, Any]:
    if node["finishedAt"] <= moment:
        return node
    left = {name: value for name, value in node.items() if name not in ("finishedAt", "message", "outputs")}
    return left | {"phase": "Running"}

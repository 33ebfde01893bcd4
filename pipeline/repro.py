"""Run the steps through `dvc repro`, with a preset or overrides written to params.yaml first."""

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, read_json, write_text
from autoformer.named import CONFIGS
from components.resolve_config.step import resolve
from pipeline.local import patient_threads
from pipeline.step_processes import StepProcesses
from pipeline.summary import summary
from runtime import tracking
from runtime.common.config import ROOT, STEPS, load_config, preset_path
from runtime.common.console import Parser, run_command
from runtime.common.locks import hold_lock
from runtime.common.overrides import add_option, apply, parse
from runtime.common.stopping import Stopped

PARAMS = ROOT / "params.yaml"
_TRACKED = {"threads": "null", "device": "auto"}  # optional, but DVC's stages name them, and it wants them to be there
WRITTEN = ROOT / ".dvc" / "tmp" / "params.sha256"  # of the params.yaml that a command line made


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.repro", description=__doc__)
    parser.add_argument("--preset", default="params.yaml", help="a preset to write to params.yaml (default: as it is)")
    add_option(parser)
    steps = StepProcesses()

    def work(arguments: argparse.Namespace) -> int:
        try:
            with hold_lock(ROOT / ".dvc" / "tmp" / "repro", "checkout"):
                _write_params(arguments.preset, arguments.overrides)
                tracking.initialise(tracking.tracking_uri())
                return _repro()
        except Stopped:
            steps.stop()
            raise

    return run_command("repro", parser, work, argv, steps.signal)


def _repro() -> int:
    environment = os.environ | {
        "AUTOFORMER_RUNNER_PID": str(os.getpid()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # dvc.yaml says `python`
        "PYTHONUNBUFFERED": "1",
        **patient_threads(),
    }
    dvc = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=ROOT, env=environment)
    code = dvc.wait()  # not `run`, which would kill it where it is to end by itself
    if code == 0:
        _show()
    return code


def _write_params(preset: str, overrides: list[str]) -> None:
    """Make params.yaml the preset with its overrides; validated first, and never over edits that exist nowhere else."""
    resolve(preset, overrides)
    path = preset_path(preset)
    text = path.read_text(encoding="utf-8")
    if overrides:
        text = overridden(text, overrides)
    text += "".join(f"{key}: {value}\n" for key, value in _TRACKED.items() if key not in yaml.safe_load(text))
    if text == PARAMS.read_text(encoding="utf-8"):
        return
    if path.resolve() != PARAMS and not _is_kept_elsewhere(PARAMS):
        raise AutoFormerError(
            "params.yaml has edits that are neither committed nor a preset; commit them, or save them as a file "
            f"of configs/presets/, before PRESET={preset} takes their place"
        )
    write_text(PARAMS, text)
    write_text(WRITTEN, hash_file(PARAMS))
    print(f"repro: params.yaml is now {preset}{' with ' + ' '.join(overrides) if overrides else ''}; "
          "`git checkout params.yaml` brings the committed one back")  # fmt: skip


def _is_kept_elsewhere(params: Path) -> bool:
    presets = (preset.read_bytes() for preset in (CONFIGS / "presets").glob("*.yaml"))
    if params.read_bytes() in presets:
        return True
    if WRITTEN.exists() and WRITTEN.read_text(encoding="utf-8") == hash_file(params):
        return True
    return subprocess.run(["git", "diff", "--quiet", "HEAD", "--", str(params)], cwd=ROOT, check=False).returncode == 0


def overridden(params: str, overrides: list[str]) -> str:
    """The YAML text with values replaced; its comments stay."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    data = editor.load(params)
    for text in overrides:
        path = parse(text).path
        if path[0] == "space" and len(path) > 1:
            raise AutoFormerError(f"--set {text}: DVC follows a space by its file; make one in configs/spaces/")
    apply(data, overrides)
    out = io.StringIO()
    editor.dump(data, out)
    return out.getvalue()


def _show() -> None:
    artifacts = ROOT / "artifacts"
    files = {step: artifacts / "records" / f"{step}.json" for step in STEPS}
    # no stage's output, so DVC does not bring them back with results from its cache
    records = {step: read_json(file) for step, file in files.items() if file.exists()}
    config = load_config(str(PARAMS))
    search, retrain, evaluation = (artifacts / name for name in ("search", "retrain", "evaluation"))
    print(summary(config, search, retrain, evaluation, artifacts / "registration.json", records))
    print("  report                artifacts/evaluation/report.html")
    print("  model card            artifacts/model_card.md")


if __name__ == "__main__":
    raise SystemExit(main())

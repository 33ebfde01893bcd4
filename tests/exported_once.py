"""For a server that forks steps: what torch imports to export a model, and the first export, which is the slowest."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from run_steps import SPACE

from autoformer.export import export_program
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet

torch.set_num_threads(1)
space = SearchSpace.model_validate(SPACE)
with TemporaryDirectory() as folder:
    export_program(Supernet(space).extract(space.smallest).eval(), Path(folder) / "program.pt2")

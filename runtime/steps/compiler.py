"""The compiler that `torch.compile` needs."""

import os
import shutil

from autoformer.errors import AutoFormerError

COMPILERS = ("g++", "clang++", "c++")


def require_compiler() -> None:
    """Raise `AutoFormerError` without a C++ compiler: torch reports that after minutes, in a hundred lines."""
    named = os.environ.get("CXX")
    wanted = (named,) if named else COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise AutoFormerError(
            f"retrain_subnet.compile needs a C++ compiler, and this machine has no {' or '.join(wanted)}; "
            "install one, name one in CXX, or set retrain_subnet.compile=false"
        )

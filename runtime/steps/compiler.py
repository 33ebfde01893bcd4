"""The compiler that `torch.compile` needs."""

import os
import shutil

from autoformer.errors import AutoFormerError

COMPILERS = ("g++", "clang++", "c++")


def require_compiler() -> None:
    """Raise `AutoFormerError` if there is no C++ compiler, which torch would report after minutes."""
    named = os.environ.get("CXX")
    wanted = (named,) if named else COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise AutoFormerError(
            f"retrain_subnet.compile needs a C++ compiler, and this machine has no {' or '.join(wanted)}; "
            "install one, name one in CXX, or set retrain_subnet.compile=false"
        )

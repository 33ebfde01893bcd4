"""What `torch.compile` asks of the machine."""

import os
import shutil

from autoformer.errors import AutoFormerError

COMPILERS = ("g++", "clang++", "c++")


def require_compiler() -> None:
    """Raise `AutoFormerError` where there is no C++ compiler: torch would say so after minutes, in a hundred lines."""
    given = os.environ.get("CXX")
    wanted = (given,) if given else COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise AutoFormerError(
            f"retrain_subnet.compile needs a C++ compiler, and this machine has no {' or '.join(wanted)}; "
            "install one, name one in CXX, or set retrain_subnet.compile=false"
        )

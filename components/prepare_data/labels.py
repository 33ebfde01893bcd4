"""Matlab's label files, in which several data sets say what their images show."""

from pathlib import Path
from typing import Any, BinaryIO

from autoformer.errors import AutoFormerError


def read_mat(source: Path | BinaryIO, where: str, key: str) -> Any:
    """The variable `key` of a .mat file; without the dimensions of length 1 that Matlab adds.

    Raises `AutoFormerError` where the file is missing, damaged, or has no such variable.
    """
    from scipy.io import loadmat

    if isinstance(source, Path) and not source.is_file():
        raise AutoFormerError(f"{where}: no such file; `make data` brings it")
    try:
        return loadmat(source, squeeze_me=True, variable_names=[key])[key]
    except KeyError:
        raise AutoFormerError(f"{where}: holds no '{key}'; `make data` brings it again") from None
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise AutoFormerError(f"{where}: not readable as a .mat file ({error}); `make data` brings it again") from None

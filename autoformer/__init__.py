"""AutoFormer: one-shot architecture search for vision transformers (Chen et al., arXiv 2107.00651).

Importing this package needs no torch; `autoformer.supernet`, `.vit`, `.training` and `.official` do.
"""

from autoformer.errors import AutoFormerError
from autoformer.space import SearchSpace, SubnetSpec

__all__ = ["AutoFormerError", "SearchSpace", "SubnetSpec"]
__version__ = "0.1.0"

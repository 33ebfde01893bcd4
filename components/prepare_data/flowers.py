"""Oxford Flowers-102 (Nilsback and Zisserman 2008): a tar of photographs, labels and splits in two .mat files.

Its splits are 10 images a class to train, 10 to validate, the rest to test. Those who report transfer train on the
first two together, 2,040 images, and test on 6,149: here that is `train_full`, train and search.
"""

from pathlib import Path

import numpy as np

from autoformer.errors import AutoFormerError
from components.prepare_data.delivered import Delivered
from components.prepare_data.labels import read_mat
from components.prepare_data.tars import as_split, pick, read_tar

ARCHIVE = "102flowers.tar"
SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}
# Named by label, as torchvision's Flowers102.classes names them.
CLASSES = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily",
    "moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot", "king protea",
    "spear thistle", "yellow iris", "globe-flower", "purple coneflower", "peruvian lily", "balloon flower",
    "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger", "grape hyacinth",
    "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke", "sweet william", "carnation",
    "garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya", "cape flower",
    "great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia",
    "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia",
    "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium", "orange dahlia",
    "pink-yellow dahlia?", "cautleya spicata", "japanese anemone", "black-eyed susan", "silverbush",
    "californian poppy", "osteospermum", "spring crocus", "bearded iris", "windflower", "tree poppy", "gazania",
    "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower", "lotus", "toad lily",
    "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia",
    "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove", "bougainvillea",
    "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower", "trumpet creeper", "blackberry lily",
)  # fmt: skip


def is_mine(data: Path) -> bool:
    return (data / ARCHIVE).is_file()


def read(data: Path) -> Delivered:
    """Raises `AutoFormerError` where a file is missing or damaged, or an image that has a split is not there."""
    labels = np.atleast_1d(read_mat(data / "imagelabels.mat", str(data / "imagelabels.mat"), "labels"))
    if labels.min() < 1 or labels.max() > len(CLASSES):
        raise AutoFormerError(f"{data / 'imagelabels.mat'}: a label lies outside 1 to {len(CLASSES)}")
    split_of: dict[int, str] = {}
    for split, key in SPLITS.items():
        for number in np.atleast_1d(read_mat(data / "setid.mat", str(data / "setid.mat"), key)).tolist():
            if not 1 <= number <= len(labels) or number in split_of:
                raise AutoFormerError(f"{data / 'setid.mat'}: image {number} has no label, or two splits")
            split_of[number] = split
    tar = read_tar(data / ARCHIVE)
    numbers = sorted(split_of)
    members = pick(data / ARCHIVE, tar, [f"image_{number:05d}.jpg" for number in numbers])
    return Delivered(
        title="Oxford Flowers-102",
        classes=CLASSES,
        rows=as_split(
            [ARCHIVE] * len(members),
            members,
            [int(labels[number - 1]) - 1 for number in numbers],
        ),
        splits=np.array([split_of[number] for number in numbers]),
        encoding="image",
        image_size=None,
        channels=3,
        archives={ARCHIVE: tar.checksum},
        licence="not stated by the authors; for research",
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    )

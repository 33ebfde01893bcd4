"""Which of the delivered training images train, and which are held out to score candidates."""

import random
from typing import NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError


class HoldOut(NamedTuple):
    """Row numbers of the delivered training images, and what was kept apart."""

    train: np.ndarray  # in the delivered order
    search: np.ndarray  # round by round: one image of each class, so that a prefix of whole rounds is stratified too
    left_out: int  # training images with the pixels of a test image: in no split
    repeated: int  # training images with the pixels of another one: never in search


def hold_out(
    labels: np.ndarray,
    checksums: np.ndarray,
    test_checksums: np.ndarray,
    num_classes: int,
    search_images: int,
    rng: random.Random,
) -> HoldOut:
    """Split training images into train and search, disjoint by content from each other and from test.

    Search takes `search_images` in all, equally many of each class, drawn by `rng`; train takes the rest.
    The test images are fixed: a training image with the same pixels as one of them is left out. Training
    images with the same pixels as each other stay together, in train: search draws from the others.

    Raises:
        AutoFormerError: `search_images` is not a multiple of the classes, or leaves a class without
            training images.
    """
    per_class, rest = divmod(search_images, num_classes)
    if rest or per_class < 1:
        raise AutoFormerError(f"search_images = {search_images}: expected a multiple of the {num_classes} classes")
    usable = ~np.isin(checksums, test_checksums)
    _, group, group_size = np.unique(checksums, return_inverse=True, return_counts=True)
    single = usable & (group_size[group] == 1)
    drawn = []
    for label in range(num_classes):
        candidates = np.flatnonzero(single & (labels == label)).tolist()
        most = min(len(candidates), int((usable & (labels == label)).sum()) - 1)
        if per_class > most:
            raise AutoFormerError(
                f"search_images = {search_images}: {per_class} images of each class, but at most {most} "
                f"of class {label} can be held out of training; lower it"
            )
        drawn.append(rng.sample(candidates, per_class))
    search = np.array(drawn).T.reshape(-1)
    train = usable.copy()
    train[search] = False
    return HoldOut(np.flatnonzero(train), search, int((~usable).sum()), int((usable & ~single).sum()))

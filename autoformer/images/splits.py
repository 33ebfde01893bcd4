"""Which of the delivered training images train, and which are held out to score candidates, or to test."""

import random
from collections.abc import Sequence
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
    single = usable & (_copies(checksums)[1] == 1)
    drawn = []
    for label, mine in enumerate(_by_class(labels, num_classes)):
        candidates = mine[single[mine]].tolist()
        most = min(len(candidates), int(usable[mine].sum()) - 1)
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


def _copies(checksums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the number of its content, and how many rows have that content."""
    _, content, copies = np.unique(checksums, return_inverse=True, return_counts=True)
    return content, copies[content]


def _by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The places at which each class stands, in order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))


class Shares(NamedTuple):
    """What to hold out where the source has no such split, in percent of each class."""

    search_percent: float
    test_percent: float


def split_by_share(
    labels: np.ndarray,
    checksums: np.ndarray,
    classes: Sequence[str],
    free: np.ndarray,
    given_search: np.ndarray,
    given_test: np.ndarray,
    shares: Shares,
    rng: random.Random,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Split rows into train, search and test, disjoint by content; classes may differ in size.

    Args:
        labels, checksums: of all rows.
        free: rows that may train, and from which a split that is not given is drawn by `rng`: a share of each class,
            at least one image, from those whose content occurs once.
        given_search, given_test: rows that the source has in these splits already; empty where it has none.
            An image of test is left out of search and train, one of search out of train.

    Returns:
        row numbers of train, search and test, and sentences on what was left out or contradicts itself. Search and
        test are ordered so that a prefix has about the shares of the whole.

    Raises:
        AutoFormerError: a class has too few images for its splits, or a given split is empty after what was left out.
    """
    content, copies = _copies(checksums)
    notes = _contradictions(labels, content)
    test = given_test
    search = given_search[~np.isin(checksums[given_search], checksums[test])]
    if len(given_search) and not len(search):
        raise AutoFormerError("all images of the val split are in the test split too; give it images of its own")
    kept = free[~np.isin(checksums[free], checksums[np.concatenate([test, search])])]
    left_out = len(given_search) - len(search) + len(free) - len(kept)
    if left_out:
        notes.append(f"{left_out} images were left out of train or search: the same image is in a later split too")
    drawn: dict[str, list[int]] = {"search": [], "test": []}
    for name, places in zip(classes, _by_class(labels[kept], len(classes)), strict=True):
        mine = kept[places]
        single = mine[copies[mine] == 1].tolist()
        rng.shuffle(single)
        taken = {}
        for split, given, percent in (("test", test, shares.test_percent), ("search", search, shares.search_percent)):
            if not len(given):
                wanted = max(1, round(percent / 100 * len(mine)))
                taken[split] = [single.pop() for _ in range(min(wanted, len(single)))]
                drawn[split] += taken[split]
        if len(mine) - sum(map(len, taken.values())) < 1 or not all(taken.values()):
            raise AutoFormerError(
                f"class '{name}' has {len(np.unique(checksums[mine]))} different images to train on and to hold out; "
                f"it takes at least {1 + len(taken)}: add some, or remove the class"
            )
    held = np.array(drawn["search"] + drawn["test"], dtype=np.int64)
    parts = {
        "train": np.setdiff1d(kept, held),
        "search": search if len(search) else np.array(drawn["search"]),
        "test": test if len(test) else np.array(drawn["test"]),
    }
    return {"train": parts["train"]} | {
        split: _spread(parts[split], labels, rng) for split in ("search", "test")
    }, tuple(notes)


def _contradictions(labels: np.ndarray, content: np.ndarray) -> list[str]:
    """A note where one image has two labels. `content`: what the row holds, as a number."""
    pairs = np.unique(content.astype(np.int64) * (int(labels.max()) + 1) + labels)
    _, count = np.unique(pairs // (int(labels.max()) + 1), return_counts=True)
    twice = int((count > 1).sum())
    return [f"{twice} images are there under two classes or more: one of the labels is wrong"] if twice else []


def _spread(rows: np.ndarray, labels: np.ndarray, rng: random.Random) -> np.ndarray:
    """The rows in an order in which every prefix has about the class shares of the whole."""
    rows = np.array(rng.sample(rows.tolist(), len(rows)))
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        mine = np.flatnonzero(labels[rows] == label)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return rows[np.argsort(place, kind="stable")]

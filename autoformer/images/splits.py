"""Split images into train, search (held out to score candidates) and test."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError, quantity

_MOST_NAMED = 20  # classes in an error


class HoldOut(NamedTuple):
    """Row numbers of the training images, by split."""

    train: np.ndarray  # in their order
    search: np.ndarray  # in rounds of one image per class, so a prefix of whole rounds is stratified
    left_out: int  # images with the pixels of a test image; they are in no split
    repeated: int  # images with the pixels of another one; all are in train
    copies: int  # further copies of images in search; they are in no split


def hold_out(
    labels: np.ndarray,
    checksums: np.ndarray,
    test_checksums: np.ndarray,
    num_classes: int,
    search_images: int,
    rng: random.Random,
) -> HoldOut:
    """Split training images into train and search, disjoint by content from each other and from test.

    Search takes equally many images of each class, drawn by `rng`, `search_images` in all. Training images with the
    pixels of a test image are left out. Training images with equal pixels stay together, in train; where a class has
    too few others, search takes one of each and its copies are left out.

    Raises:
        AutoFormerError: `search_images` is not a multiple of the classes, or leaves a class without training images.
    """
    per_class, rest = divmod(search_images, num_classes)
    if rest or per_class < 1:
        raise AutoFormerError(
            f"search_images = {search_images}: expected a multiple of the {quantity(num_classes, 'class')}"
        )
    usable = ~np.isin(checksums, test_checksums)
    content, count = _copies(checksums)
    unique = usable & (count == 1)
    of_two_classes = _with_two_labels(labels, content)
    drawn = []
    for label, rows in enumerate(_by_class(labels, num_classes)):
        candidates = rows[unique[rows]].tolist()
        different = _first_copies(rows[usable[rows]], content)
        if len(candidates) < per_class:
            copied = different[count[different] > 1]
            candidates += copied[~np.isin(content[copied], of_two_classes)].tolist()
        most = min(len(candidates), len(different) - 1)
        if per_class > most:
            raise AutoFormerError(
                f"search_images = {search_images}: {quantity(per_class, 'image')} of each class, but at most {most:,} "
                f"of class {label} can be held out of training; lower it"
            )
        drawn.append(rng.sample(candidates, per_class))
    search = np.array(drawn).T.reshape(-1)
    train = usable & ~np.isin(content, content[search])
    copies = int(usable.sum() - train.sum()) - len(search)
    return HoldOut(np.flatnonzero(train), search, int((~usable).sum()), int((train & ~unique).sum()), copies)


def _copies(checksums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the index of its content, and the number of rows with that content."""
    _, content, copies = np.unique(checksums, return_inverse=True, return_counts=True)
    return content, copies[content]


def _first_copies(rows: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The first row of each content, in the order of `rows`."""
    _, first = np.unique(content[rows], return_index=True)
    return rows[np.sort(first)]


def _by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The rows of each class, in order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))


class Shares(NamedTuple):
    """Percent of each class to hold out for splits that the source lacks."""

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
        free: rows for training. A split that is not given is drawn from them by `rng`: a share of each class, at least
            one image. Copies go to the same split, in search and test one of each class.
        given_search, given_test: rows that the source has in these splits; empty if it has none. Images of test are
            left out of search and train, images of search out of train.

    Returns:
        Row numbers of train, search and test, and notes on images left out or labelled twice. Every prefix of search
        and test has about the class frequencies of the whole.

    Raises:
        AutoFormerError: a class has too few images, or a given split is empty without the images left out.
    """
    content, _ = _copies(checksums)
    notes = _contradictions(labels, content)
    test = given_test
    search = given_search[~np.isin(checksums[given_search], checksums[test])]
    if len(given_search) and not len(search):
        raise AutoFormerError("all images of the val split are in the test split too; give it images of its own")
    usable = free[~np.isin(checksums[free], checksums[np.concatenate([test, search])])]
    left_out = len(given_search) - len(search) + len(free) - len(usable)
    if left_out:
        notes.append(
            f"{quantity(left_out, 'image was', 'images were')} left out of train or search: the same image is in a "
            "later split too"
        )
    drawn: dict[str, list[int]] = {"search": [], "test": []}  # the first copy of each image
    split_of: dict[int, str] = {}  # by content, which another class may have too
    parts = {"train", *(split for split, given in (("test", test), ("search", search)) if not len(given))}
    too_few: dict[str, int] = {}  # different images of each class that cannot be split
    for label, different in _different_images(usable, labels, content, len(classes)):
        waiting = [row for row in different if content[row] not in split_of]
        rng.shuffle(waiting)
        for split, given, percent in (("test", test, shares.test_percent), ("search", search, shares.search_percent)):
            there = sum(split_of.get(content[row]) == split for row in different)
            wanted = 0 if len(given) else max(1, round(percent / 100 * len(different))) - there
            taken = [waiting.pop() for _ in range(min(wanted, len(waiting)))]
            split_of |= {content[row]: split for row in taken}
            drawn[split] += [row for row in different if split_of.get(content[row]) == split]
        split_of |= {content[row]: "train" for row in waiting}
        found = {split_of[content[row]] for row in different}
        if not parts <= found:
            too_few[classes[label]] = len(different)
    if too_few:
        raise _too_few_images(too_few, len(parts))
    held = np.array(drawn["search"] + drawn["test"], dtype=np.int64)
    train = usable[~np.isin(checksums[usable], checksums[held])]
    if copies := len(usable) - len(train) - len(held):
        which = quantity(copies, "copy of an image of search or test was", "copies of images of search and test were")
        notes.append(f"{which} left out: each is there once")
    search, test = (
        _spread(given if len(given) else np.array(drawn[split]), labels, rng)
        for split, given in (("search", search), ("test", test))
    )
    return {"train": train, "search": search, "test": test}, tuple(notes)


def _different_images(
    rows: np.ndarray, labels: np.ndarray, content: np.ndarray, num_classes: int
) -> list[tuple[int, list[int]]]:
    """Each class with the first copy of each of its images: first the classes that share images, the smallest first.

    In this order a class that has no image of its own gets its part before a larger one has taken all.
    """
    pairs = np.unique(np.stack([content[rows], labels[rows]]), axis=1)
    numbers, times = np.unique(pairs[0], return_counts=True)
    sharing = set(pairs[1][np.isin(pairs[0], numbers[times > 1])].tolist())
    found = []
    for label, places in enumerate(_by_class(labels[rows], num_classes)):
        found.append((label, _first_copies(rows[places], content).tolist()))
    return sorted(found, key=lambda one: (one[0] not in sharing, len(one[1]) if one[0] in sharing else 0))


def _with_two_labels(labels: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The numbers of the contents that images of different labels have."""
    pairs = np.unique(content.astype(np.int64) * (int(labels.max()) + 1) + labels)
    numbers, count = np.unique(pairs // (int(labels.max()) + 1), return_counts=True)
    return numbers[count > 1]


def _contradictions(labels: np.ndarray, content: np.ndarray) -> list[str]:
    """A note if images of equal content have different labels."""
    twice = len(_with_two_labels(labels, content))
    return (
        [f"{quantity(twice, 'image is', 'images are')} there under two classes or more: one of the labels is wrong"]
        if twice
        else []
    )


def _spread(rows: np.ndarray, labels: np.ndarray, rng: random.Random) -> np.ndarray:
    """The rows in an order such that every prefix has about the class frequencies of the whole."""
    rows = np.array(rng.sample(rows.tolist(), len(rows)))
    position = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        mine = np.flatnonzero(labels[rows] == label)
        position[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return rows[np.argsort(position, kind="stable")]


def _too_few_images(classes: dict[str, int], least: int) -> AutoFormerError:
    """An error that names all classes with too few images."""
    if len(classes) == 1:
        ((name, count),) = classes.items()
        images = f"{count} different image{'s' * (count != 1)}"
        return AutoFormerError(
            f"class '{name}' has {images} to train on and to hold out; it takes at least {least} that no other class "
            "has: add some, or remove the class"
        )
    counted = [f"{name} {count}" for name, count in classes.items()]
    named = ", ".join([*counted[:_MOST_NAMED], *["…"] * (len(counted) > _MOST_NAMED)])
    return AutoFormerError(
        f"{quantity(len(classes), 'class')} have too few different images to train on and to hold out: {named}; each "
        f"takes at least {least} that no other class has: add some, or remove these classes"
    )

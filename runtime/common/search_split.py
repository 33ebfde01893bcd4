"""What an accuracy on the search split is worth, for every place that shows one."""

RANKS_ONLY = "Accuracy on the search split ranks subnets; it is no estimate of test accuracy."
# Data set, by its name or its folder in data/ -> what was measured with models that nothing selected
_MEASURED = {"fashion-mnist": "Here it is 1.1 to 1.7 points above it, even for models that nothing selected."}


def search_split_note(dataset: str) -> str:
    measured = _MEASURED.get(dataset.lower())
    return f"{RANKS_ONLY} {measured}" if measured else RANKS_ONLY

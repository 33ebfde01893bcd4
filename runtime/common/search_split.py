"""The note on accuracies on the search split, for every display of one."""

RANKS_ONLY = "Accuracy on the search split ranks subnets; it is no estimate of test accuracy."
# Name or data/ folder of a data set -> measured difference to test accuracy, for models without selection
_MEASURED = {"fashion-mnist": "Here it is 1.1 to 1.7 points above it, even for models that nothing selected."}


def search_split_note(dataset: str) -> str:
    measured = _MEASURED.get(dataset.lower())
    return f"{RANKS_ONLY} {measured}" if measured else RANKS_ONLY

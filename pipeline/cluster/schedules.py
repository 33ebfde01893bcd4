"""When a recurring run starts: five fields of cron, or an interval."""

import re
from typing import Any

from autoformer.errors import AutoFormerError

NEVER = "never"
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 6))
_NAMES = {
    "month": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "day of the week": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}
_FORMS = 'EVERY="0 3 * * 1" (minute, hour, day, month, weekday), EVERY=6h, or EVERY=never to end it'


def trigger(every: str) -> dict[str, Any]:
    """The trigger as arguments of `kfp.Client.create_recurring_run`.

    KFP's cron has a field for seconds in front. It would read the first of five fields as seconds, and `0 3 * * 1`
    would start a run every hour, so `0` goes in front. Times are in the server's `CRON_SCHEDULE_TIMEZONE`, UTC by
    default.

    Raises:
        AutoFormerError: neither cron nor an interval; the message names the field.
    """
    interval = re.fullmatch(r"(\d+)([mhd])", every.strip())
    if interval:
        seconds = int(interval[1]) * _SECONDS[interval[2]]
        if not seconds:
            raise AutoFormerError(f"EVERY={every}: an interval of nothing; {_FORMS}")
        return {"interval_second": seconds}
    fields = every.split()
    if len(fields) != len(_FIELDS):
        raise AutoFormerError(f"EVERY={every}: {_FORMS}")
    for field, (name, low, high) in zip(fields, _FIELDS, strict=True):
        if not all(_is_part(part, _NAMES.get(name, []), low, high) for part in field.split(",")):
            raise AutoFormerError(f"EVERY={every}: '{field}' is no {name}, {low} to {high}; {_FORMS}")
    return {"cron_expression": " ".join(["0", *fields])}


def _is_part(part: str, names: list[str], low: int, high: int) -> bool:
    """Whether a part between commas is `*`, `5` or `1-5`, each perhaps with `/2`."""
    span, slash, step = part.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return False
    if span == "*":
        return True
    ends = [str(names.index(end.upper()) + low) if end.upper() in names else end for end in span.split("-")]
    if not 1 <= len(ends) <= 2 or not all(end.isascii() and end.isdecimal() for end in ends):
        return False
    values = [int(end) for end in ends]
    return all(low <= value <= high for value in values) and values == sorted(values)

"""When a recurring run starts: five fields of cron, or an interval."""

import calendar
import re
from itertools import chain
from typing import Any

from autoformer.errors import AutoFormerError

NEVER = "never"
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_LONGEST_DAYS = 366  # KFP overflows at 292 years, and then starts a run every 10 s
_LEAP_YEAR = 2024
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
    interval = re.fullmatch(r"([0-9]+)([mhd])", every.strip())
    if interval:
        seconds = int(interval[1]) * _SECONDS[interval[2]]
        if not seconds:
            raise AutoFormerError(f"EVERY={every}: an interval of nothing; {_FORMS}")
        if seconds > _LONGEST_DAYS * _SECONDS["d"]:
            raise AutoFormerError(f"EVERY={every}: more than {_LONGEST_DAYS} days; {_FORMS}")
        return {"interval_second": seconds}
    fields = every.split()
    if len(fields) != len(_FIELDS):
        raise AutoFormerError(f"EVERY={every}: {_FORMS}")
    values = []
    for field, (name, low, high) in zip(fields, _FIELDS, strict=True):
        parts = [_values(part, _NAMES.get(name, []), low, high) for part in field.split(",")]
        if not all(parts):
            raise AutoFormerError(f"EVERY={every}: '{field}' is no {name}, {low} to {high}; {_FORMS}")
        values.append(set(chain(*parts)))
    days, months = values[2], values[3]
    longest = max(calendar.monthrange(_LEAP_YEAR, month)[1] for month in months)
    if fields[4] == "*" and min(days) > longest:  # KFP would accept it, and start nothing
        raise AutoFormerError(f"EVERY={every}: month '{fields[3]}' never has a day {min(days)}; {_FORMS}")
    return {"cron_expression": " ".join(["0", *fields])}


def _values(part: str, names: list[str], low: int, high: int) -> range:
    """The values of a part between commas: `*`, `5` or `1-5`, each perhaps with `/2`; empty if it is none of these."""
    span, slash, step = part.partition("/")
    ends = [str(low), str(high)] if span == "*" else span.split("-")
    ends = [str(names.index(end.upper()) + low) if end.upper() in names else end for end in ends]
    if not 1 <= len(ends) <= 2 or not all(each.isascii() and each.isdecimal() for each in [*ends, step or "1"]):
        return range(0)
    first, last, stride = int(ends[0]), int(ends[-1]), int(step or not slash)
    if not low <= first <= last <= high or not stride:
        return range(0)
    return range(first, (high if slash and len(ends) == 1 else last) + 1, stride)

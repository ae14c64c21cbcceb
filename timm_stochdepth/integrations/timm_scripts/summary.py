"""The drop rate in force among what a script of timm's notes of each epoch."""
import csv
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, Callable, Generator, List

import timm.utils
import timm.utils.summary

from ...inspection import drop_rates
from .replaced import replaced
from .script_run import ScriptRun

__all__ = ['rate_in_summary']

_COLUMN = 'train_drop_rate'


@contextmanager
def rate_in_summary(run: ScriptRun) -> Generator[None, None, None]:
    """Context in which `timm.utils.update_summary` notes the largest drop rate of the network that is trained, too.

    It is the rate at the end of the epoch, at which the network is evaluated.
    """

    def wrap(update_summary: Callable[..., None]) -> Callable[..., None]:
        def update_with_rate(*args: Any, **kwargs: Any) -> None:
            call = signature(update_summary).bind(*args, **kwargs)
            rates = {} if run.network is None else drop_rates(run.network)
            if rates:
                metrics = {**call.arguments['train_metrics'], 'drop_rate': round(max(rates.values()), 6)}
                call.arguments['train_metrics'] = metrics
            header = _last_header(Path(call.arguments['filename']))
            if header and (_COLUMN in header) != bool(rates):
                call.arguments['write_header'] = True  # a resumed run has other columns than the one before
            update_summary(*call.args, **call.kwargs)

        return update_with_rate

    with replaced('update_summary', wrap, timm.utils, timm.utils.summary):
        yield


def _last_header(path: Path) -> List[str]:
    if not path.is_file():
        return []
    with path.open(newline='') as file:
        headers = [row for row in csv.reader(file) if row and row[0] == 'epoch']
    return headers[-1] if headers else []

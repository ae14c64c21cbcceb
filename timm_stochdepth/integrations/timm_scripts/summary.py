"""Note the drop rate in force among what a script of timm's notes of each epoch."""
import csv
from inspect import signature
from pathlib import Path
from typing import Any, Callable, List

from ...inspection import drop_rates
from .script_run import ScriptRun

__all__ = ['update_summary']

_COLUMN = 'train_drop_rate'


def update_summary(run: ScriptRun, original: Callable[..., None], /, *args: Any, **kwargs: Any) -> None:
    """`timm.utils.update_summary`, with the largest rate at the epoch's end, at which the network is evaluated."""
    call = signature(original).bind(*args, **kwargs)
    rates = {} if run.network is None else drop_rates(run.network)
    if rates:
        metrics = {**call.arguments['train_metrics'], 'drop_rate': round(max(rates.values()), 6)}
        call.arguments['train_metrics'] = metrics
    header = _last_header(Path(call.arguments['filename']))
    if header and (_COLUMN in header) != bool(rates):
        call.arguments['write_header'] = True  # a resumed run has other columns than the one before
    original(*call.args, **call.kwargs)


def _last_header(path: Path) -> List[str]:
    if not path.is_file():
        return []
    with path.open(newline='') as file:
        headers = [row for row in csv.reader(file) if row and row[0] == 'epoch']
    return headers[-1] if headers else []

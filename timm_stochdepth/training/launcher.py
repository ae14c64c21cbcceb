"""Run a script of timm's, otherwise untouched: models registered, warm-up connected, checkpoints folded."""
import runpy
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Optional, Sequence

from ..settings import Settings
from .checkpoints import folded_checkpoints
from .drop_path import stochastic_drop_path
from .warmup import warmup_from_scheduler

__all__ = ['run_script']


def run_script(script: str, args: Sequence[str], settings: Optional[Settings] = None) -> None:
    """Run a Python script as `python script args` would.

    Args:
        script: Path of timm's train.py, validate.py, inference.py or benchmark.py, or of one like them.
        args: Its arguments.
        settings: Of the drop paths of the models that it creates; None leaves them as timm has them.

    Raises:
        FileNotFoundError: There is no such script.
    """
    if not Path(script).is_file():
        raise FileNotFoundError(f'script must be a Python file, but got {script!r}.')
    sys.argv = [script, *args]
    sys.path.insert(0, str(Path(script).resolve().parent))
    with ExitStack() as contexts:
        if settings is not None:
            contexts.enter_context(stochastic_drop_path(settings))
        contexts.enter_context(folded_checkpoints())
        contexts.enter_context(warmup_from_scheduler())
        runpy.run_path(script, run_name='__main__')

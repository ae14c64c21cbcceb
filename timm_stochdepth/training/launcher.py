"""Run a script of timm's, otherwise untouched: models registered, warm-up connected, checkpoints folded."""
import runpy
import sys
from pathlib import Path
from typing import Sequence

from .checkpoints import folded_checkpoints
from .warmup import warmup_from_scheduler

__all__ = ['run_script']


def run_script(script: str, args: Sequence[str]) -> None:
    """Run a Python script as `python script args` would.

    Args:
        script: Path of timm's train.py, validate.py, inference.py or benchmark.py, or of one like them.
        args: Its arguments.

    Raises:
        FileNotFoundError: There is no such script.
    """
    if not Path(script).is_file():
        raise FileNotFoundError(f'script must be a Python file, but got {script!r}.')
    sys.argv = [script, *args]
    sys.path.insert(0, str(Path(script).resolve().parent))
    with folded_checkpoints(), warmup_from_scheduler():
        runpy.run_path(script, run_name='__main__')

"""Run a script of timm's, otherwise untouched: with stochastic depth, its warm-up, rates in logs and folded weights."""
import runpy
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Optional, Sequence

from ...checkpoints.drop_options import DropOptions
from .checkpoints import folded_checkpoints
from .drop_path import stochastic_drop_path
from .script_run import ScriptRun, noted_arguments
from .summary import rate_in_summary
from .warmup import warmup_from_scheduler

__all__ = ['run_script']


def run_script(script: str, args: Sequence[str], options: Optional[DropOptions] = None) -> None:
    """Run a Python script as `python script args` would.

    Args:
        script: Path of timm's train.py, validate.py, inference.py or benchmark.py, or of one like them.
        args: Its arguments.
        options: How the drop paths of the models that it creates drop; None leaves them as timm has them.

    Raises:
        FileNotFoundError: There is no such script.
        LauncherError: The network that it trains cannot drop so, or the script cannot be helped with what is asked.
    """
    if not Path(script).is_file():
        raise FileNotFoundError(f'script must be a Python file, but got {script!r}.')
    sys.argv = [script, *args]
    sys.path.insert(0, str(Path(script).resolve().parent))
    run = ScriptRun(options)
    with ExitStack() as contexts:
        for context in (
            noted_arguments, stochastic_drop_path, warmup_from_scheduler, rate_in_summary, folded_checkpoints,
        ):
            contexts.enter_context(context(run))
        try:
            runpy.run_path(script, run_name='__main__')
        except SystemExit as e:
            if not e.code:
                run.tell_of_no_effect()
            raise
        run.tell_of_no_effect()

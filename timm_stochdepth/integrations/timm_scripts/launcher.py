"""Run a script of timm's, otherwise untouched: with stochastic depth, its warm-up, rates in logs and folded weights."""
import argparse
import runpy
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generator, Optional, Sequence

import timm
import timm.models
import timm.models._builder
import timm.models._factory
import timm.optim
import timm.scheduler
import timm.utils
import timm.utils.summary

from ...checkpoints.drop_options import DropOptions
from .checkpoints import load_checkpoint, load_pretrained
from .drop_path import create_model
from .replaced import replaced
from .script_run import ScriptRun, parse_known_args
from .summary import update_summary
from .warmup import create_optimizer, create_scheduler

__all__ = ['helped', 'run_script']

_REPLACED: Any = (
    ('parse_known_args', parse_known_args, argparse.ArgumentParser),  # parse_args calls it, too
    ('create_model', create_model, timm, timm.models, timm.models._factory),
    ('load_checkpoint', load_checkpoint, timm.models, timm.models._factory),
    ('load_pretrained', load_pretrained, timm.models._builder),
    ('create_optimizer_v2', create_optimizer, timm.optim),
    ('create_scheduler_v2', create_scheduler, timm.scheduler),
    ('update_summary', update_summary, timm.utils, timm.utils.summary),
)


@contextmanager
def helped(run: ScriptRun) -> Generator[None, None, None]:
    """Context in which what a script calls does what the launcher is for."""
    with ExitStack() as contexts:
        for name, replacement, *owners in _REPLACED:
            contexts.enter_context(replaced(name, partial(replacement, run), *owners))
        yield


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
    with helped(run):
        try:
            runpy.run_path(script, run_name='__main__')
        except SystemExit as e:
            if not e.code:
                run.warn_of_no_effect()
            raise
        run.warn_of_no_effect()

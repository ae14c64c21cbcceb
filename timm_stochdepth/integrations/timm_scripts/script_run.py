"""Know a script that runs: its arguments, how its networks are to drop, and which of them it trains."""
import argparse
import logging
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple
from weakref import ref

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ...checkpoints.drop_options import DropOptions, LauncherError
from ...checkpoints.file import read_weights_file
from ...draws.process_group import is_first_rank
from ...inspection import drop_paths

__all__ = ['ScriptRun', 'log_line', 'parse_known_args']

_logger = logging.getLogger(__name__)


def log_line(text: str, level: int = logging.INFO) -> None:
    """Say something once for all ranks, where the script logs; on stderr, if it does not log lines of that level."""
    if not is_first_rank():
        return
    if _logger.isEnabledFor(level) and _logger.hasHandlers():
        _logger.log(level, text)
    else:
        print(text, file=sys.stderr, flush=True)


class ScriptRun:
    """A script that runs under the launcher.

    Attributes:
        options: How its networks are to drop; None leaves them as timm has them.
        args: Its arguments as it has parsed them, if there is a `model` among them.
        warming_up: Networks whose rates change, by their optimizers, and what tells if no scheduler moves them.
    """

    def __init__(self, options: Optional[DropOptions] = None) -> None:
        self.options = options
        self.args = argparse.Namespace()
        self.warming_up: Dict[Optimizer, Tuple[nn.Module, RemovableHandle]] = {}
        self._has_met_network = False
        self._network: Callable[[], Optional[nn.Module]] = lambda: None
        self._name: Optional[str] = None

    @property
    def network(self) -> Optional[nn.Module]:
        """The network that is trained, as far as it is known."""
        return self._network()

    def is_to_train(self, model_name: str) -> bool:
        """Whether a network that is being created is the one that is trained, and not a teacher beside it.

        It is the first one by the name that the script was given as its --model. A teacher has another name, or comes
        second (self-distillation). Where no --model was parsed, nothing tells but the order: the first one counts.
        """
        given = getattr(self.args, 'model', None)
        return model_name != self._name and model_name == given if given else self._name is None

    def created(self, network: nn.Module, model_name: Optional[str]) -> None:
        """Note a network that the script has created; with a name, if that is the one that is trained."""
        self._has_met_network = True
        if model_name is not None:
            self._network, self._name = ref(network), model_name
            self._tell_of_resume()

    def trains(self, network: nn.Module) -> None:
        """Note that an optimizer is made for a network: whatever its name, it is the one that is trained.

        Raises:
            LauncherError: It is to have stochastic depth, and timm has not created it, or TorchScript has compiled it.
        """
        if self._has_no_effect():
            raise LauncherError(self._has_no_effect())
        if self.options is not None and isinstance(network, torch.jit.ScriptModule):
            raise LauncherError(
                f'--torchscript must be left out with {self.options.on_command_line()}: TorchScript masks whatever is'
                ' dropped, at the rates of the start.')
        if any(drop_paths(network)):
            self._network = ref(network)

    def warn_of_no_effect(self) -> None:
        """Say at the end that nothing was given stochastic depth, if that was so."""
        if self._has_no_effect():
            log_line(self._has_no_effect(), logging.WARNING)

    def _has_no_effect(self) -> str:
        if self.options is None or self._has_met_network:
            return ''
        return (
            f'{self.options.on_command_line()} has no effect on {sys.argv[0]}, which creates no network with'
            ' timm.create_model: apply_stochastic_depth gives one of your own stochastic depth.')

    def note_arguments(self, args: argparse.Namespace, own_names: Sequence[str]) -> None:
        """Take notice of what the script has parsed by a parser that knows these names, and add the options.

        Raises:
            LauncherError: The options that are there already, from args.yaml given as --config, are none.
        """
        if not hasattr(args, 'model'):
            return
        self.args = args
        if 'stochastic_depth' in own_names:
            return  # an option of the script's own
        if self.options is None and hasattr(args, 'stochastic_depth'):
            self.options = DropOptions.from_args(args.stochastic_depth)
        if self.options is not None:
            args.stochastic_depth = self.options.as_args()

    def resumes(self, path: Path) -> bool:
        """Whether a file is the one that the script was given as its --resume."""
        resumed = getattr(self.args, 'resume', None)
        return bool(resumed) and Path(str(resumed)) == path

    def _tell_of_resume(self) -> None:
        """Say that the run that is resumed had other options, if its checkpoint says so."""
        path = Path(str(getattr(self.args, 'resume', None)))
        if not (is_first_rank() and self.resumes(path) and path.is_file()):
            return
        try:
            options = DropOptions.from_args(read_weights_file(path).args.get('stochastic_depth'))
        except (OSError, ValueError):  # which the script tells of itself, or there were none
            return
        if options != self.options:
            now = f'with {self.options.on_command_line()}' if self.options else "with timm's own drop paths"
            log_line(
                f'{path} was written by a run with {options.on_command_line()}, which goes on {now}. To go on as it'
                f' was: timm-stochdepth run {options.on_command_line()} {sys.argv[0]} ...', logging.WARNING)


def parse_known_args(
        run: ScriptRun,
        original: Callable[..., Tuple[Any, Any]],
        parser: argparse.ArgumentParser,
        *args: Any,
        **kwargs: Any,
) -> Tuple[Any, Any]:
    """argparse's method, of which a run takes notice."""
    namespace, others = original(parser, *args, **kwargs)
    run.note_arguments(namespace, [action.dest for action in parser._actions])
    return namespace, others

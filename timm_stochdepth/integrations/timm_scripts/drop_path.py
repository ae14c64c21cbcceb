"""Give the networks of timm's that a script creates stochastic depth."""
import logging
from typing import Any, Callable, NoReturn, Optional

from timm.models import get_arch_name, is_model
from torch import nn

from ...apply import apply_settings
from ...checkpoints.drop_options import DropOptions, LauncherError
from ...inspection import drop_paths
from ...layers.guards import looks_at_batch
from ...layers.targets import find_targets
from ...settings import check_fraction
from ...zoo.names import stochastic_name
from .script_run import ScriptRun, log_line

__all__ = ['create_model']


class _Unfit(Exception):
    """Why a network is not given stochastic depth, in words that follow its name, and what to do about it."""

    def __init__(self, reason: str, advice: str, is_error: bool = True) -> None:
        super().__init__(reason)
        self.advice = advice
        self.is_error = is_error  # whether the network that is trained must not go on so


def create_model(run: ScriptRun, original: Callable[..., nn.Module], model_name: str, *args: Any, **kwargs: Any) -> Any:
    """`timm.create_model`, with drop paths that drop as the run's options say.

    The network that is trained has to be able to. Another one, a teacher, is left as it is where it is not, in a line.
    """
    options, is_trained = run.options, run.is_to_train(model_name)
    try:
        model = original(model_name, *args, **kwargs)
    except TypeError as e:
        if options is None or not is_trained or "argument 'drop_path_rate'" not in str(e):
            raise
        _refuse(model_name, options, _without_drop_paths(model_name, options))
    run.created(model, model_name if is_trained else None)
    if options is None:
        return model
    try:
        _give(model, model_name, kwargs.get('drop_path_rate'), options)
    except _Unfit as e:
        if not is_trained:
            log_line(f'{model_name} is left as it is beside the network that is trained: it {e}.')
        elif e.is_error:
            _refuse(model_name, options, e)
        else:
            log_line(f'{model_name} is left as it is: it {e}. {e.advice}.', logging.WARNING)
    return model


def _refuse(name: str, options: DropOptions, unfit: _Unfit) -> NoReturn:
    raise LauncherError(
        f'--model must be a network that {options.on_command_line()} can be given to, but got {name!r}, which {unfit}:'
        f' {unfit.advice}.') from None


def _without_drop_paths(name: str, options: DropOptions) -> _Unfit:
    registered = stochastic_name(get_arch_name(name), options.settings.stochastic_method)
    if is_model(registered):
        advice = f'--model {registered}, without these options, drops its branches all the same'
        return _Unfit('has no drop paths', advice)
    return _Unfit(
        'has no drop paths',
        'vit_*, convnext_*, swin_*, resnet* and others have them, and timm-stochdepth families says which networks can'
        ' leave out what they drop')


def _give(model: nn.Module, name: str, drop_path_rate: Optional[float], options: DropOptions) -> None:
    """Give a network stochastic depth, and say so.

    Raises:
        _Unfit: It cannot have what is asked for.
        LauncherError: Its rate is none.
    """
    own = next((drop_path for _, drop_path in drop_paths(model)), None)
    if own is not None:
        kwargs = options.as_model_kwargs(own.settings.stochastic_method)
        raise _Unfit(
            'has stochastic depth of its own',
            f'leave these options out, and write {kwargs} after the script' if kwargs else 'leave this option out')
    targets = find_targets(model, 'DropPath')
    if not targets:
        raise _without_drop_paths(name, options)
    is_spread = options.drop_distribution is not None and drop_path_rate is not None
    try:
        rate = check_fraction(
            "the script's --drop-path",
            drop_path_rate if is_spread else max(rate for target in targets for rate in target.rates()))
    except (TypeError, ValueError) as e:
        raise LauncherError(e) from e
    if rate == 0.:
        raise _Unfit('has a drop rate of 0', "The script's --drop-path says the rate", is_error=False)
    has_batch_norm = any(looks_at_batch(target.block) for target in targets)
    try:
        apply_settings(model, 'DropPath', options.at_rate(rate))
    except ValueError as e:
        raise _Unfit(
            f'cannot, as {e}'.rstrip('.'), 'with --stochastic-depth sample it masks what it drops, as timm does') from e
    log_line(_what_was_given(model, name, options))
    if options.settings.skip_dropped and has_batch_norm:
        log_line(
            f'The blocks of {name} have a BatchNorm, which sees the kept samples alone where the others are skipped: it'
            " does not learn what timm's DropPath would teach. --stochastic-depth sample does.", logging.WARNING)


def _what_was_given(model: nn.Module, name: str, options: DropOptions) -> str:
    settings = options.settings
    found = dict(drop_paths(model))
    rates = [drop_path.unscheduled_rate() for drop_path in found.values()]
    skips = settings.skip_dropped or settings.stochastic_method == 'block'
    return (
        f'{name} has stochastic depth in {len({path.rpartition(".")[0] for path in found})} blocks, method'
        f' {settings.stochastic_method}, drop rates from {min(rates):.4g} to {max(rates):.4g}, what is dropped is'
        f' {"not computed" if skips else "masked"} ({options.on_command_line()}).')

"""Apply and warm up stochastic depth as an algorithm of Composer's trainer."""
from dataclasses import asdict
from typing import Any, Dict, Optional, Protocol, Sequence, Tuple, Union

from ...apply import apply_settings
from ...inspection import drop_paths, drop_rates
from ...layers.progress import TrainingProgress
from ...layers.target_names import check_target_layer_name
from ...settings import METHODS, Settings, check_flag
from .clock import Duration, State, check_duration, share_done
from .model_in_training import ModelInTraining

__all__ = ['StochasticDepth']

# where training may have gone on; evaluations and checkpoints come after the ends
_CLOCK_EVENTS = ('fit_start', 'batch_start', 'batch_end', 'epoch_end')


class Logger(Protocol):
    """What is asked of the trainer's logger."""

    def log_metrics(self, metrics: Dict[str, Any]) -> None: ...

    def log_hyperparameters(self, hyperparameters: Dict[str, Any]) -> None: ...


class StochasticDepth:
    """Gives the model of Composer's `Trainer` stochastic depth, and warms its rate up.

    The rate moves with every batch, whatever `max_duration` is counted in: epochs, batches, samples, tokens or
    iterations. An epoch is as many batches as the train dataloader, or `train_subset_num_batches`, says. Where neither
    does, Composer refuses a `max_duration` in epochs, and training with a `drop_warmup` in them is refused at its
    start. A run that is stopped early keeps the rate that it has then.

    Checkpoints hold how far the warm-up is, and a run that is resumed goes on there, with the algorithm, whether it
    names it or not. Weights that are loaded alone (`load_weights_only=True`), or come from a run without this
    algorithm, are scaled so that the model computes at the rate now in force what they computed.

    Args:
        stochastic_method: `'sample'` or `'block'`.
        target_layer_name: `'DropPath'`, a key of `STOCHASTIC_LAYER_MAPPING`, or a class's own name.
        drop_warmup: How long the rate rises from 0: a fraction of training, in [0, 1], or a time of Composer's,
            `'0.1dur'`, `'2ep'`, `'10ba'` or a `Time`. A warm-up of 2 epochs or 10 batches is one of 1.0 in the model's
            settings, whose progress is the warm-up's.
        drop_rate, drop_distribution, use_same_gpu_seed, drop_schedule, scale_by_keep: See `Settings`.
        skip_dropped, round_up, draw: See `Settings`.
        keep_function: Scale the weights that the model has when the trainer is made, so that it computes at inference
            what it computed; see `apply_stochastic_depth`.

    Raises:
        TypeError: A rate is not a number, a flag not a bool.
        ValueError: A value is not one of those allowed, or the first two are swapped.

    Example:
        >>> algorithm = StochasticDepth('block', 'ResNetBottleneck', drop_rate=0.2, drop_warmup=0.1)
        >>> print(algorithm)
        StochasticDepth('block', 'ResNetBottleneck', drop_rate=0.2, drop_warmup=0.1)
    """
    # asked for by the trainer: the gradients need no graph, and DDP sees all parameters as used
    backwards_create_graph = False
    find_unused_parameters = False

    def __init__(
            self,
            stochastic_method: str,
            target_layer_name: str,
            drop_rate: Optional[float] = 0.2,
            drop_distribution: str = 'linear',
            drop_warmup: Union[float, str, Duration] = 0.,
            use_same_gpu_seed: bool = True,
            *,
            drop_schedule: Optional[Sequence[Tuple[float, float]]] = None,
            scale_by_keep: Optional[bool] = None,
            skip_dropped: bool = False,
            round_up: bool = False,
            draw: str = 'independent',
            keep_function: bool = False,
    ) -> None:
        _refuse_swapped(stochastic_method, target_layer_name)
        check_target_layer_name(target_layer_name)
        warmup = check_duration('drop_warmup', drop_warmup)
        if not isinstance(warmup, float) and drop_schedule is not None:
            raise ValueError(
                f'drop_warmup must be 0 where a drop_schedule is given, but got {warmup.to_timestring()!r}.')
        # of these the model only hears how much has passed
        self.warmup_duration = None if isinstance(warmup, float) else warmup
        self.settings = Settings(
            stochastic_method, drop_rate, drop_distribution, use_same_gpu_seed,
            warmup if isinstance(warmup, float) else 1., drop_schedule, scale_by_keep, skip_dropped,
            round_up, draw)
        self.target_layer_name = target_layer_name
        self.keep_function = check_flag('keep_function', keep_function)
        self._model: Optional[ModelInTraining] = None
        self._max_duration: Optional[Duration] = None
        self._logged: Optional[Tuple[int, float]] = None

    @staticmethod
    def required_on_load() -> bool:
        """Whether a checkpoint that was made with this algorithm needs it."""
        return True

    def match(self, event: Any, state: State) -> bool:
        """Whether `apply` has something to do: on INIT and AFTER_LOAD, and with a warm-up while training goes on."""
        name = _event_name(event)
        return name in ('init', 'after_load') or (name in _CLOCK_EVENTS and bool(self.settings.schedule))

    def apply(self, event: Any, state: State, logger: Logger) -> Optional[int]:
        """Change `state.model` on INIT, and set its rate on all other events that match."""
        name = _event_name(event)
        if name == 'init':
            self._change_model(state, logger)
            return None
        assert self._model is not None, 'INIT comes first'
        if name == 'after_load':
            self._model.take_loaded()
        else:
            if name in ('fit_start', 'batch_start'):
                self._max_duration = state.max_duration  # who stops a run sets it to what is done
            duration = self.warmup_duration or self._max_duration
            assert duration is not None, 'the trainer has a max_duration when it trains'
            self._model.go_on(share_done(state, duration))
        self._log_rate(state, logger)
        return None

    def _change_model(self, state: State, logger: Logger) -> None:
        had_stochastic_depth = any(drop_paths(state.model))
        # trained weights of a plain network are right at the rate of the start, others at that of the end
        progress = 1. if had_stochastic_depth or not self.settings.schedule else 0.
        apply_settings(
            state.model, self.target_layer_name, self.settings, self.keep_function, TrainingProgress(progress))
        self._model = ModelInTraining(state.model, progress)
        logger.log_metrics({'stochastic_depth/num_stochastic_layers': len(drop_rates(state.model))})
        arguments = _arguments(self)
        for _, drop_path in drop_paths(state.model):
            arguments['scale_by_keep'] = drop_path.scale_by_keep  # where it was left to the drop paths that were there
        logger.log_hyperparameters({f'stochastic_depth/{k}': v for k, v in arguments.items()})

    def _log_rate(self, state: State, logger: Logger) -> None:
        moment = int(state.timestamp.batch), max(drop_rates(state.model).values(), default=0.)
        if moment != self._logged:
            self._logged = moment
            logger.log_metrics({'stochastic_depth/drop_rate': moment[1]})

    def state_dict(self) -> Dict[str, Any]:
        """What a checkpoint holds of this algorithm."""
        return dict(repr=repr(self), **({} if self._model is None else self._model.state_dict()))

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over what a checkpoint holds; a ValueError if it is one of Composer's own StochasticDepth."""
        if 'progress' not in state:
            raise ValueError(
                'load_path must be a checkpoint of a run with timm_stochdepth.StochasticDepth, but it is of one with'
                f" Composer's own: {state.get('repr')}. Resume it with composer.algorithms.StochasticDepth.")
        assert self._model is not None, 'INIT comes first'
        self._model.resume(state)

    def __str__(self) -> str:
        given = _arguments(self)
        method, target = given.pop('stochastic_method'), given.pop('target_layer_name')
        changed = {k: v for k, v in given.items() if k == 'drop_rate' or v != getattr(Settings(method), k, False)}
        arguments = [repr(method), repr(target), *(f'{k}={v!r}' for k, v in changed.items())]
        return f'StochasticDepth({", ".join(arguments)})'

    def __repr__(self) -> str:
        # Composer evaluates this after "algorithms.", to compare with the algorithms that a run names, and to add what
        # is not named
        return f'StochasticDepth and __import__({__package__.partition(".")[0]!r}).{self}'


def _event_name(event: Any) -> str:
    return str(getattr(event, 'value', event)).lower()


def _refuse_swapped(method: Any, target_layer_name: Any) -> None:
    if target_layer_name in METHODS and method not in METHODS:
        raise ValueError(
            'stochastic_method and target_layer_name are swapped (Composer has them the other way round): got'
            f' {method!r} and {target_layer_name!r}, and must be StochasticDepth({target_layer_name!r}, {method!r},'
            ' ...).')


def _arguments(algorithm: StochasticDepth) -> Dict[str, Any]:
    arguments = dict(
        asdict(algorithm.settings), target_layer_name=algorithm.target_layer_name,
        keep_function=algorithm.keep_function)
    if algorithm.warmup_duration is not None:
        arguments['drop_warmup'] = algorithm.warmup_duration.to_timestring()
    return arguments

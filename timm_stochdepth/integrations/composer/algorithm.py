"""Apply and warm up stochastic depth as an algorithm of Composer's trainer."""
from dataclasses import asdict
from typing import Any, Dict, Optional, Protocol, Sequence, Tuple, Union

from ...apply import apply_settings
from ...control import set_training_progress
from ...draws.shared import SharedDraws
from ...folding.rescale import multiply, own_rescaling
from ...inspection import drop_paths, drop_rates, inference_factors
from ...layers.progress import TrainingProgress
from ...layers.target_names import check_target_layer_name
from ...settings import METHODS, Settings, check_flag
from .clock import Duration, State, check_duration, share_done
from .loaded_weights import LoadedWeights

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

    Checkpoints hold how far the warm-up is, and a run that is resumed goes on there. A run that does not name the
    algorithm is given it, with a warning: so Composer treats algorithms that change the model. Weights that are loaded
    alone (`load_weights_only=True`), or come from a run without this algorithm, are scaled so that the model computes
    at the rate now in force what they computed.

    Args:
        stochastic_method: `'sample'` or `'block'`.
        target_layer_name: `'DropPath'`, a key of `STOCHASTIC_LAYER_MAPPING`, or a class's own name.
        drop_warmup: How long the rate rises from 0: a fraction of training, in [0, 1], or a time of Composer's,
            `'0.1dur'`, `'2ep'`, `'10ba'` or a `Time`. A warm-up of 2 epochs or 10 batches is one of 1.0 in the model's
            settings, whose progress is the warm-up's.
        drop_rate, drop_distribution, use_same_gpu_seed, drop_schedule, scale_by_keep, skip_dropped: See `Settings`.
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
            keep_function: bool = False,
    ) -> None:
        if target_layer_name in METHODS and stochastic_method not in METHODS:
            raise ValueError(
                'stochastic_method and target_layer_name are swapped (Composer has them the other way round): got'
                f' {stochastic_method!r} and {target_layer_name!r}, and must be'
                f' StochasticDepth({target_layer_name!r}, {stochastic_method!r}, ...).')
        check_target_layer_name(target_layer_name)
        warmup = check_duration('drop_warmup', drop_warmup)
        if not isinstance(warmup, float) and drop_schedule is not None:
            raise ValueError(
                f'drop_warmup must be 0 where a drop_schedule is given, but got {warmup.to_timestring()!r}.')
        # of these the model only hears how much has passed
        self.warmup_duration = None if isinstance(warmup, float) else warmup
        self.settings = Settings(
            stochastic_method, drop_rate, drop_distribution, use_same_gpu_seed,
            warmup if isinstance(warmup, float) else 1., drop_schedule, scale_by_keep, skip_dropped)
        self.target_layer_name = target_layer_name
        self.keep_function = check_flag('keep_function', keep_function)
        self.progress = 1.
        self._max_duration: Optional[Duration] = None
        self._logged: Optional[Tuple[int, float]] = None
        self._goes_on = False  # with the weights as they are, at the rate that follows on that of before
        self._loaded_weights: Optional[LoadedWeights] = None
        self._shared_draws: Optional[SharedDraws] = None
        self._num_steps: Optional[int] = None  # that of the shared draws, as a checkpoint has it

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
        if name == 'after_load':
            self._take_loaded(state)
        else:
            if name in ('fit_start', 'batch_start'):
                self._max_duration = state.max_duration  # who stops a run sets it to what is done
            self._follow_clock(state)
        self._log_rate(state, logger)
        return None

    def _change_model(self, state: State, logger: Logger) -> None:
        had_stochastic_depth = any(drop_paths(state.model))
        # trained weights of a plain network are right at the rate of the start, others at that of the end
        self.progress = 1. if had_stochastic_depth or not self.settings.schedule else 0.
        apply_settings(
            state.model, self.target_layer_name, self.settings, self.keep_function, TrainingProgress(self.progress))
        self._set_progress(state, self.progress)
        self._goes_on = False
        self._loaded_weights = LoadedWeights(state.model)
        logger.log_metrics({'stochastic_depth/num_stochastic_layers': len(drop_rates(state.model))})
        arguments = self._arguments()
        for _, drop_path in drop_paths(state.model):
            self._shared_draws = drop_path.shared_draws
            arguments['scale_by_keep'] = drop_path.scale_by_keep  # where it was left to the drop paths that were there
        logger.log_hyperparameters({f'stochastic_depth/{k}': v for k, v in arguments.items()})

    def _take_loaded(self, state: State) -> None:
        assert self._loaded_weights is not None, 'INIT comes first'
        trained = self._loaded_weights.stop_noting()
        if self._goes_on:
            self._set_progress(state, self.progress)
            if self._shared_draws is not None and self._num_steps is not None:
                # the weights' metadata said it, too, but then the optimizer's state was loaded, which takes a step
                self._shared_draws.num_steps = self._num_steps
        elif trained is not None:
            self._set_progress(state, 1. if trained else 0.)
            multiply(own_rescaling(state.model, trained, inference_factors(state.model)))

    def _follow_clock(self, state: State) -> None:
        duration = self.warmup_duration or self._max_duration
        assert duration is not None, 'the trainer has a max_duration when it trains'
        before = inference_factors(state.model)
        self._set_progress(state, share_done(state, duration))
        if not self._goes_on:
            multiply(own_rescaling(state.model, before, inference_factors(state.model)))
        self._goes_on = True

    def _set_progress(self, state: State, fraction: float) -> None:
        self.progress = fraction
        if self.settings.schedule:
            set_training_progress(state.model, fraction)

    def _log_rate(self, state: State, logger: Logger) -> None:
        moment = int(state.timestamp.batch), max(drop_rates(state.model).values(), default=0.)
        if moment != self._logged:
            self._logged = moment
            logger.log_metrics({'stochastic_depth/drop_rate': moment[1]})

    def state_dict(self) -> Dict[str, Any]:
        """What a checkpoint holds of this algorithm."""
        num_steps = None if self._shared_draws is None else self._shared_draws.num_steps
        return dict(repr=repr(self), progress=self.progress, num_steps=num_steps)

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over what a checkpoint holds; a ValueError if it is one of Composer's own StochasticDepth."""
        if 'progress' not in state:
            raise ValueError(
                'load_path must be a checkpoint of a run with timm_stochdepth.StochasticDepth, but it is of one with'
                f" Composer's own: {state.get('repr')}. Resume it with composer.algorithms.StochasticDepth.")
        self.progress, self._num_steps = state['progress'], state['num_steps']
        self._goes_on = True

    def _arguments(self) -> Dict[str, Any]:
        arguments = dict(
            asdict(self.settings), target_layer_name=self.target_layer_name, keep_function=self.keep_function)
        if self.warmup_duration is not None:
            arguments['drop_warmup'] = self.warmup_duration.to_timestring()
        return arguments

    def __str__(self) -> str:
        given = self._arguments()
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

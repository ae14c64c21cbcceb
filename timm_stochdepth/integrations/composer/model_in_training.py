"""Keep what a trainer's model computes, at the rates of a warm-up and with the weights that the trainer loads."""
from typing import Any, Dict, Optional

from torch import nn

from ...control import set_training_progress
from ...folding.rescale import multiply, own_rescaling
from ...inspection import drop_paths, inference_factors

__all__ = ['ModelInTraining']


class ModelInTraining:
    """A model with stochastic depth in a trainer, from before the trainer loads weights.

    Composer saves the weights of a model that stands in DistributedDataParallel, and takes its prefix off the names of
    tensors, but not off those in their metadata: it is taken off here.

    Args:
        model: It.
        progress: How far its training is, or its warm-up.
    """

    def __init__(self, model: nn.Module, progress: float) -> None:
        self.model = model
        self._resumed: Optional[Dict[str, Any]] = None
        self._goes_on = False  # with the weights as they are, at the rate that follows on that of before
        self._trained: Optional[Dict[str, float]] = None  # inference factors of loaded weights, if they say some
        self._set_progress(progress)
        # a function, and no method: a copy of the model, that of an average for instance, is not to copy this
        self._handle = model.register_load_state_dict_pre_hook(lambda *args: self._note(*args))

    def _note(self, model: nn.Module, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        metadata = getattr(state_dict, '_metadata', None)
        if metadata is None or prefix:
            return
        self._trained = {}
        for name, drop_path in drop_paths(model):
            said = metadata.get(f'module.{name}') or metadata.get(name) or {}
            if 'inference_scale' in said:
                self._trained[name] = said['inference_scale']
            # other rates are no reason to warn of: who resumes goes on with the weights, all others have them folded
            metadata[name] = {
                **said, 'version': drop_path._version, 'full_inference_scale': drop_path.inference_scale(full=True)}

    def resume(self, state_dict: Dict[str, Any]) -> None:
        """Have weights that are loaded taken as those of a run whose `state_dict` this is."""
        self._resumed = state_dict

    def take_loaded(self) -> None:
        """Take what was loaded: as it is in a run that is resumed, else scaled to compute what it computed."""
        self._handle.remove()
        if self._resumed is not None:
            self._goes_on = True
            self._set_progress(self._resumed['progress'])
            if self._resumed['num_steps'] is not None:
                # the weights' metadata said it, too, but then the optimizer's state was loaded, which takes a step
                for _, drop_path in drop_paths(self.model):
                    if drop_path.shared_draws is not None:
                        drop_path.shared_draws.go_on_from(self._resumed['num_steps'], self._resumed.get('seed'))
        elif self._trained is not None:  # of a plain network, if empty
            self._set_progress(1. if self._trained else 0.)
            multiply(own_rescaling(self.model, self._trained, inference_factors(self.model)))

    def go_on(self, progress: float) -> None:
        """Move the rates; with the weights at the start, so that the model still computes what it computed."""
        before = inference_factors(self.model)
        self._set_progress(progress)
        if not self._goes_on:
            multiply(own_rescaling(self.model, before, inference_factors(self.model)))
        self._goes_on = True

    def _set_progress(self, progress: float) -> None:
        self.progress = progress
        if any(drop_path.settings.schedule for _, drop_path in drop_paths(self.model)):
            set_training_progress(self.model, progress)

    def state_dict(self) -> Dict[str, Any]:
        """What a checkpoint has of it."""
        shared = [drop_path.shared_draws for _, drop_path in drop_paths(self.model)]
        num_steps, seed = next(((draws.num_steps, draws.seed) for draws in shared if draws is not None), (None, None))
        return dict(progress=self.progress, num_steps=num_steps, seed=seed)

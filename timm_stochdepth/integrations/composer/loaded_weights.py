"""Note what weights say of themselves that a trainer loads, until it is known what they are loaded for."""
from typing import Any, Dict, Optional

from torch import nn

from ...inspection import drop_paths

__all__ = ['LoadedWeights']


class LoadedWeights:
    """The weights that are loaded into a model from now on, until that is over.

    Composer saves the weights of a model that stands in DistributedDataParallel, and takes its prefix off the names of
    tensors, but not off those in their metadata: it is taken off here.
    """

    def __init__(self, model: nn.Module) -> None:
        self._trained: Optional[Dict[str, float]] = None
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

    def stop_noting(self) -> Optional[Dict[str, float]]:
        """What each branch was multiplied with where the weights come from, by its drop path's name.

        It is empty for a plain network, None if nothing was loaded, or nothing that says so.
        """
        self._handle.remove()
        return self._trained

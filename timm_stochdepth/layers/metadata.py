"""Write drop rates into a state_dict's metadata, and compare them when weights are loaded."""
import warnings
from dataclasses import asdict
from functools import cache
from typing import Any, Dict, Iterable

from torch import nn

from .rate import DropRate

__all__ = ['RateMetadata', 'note_block']


class RateMetadata(DropRate):
    """A drop rate that the metadata of each state_dict says, and that is compared with the one of loaded weights."""
    # a DropPath's is 1: the metadata of a state_dict tells whose weights it holds
    _version = 2

    # that of the block, in a plain network of which nothing stands here
    block_metadata: Dict[str, Any] = {}
    block_has_gradients = False

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # the metadata goes where torch.save and deepcopy take a state_dict, and its keys stay those of a plain network
        getattr(destination, '_metadata', {}).setdefault(prefix[:-1], {}).update(
            inference_scale=self.inference_scale(),
            full_inference_scale=self.inference_scale(full=True),
            settings=asdict(self.settings),
            depth_scale=self.depth_scale,
            own_rate=self.own_rate,
        )
        num_steps = None if self.shared_draws is None else self.shared_draws.num_steps
        if self.shared_draws is not None and num_steps is not None:
            getattr(destination, '_metadata', {})[prefix[:-1]].update(num_steps=num_steps, seed=self.shared_draws.seed)

    def _load_from_state_dict(
            self,
            state_dict: Dict[str, Any],
            prefix: str,
            local_metadata: Dict[str, Any],
            *args: Any,
    ) -> None:
        self._warn_of_other_rates(local_metadata or self.block_metadata)
        if self.shared_draws is not None and 'num_steps' in local_metadata:
            self.shared_draws.go_on_from(local_metadata['num_steps'], local_metadata.get('seed'))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _warn_of_other_rates(self, local_metadata: Dict[str, Any]) -> None:
        # a run that goes on may have been at another point of its warm-up: the full rates tell
        trained_scale = local_metadata.get('full_inference_scale')
        keeps_function = (
            'timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file=...)) keeps what a network'
            " computes, and so do train.py's --initial-checkpoint and validate.py's --checkpoint under `timm-stochdepth"
            ' run`.')
        if trained_scale is not None:
            if trained_scale != self.inference_scale(full=True):
                warnings.warn(
                    'The weights were trained at other drop rates, or with another scale_by_keep, than this network'
                    f' has. They are loaded as they are, so that it computes something else: {keeps_function}',
                    stacklevel=3)
        elif local_metadata.get('version') == self._version or self.inference_scale() == 1.:
            return
        elif local_metadata:
            warnings.warn(
                'The weights are of a plain network. They are loaded as they are, as those of a network with stochastic'
                f' depth at the rates of this one. For other weights, {keeps_function}', stacklevel=3)
        elif not (self.progress.has_stepped or self.block_has_gradients):  # libraries hand one that trains its own
            _warn_of_no_metadata(keeps_function)


def note_block(block: nn.Module, drop_paths: Iterable[RateMetadata], local_metadata: Dict[str, Any]) -> None:
    """Tell the drop paths of a block, which own no tensors, of the weights that are loaded into it."""
    has_gradients = any(p.grad is not None for p in block.parameters())
    for drop_path in drop_paths:
        drop_path.block_metadata, drop_path.block_has_gradients = local_metadata, has_gradients


@cache
def _warn_of_no_metadata(keeps_function: str) -> None:
    """Once in a process: libraries that hand on a network's own weights without metadata do so again and again."""
    warnings.warn(
        'The weights do not say what drop rates they are for: their state_dict has lost its metadata, as in safetensors'
        ' and in the checkpoints of many libraries. They are loaded as they are. That is right for a run that goes on'
        f' at its rates. For weights of a plain network, or of other rates, {keeps_function}', stacklevel=4)

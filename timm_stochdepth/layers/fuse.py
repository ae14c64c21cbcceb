"""Refuse to fuse a block into one layer where the scale of its branch would be lost."""
from typing import Any, Dict, Type

from torch import nn

__all__ = ['checked_fuse']


def checked_fuse(plain_class: Type[nn.Module]) -> Dict[str, Any]:
    """The method `fuse` of a stochastic class, where the plain one has one, which knows no drop path."""
    if not hasattr(plain_class, 'fuse'):
        return {}

    def fuse(self: Any) -> Any:
        fused = plain_class.fuse(self)
        if fused is not self and any(drop_path.inference_scale() != 1. for drop_path in self._drop_paths()):
            raise ValueError(
                f'{plain_class.__name__} must not scale its branch at inference to be fused into one layer, but does:'
                ' fuse fold_stochastic_depth(model) instead.')
        return fused

    return {'fuse': fuse}

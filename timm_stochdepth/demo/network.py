"""The networks that a demo compares, and what they are called."""
import re
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Any, Dict, List, Optional, Sequence

import timm
import torch
from timm.layers import DropPath, PatchEmbed
from torch import nn

from ..apply import apply_stochastic_depth
from ..inspection import drop_paths
from .images import NUM_CLASSES, Format
from .methods import METHODS

__all__ = ['Network', 'check_method', 'fitted', 'has_own_depth', 'network_label', 'short_labels']


def network_label(model_name: str, method: Optional[str]) -> str:
    """What a network is called."""
    return f'{model_name}, {method}' if method else model_name


def short_labels(labels: Sequence[str]) -> List[str]:
    """What tells networks apart where there is little room: their labels without the words that all begin with."""
    words = [re.split('_|, ', label) for label in labels]
    num_common = len(commonprefix(words))
    return ['_'.join(own[num_common:]) or label for own, label in zip(words, labels)] if num_common else list(labels)


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
        model_name: A name of timm's registry.
        model_args: Arguments of `timm.create_model`, without the drop rate.
        drop_path_rate: The drop rate; None for the network's own.
        method: A key of `METHODS`, or None for what the name says.
    """
    model_name: str
    model_args: Dict[str, Any] = field(default_factory=dict)
    drop_path_rate: Optional[float] = None
    method: Optional[str] = None

    @property
    def label(self) -> str:
        return network_label(self.model_name, self.method)

    @property
    def all_model_args(self) -> Dict[str, Any]:
        """Arguments of `timm.create_model`."""
        if self.drop_path_rate is None or self.method == 'plain':
            return self.model_args
        return {**self.model_args, 'drop_path_rate': self.drop_path_rate}

    def create(self) -> nn.Module:
        """The network, with new weights."""
        model = timm.create_model(self.model_name, num_classes=NUM_CLASSES, **self.all_model_args)
        settings = METHODS.get(self.method or 'plain')
        if settings:
            apply_stochastic_depth(model, target_layer_name='DropPath', drop_rate=None, **settings)
        return model


def has_own_depth(model_name: str) -> bool:
    """Whether a name of the registry stands for a network with stochastic depth."""
    with torch.device('meta'):
        return any(drop_paths(timm.create_model(model_name)))


def check_method(network: Network) -> None:
    """Refuse a network that cannot drop as its method says.

    Raises:
        ValueError: It has no drop paths, or branches that cannot be left out.
    """
    with torch.device('meta'):
        try:
            model = replace(network, method='timm').create()
        except TypeError:
            model = nn.Identity()
        if network.method != 'plain' and not any(isinstance(module, DropPath) for module in model.modules()):
            raise ValueError(f'--models/--model must be networks with drop paths, but got {network.model_name!r}.')
        try:
            network.create()
        except ValueError as e:
            raise ValueError(
                f'--methods must be those that {network.model_name} can take, but got {network.method!r}: {e}') from e


def fitted(network: Network, image_format: Format) -> Network:
    """The network with the arguments by which it takes such images.

    A transformer is told their size, and its patches are made smaller where they would not tile them.

    Args:
        network: Its own arguments are kept.
        image_format: The images.

    Raises:
        ValueError: The network does not take its own arguments, or no images of this size.
    """
    channels, size, _ = image_format.input_size
    colours: Dict[str, Any] = {}
    if channels != 3:  # the default of all
        # what the network's own statistics are for is other images
        overlay = dict(mean=image_format.mean, std=image_format.std)
        colours = dict(in_chans=channels, pretrained_cfg_overlay=overlay)
    patches = [dict(patch_size=p) for p in (8, 7, 4) if size % p == 0]
    of_size = dict(colours, img_size=size)
    refusals: List[ValueError] = []
    for args in (of_size, *({**of_size, **patch} for patch in patches), colours):
        candidate = replace(network, model_args={**args, **network.model_args})
        with torch.device('meta'):
            try:
                model = replace(candidate, method=network.method and 'plain').create()
                _check_patches(model, size)
                model.eval()(torch.empty(1, *image_format.input_size))
                return candidate
            except (ArithmeticError, LookupError, TypeError, ValueError) as e:
                unmade = ValueError(
                    f'--model-kwargs must be arguments of {network.model_name}, but got {network.model_args}: {e}')
            except (AssertionError, AttributeError, RuntimeError) as e:
                refusals.append(ValueError(
                    f'--models/--model must be networks that take images of {size} x {size} pixels, but got'
                    f' {network.model_name!r}: {e}'))
    raise (refusals or [unmade])[0]


def _check_patches(model: nn.Module, size: int) -> None:
    for module in model.modules():
        if isinstance(module, PatchEmbed) and any(size % edge for edge in module.patch_size):
            raise RuntimeError(f'its patches of {module.patch_size} pixels leave out a part of the image.')

"""Checks of arguments that need torch and timm."""
import timm
import torch
from torch import nn

from ..surgery import drop_paths
from ..targets import class_name, find_targets
from .arguments import UsageError, closest

__all__ = ['check_device', 'check_img_size', 'check_model_name', 'check_skippable']


def check_model_name(argument: str, name: str) -> None:
    """Refuse a name that timm does not know; one with a scheme, as in `hf-hub:user/name`, is timm's to look up.

    Raises:
        UsageError: It names the closest names.
    """
    if ':' in name:
        return
    architecture, _, tag = name.partition('.')
    if not timm.is_model(architecture):
        raise UsageError(
            f'{argument} must be a name that timm knows, but got {name!r}{closest(architecture, timm.list_models())}')
    names = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in names:
        raise UsageError(f'{argument} must have a tag that timm knows, but got {name!r}{closest(name, names)}')


def check_skippable(argument: str, name: str) -> None:
    """Refuse what is no network of timm's that can leave out all of its branches.

    Raises:
        UsageError: It names the closest names, or the block that cannot.
    """
    check_model_name(argument, name)
    with torch.device('meta'):
        model = timm.create_model(name)
    targets = find_targets(model, 'DropPath')
    masked = [f'{class_name(target.block)}: {target.reason}' for target in targets if target.stochastic_class is None]
    if masked or not targets or any(drop_paths(model)):
        reason = f', whose branches can only be masked ({masked[0]})' if masked else ''
        raise UsageError(f'{argument} must be a plain network of timm with drop paths, but got {name!r}{reason}.')


def check_img_size(argument: str, img_size: int, model: nn.Module) -> None:
    """Refuse an image of which a network's last stage would see less than a pixel.

    Raises:
        UsageError: It names the smallest size.
    """
    feature_info = getattr(model, 'feature_info', None) or [dict(reduction=1)]
    reduction = max(stage['reduction'] for stage in feature_info)
    if img_size < reduction:
        raise UsageError(f'{argument} must be {reduction} or more for this network, but got {img_size}.')


def check_device(argument: str, name: str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: The machine does not have it.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, index = name.partition(':')
    if kind == 'cuda' and int(index or 0) >= num_gpus:  # torch takes some large numbers for small ones
        gpus = ', '.join(['cpu', *(f'cuda:{i}' for i in range(num_gpus))])
        raise UsageError(f'{argument} must be a device that this machine has ({gpus}), but got {name!r}.')
    return torch.device(name)

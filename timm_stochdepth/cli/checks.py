"""Checks of arguments that need torch and timm; they raise `UsageError`."""
from typing import Any, Callable, Collection, Dict, Tuple

import torch
from torch import nn

from ..bench.settings import ROWS, SKIPPING_ROWS
from ..checkpoints.file import create_on_meta
from ..hub import named_models
from ..inspection import drop_paths
from ..layers.targets import class_name, find_targets
from ..output.terminal import one_line
from .arguments import UsageError, usage_errors

__all__ = [
    'check_device', 'check_img_size', 'check_model_name', 'check_network_size', 'check_rows', 'in_chans', 'own_size',
    'pixels',
]


def check_model_name(argument: str, name: str) -> None:
    """Refuse a name that timm does not know; one with a scheme, as in `hf-hub:user/name`, is timm's to look up."""
    with usage_errors():
        if ':' not in name:
            named_models.check_model_name(argument, name)


def check_rows(argument: str, name: str, rows: Collection[str]) -> None:
    """Refuse a network that cannot drop its branches as the rows of a benchmark do."""
    check_model_name(argument, name)
    model = create_on_meta(name)
    targets = find_targets(model, 'DropPath')
    if not targets or any(drop_paths(model)):
        raise UsageError(f'{argument} must be a plain network of timm with drop paths, but got {name!r}.')
    skipping = [row for row in rows if row in SKIPPING_ROWS]
    masked = [f'{class_name(target.block)}: {target.reason}' for target in targets if target.stochastic_class is None]
    if masked and skipping:
        others = ' '.join(row for row in ROWS if row not in SKIPPING_ROWS)
        raise UsageError(
            f'{argument} must be a network that can leave out its branches for the rows {", ".join(skipping)}, but got'
            f' {name!r}, whose branches can only be masked ({masked[0]}): it has --rows {others}.')


def own_size(model: nn.Module) -> Tuple[int, int]:
    """Height and width of the images that a network is for, as its configuration says."""
    cfg: Any = model.pretrained_cfg
    _, height, width = cfg['input_size']
    return height, width


def check_network_size(argument: str, size: Tuple[int, int], create: Callable[..., nn.Module]) -> Dict[str, Any]:
    """Find the arguments by which a network takes images of a size: `img_size`, or none where it takes them as it is.

    Args:
        argument: What the size is called where the user gives it.
        size: Height and width, in pixels.
        create: Makes the network without memory for its weights, its own arguments replaced by those that it is given.
    """
    model = create()
    cfg: Any = model.pretrained_cfg
    check_img_size(argument, min(size), model)
    ways: Tuple[Dict[str, Any], ...] = ({},)
    if cfg.get('fixed_input_size', False):  # timm builds it for one size, its own if its weights do not say another
        told = dict(img_size=size[0] if size[0] == size[1] else size)
        ways = ({}, told) if size == own_size(model) else (told,)
    refusals = []
    for model_args in ways:
        try:
            create(**model_args).eval()(torch.empty(1, in_chans(model), *size, device='meta'))
            return model_args
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            reason = one_line(e.__cause__ or e)
            refusals.append(f': {reason}' if reason else '.')
    example = f', as {pixels(own_size(model))}' if size != own_size(model) else ''
    raise UsageError(
        f'{argument} must be a size that {cfg["architecture"]} takes{example}, but got {pixels(size)}{refusals[0]}')


def in_chans(model: nn.Module) -> int:
    """Number of channels of the images that a network takes."""
    cfg: Any = model.pretrained_cfg
    return getattr(model, 'in_chans', cfg['input_size'][0])


def pixels(size: Tuple[int, int]) -> str:
    """Format a size: one number for a square."""
    height, width = size
    return str(height) if height == width else f'{height} x {width}'


def check_img_size(argument: str, img_size: int, model: nn.Module) -> None:
    """Refuse an image of which a network's last stage would see less than a pixel."""
    feature_info = getattr(model, 'feature_info', None) or [dict(reduction=1)]
    reduction = max(stage['reduction'] for stage in feature_info)
    if img_size < reduction:
        raise UsageError(f'{argument} must be {reduction} or more for this network, but got {img_size}.')


def check_device(argument: str, name: str) -> torch.device:
    """Return the device of that name, or refuse one that the machine does not have."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, index = name.partition(':')
    if kind == 'cuda' and int(index or 0) >= num_gpus:  # torch takes some large numbers for small ones
        gpus = ', '.join(['cpu', *(f'cuda:{i}' for i in range(num_gpus))])
        raise UsageError(f'{argument} must be a device that this machine has ({gpus}), but got {name!r}.')
    return torch.device(name)

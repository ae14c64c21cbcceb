"""Checks of arguments that need torch and timm."""
from typing import Any, Collection, Dict, Optional, Tuple

import timm
import torch
from torch import nn

from ..bench.settings import ROWS, SKIPPING_ROWS
from ..hub import named_models
from ..places import drop_paths
from ..targets import class_name, find_targets
from .arguments import UsageError

__all__ = ['check_device', 'check_img_size', 'check_model_name', 'check_network_size', 'check_rows']


def check_model_name(argument: str, name: str) -> None:
    """Refuse a name that timm does not know; one with a scheme, as in `hf-hub:user/name`, is timm's to look up.

    Raises:
        UsageError: It names the closest names.
    """
    if ':' in name:
        return
    try:
        named_models.check_model_name(argument, name)
    except ValueError as e:
        raise UsageError(e) from e


def check_rows(argument: str, name: str, rows: Collection[str]) -> None:
    """Refuse what is no network of timm's that can drop its branches as the rows of a benchmark do.

    Raises:
        UsageError: It names the closest names, or the block that cannot, and the rows that need it to.
    """
    check_model_name(argument, name)
    with torch.device('meta'):
        model = timm.create_model(name)
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


def check_network_size(argument: str, img_size: Optional[int], name: str) -> Tuple[int, Dict[str, Any]]:
    """The size of the images that a network is given, and the arguments that it is made with for that size.

    Args:
        argument: What img_size is called where the user gave it.
        img_size: The size, in pixels; None for one that every network takes.
        name: The network.

    Raises:
        UsageError: The network does not take images of that size.
    """
    with torch.device('meta'):
        model = timm.create_model(name)
    cfg: Any = model.pretrained_cfg
    own_size = int(cfg['input_size'][-1])
    is_fixed = cfg.get('fixed_input_size', False)
    size = img_size or (own_size if is_fixed else 96)
    model_args: Dict[str, Any] = dict(img_size=size) if is_fixed and size != own_size else {}
    check_img_size(argument, size, model)
    try:
        with torch.device('meta'):
            timm.create_model(name, **model_args).eval()(torch.empty(1, 3, size, size))
    except (TypeError, ValueError, AssertionError, RuntimeError) as e:
        raise UsageError(
            f'{argument} must be a size that {name} takes, as {own_size}, but got {size}: {e}') from e
    return size, model_args


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

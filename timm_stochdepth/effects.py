"""What is told where settings have no effect on a model, or not on all of it."""
import warnings
from typing import Dict, List, Mapping, Sequence, Tuple

from torch import nn

from .settings import Settings
from .target_names import HOW_TO_ADD_BLOCKS, names_that_fit
from .targets import Target, drop_paths_left

__all__ = ['tell_of_no_effect', 'tell_of_replaced']


def tell_of_replaced(targets: Sequence[Target], stacklevel: int) -> None:
    """Warn of others' drop paths in blocks that were asked for by their kind, whose rates are lost.

    Args:
        targets: The blocks, before they are changed.
        stacklevel: As of `warnings.warn`, seen from the caller.
    """
    peers = [
        f'{target.full_name(place)} ({type(getattr(target.block, place)).__name__})'
        for target in targets for place in target.peers]
    if peers:
        warnings.warn(
            f'A block is not given stochastic depth twice, these are replaced: {", ".join(peers)}.',
            stacklevel=stacklevel + 1)


def tell_of_no_effect(
        model: nn.Module,
        target_layer_name: str,
        targets: Sequence[Target],
        settings: Settings,
        shares: Sequence[Sequence[float]],
        stacklevel: int,
) -> None:
    """Warn of what a model has that is not taken over, and of settings without an effect.

    Args:
        model: The model, before it is changed.
        target_layer_name: What its blocks are asked for by.
        targets: Those that were found.
        settings: What they are to be given.
        shares: Share of the rate of each of their places.
        stacklevel: As of `warnings.warn`, seen from the caller.
    """
    left = _listed(drop_paths_left(model, target_layer_name, targets))
    texts = []
    if not targets:
        found = f'No {target_layer_name} found in {type(model).__name__}'
        texts.append(
            f'{found} that can be taken over: nothing changes. {left}' if left else
            f'{found}: nothing is dropped, {_what_fits(model)}')
    elif left:
        texts.append(f'Not all drop paths of {type(model).__name__} are taken over. {left}')
    if targets and settings.drop_rate == 0.:
        texts.append('drop_rate is 0: stochastic depth has no effect until set_drop_rate sets another.')
    elif targets and not any(share for of_block in shares for share in of_block):
        texts.append(
            f"drop_rate={settings.drop_rate} has no effect: with drop_distribution='linear' the first block has the"
            f" rate 0, and it is the only one. 'uniform' gives it drop_rate.")
    if settings.stochastic_method == 'sample' and not settings.use_same_gpu_seed:
        texts.append(
            "use_same_gpu_seed=False has no effect with stochastic_method='sample': every sample has a draw of its"
            ' own.')
    if settings.stochastic_method == 'block' and settings.skip_dropped:
        texts.append(
            "skip_dropped=True has no effect with stochastic_method='block', which never computes what it drops.")
    for text in texts:
        warnings.warn(text, stacklevel=stacklevel + 1)


def _what_fits(model: nn.Module) -> str:
    fitting = names_that_fit(model)
    return (
        f'the names that fit it are {", ".join(fitting)}.' if fitting else
        f'none of its blocks has a drop path. {HOW_TO_ADD_BLOCKS}')


def _listed(left: Mapping[str, Tuple[str, str]]) -> str:
    """Drop paths by their classes and the reasons, one name for all of a kind."""
    kinds: Dict[Tuple[str, str], List[str]] = {}
    for name, kind in left.items():
        kinds.setdefault(kind, []).append(name)
    texts = [
        f'{class_name} ({names[0]}{f" and {len(names) - 1} more" if names[1:] else ""}), as {reason}'
        for (class_name, reason), names in kinds.items()]
    return f'These stay what they are: {"; ".join(texts)}. timm.layers.DropPath in their places is.' if left else ''

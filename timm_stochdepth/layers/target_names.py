"""Check the name that blocks are asked for by, and suggest close ones."""
import difflib
from typing import Any, List, Optional, Sequence

from torch import nn

from ..messages import shown
from .targets import STOCHASTIC_LAYER_MAPPING, class_name, find_targets

__all__ = ['HOW_TO_ADD_BLOCKS', 'check_target_layer_name', 'names_that_fit']

HOW_TO_ADD_BLOCKS = (
    'Blocks without a drop path are given stochastic depth by an entry in BRANCH_ENDS, which names the child that their'
    ' branch ends in: docs/any_model.md has an example.')


def check_target_layer_name(name: Any, model: Optional[nn.Module] = None) -> None:
    """Refuse what names no target layer; a class's own name (`'vision_transformer.Block'`) may be one.

    Args:
        name: What may be a name.
        model: The model that it is for, whose names help to find the right one.

    Raises:
        ValueError: It names nothing; the message has those that do, and the closest ones.
    """
    keys = ['DropPath', *STOCHASTIC_LAYER_MAPPING]
    if isinstance(name, str) and (name in keys or '.' in name):
        return
    fitting = [] if model is None else names_that_fit(model)
    meant = _closest(name, list(dict.fromkeys([*fitting, *keys]))) if isinstance(name, str) else []
    text = (
        f'target_layer_name must be one of {", ".join(map(repr, keys))}, or the name of a class, as in'
        f" 'vision_transformer.Block', but got {shown(name)}")
    text += f': did you mean {" or ".join(map(repr, meant))}?' if meant else '.'
    if fitting:
        text += f' The names that fit this model are {", ".join(map(repr, fitting))}.'
    raise ValueError(text if fitting or model is None else f'{text} {HOW_TO_ADD_BLOCKS}')


def names_that_fit(model: nn.Module) -> List[str]:
    """What could be given as a target layer's name for a model: the keys, and the names of its blocks' classes."""
    keys = [key for key in ('DropPath', *STOCHASTIC_LAYER_MAPPING) if find_targets(model, key)]
    return keys + sorted({class_name(target.block) for target in find_targets(model, 'DropPath')})


def _closest(name: str, names: Sequence[str]) -> List[str]:
    """Those of names that are written almost alike, or name the class of that name."""
    of_class = [n for n in names if n.rpartition('.')[2].casefold() == name.casefold()]
    folded = {n.casefold(): n for n in names}
    return of_class or [folded[n] for n in difflib.get_close_matches(name.casefold(), folded)]

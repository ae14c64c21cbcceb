"""What a branch is given, of the samples that run it."""
from typing import Any, Callable, Iterable, Iterator, List, Mapping, Sequence, Tuple

from torch import Tensor

from ..cut.kinds import Dimensions
from ..draws.selection import Selection

__all__ = ['gather_inputs', 'refuse_unknown_inputs', 'tensors_in']


def gather_inputs(
        batch_dimensions: Tuple[Dimensions, ...],
        shortcut: Tensor,
        inputs: Sequence[Any],
        selection: Selection,
        split: Callable[[Tensor, Selection], Tuple[Tensor, Tensor]],
        select: Callable[[Tensor, Selection], Tensor],
) -> Tuple[Tensor, List[Any]]:
    """The shortcut, and of the branch's inputs the samples that run it.

    Args:
        batch_dimensions: Of each of the inputs, as in `Branch`.
        shortcut: Shape (N, ...).
        inputs: Those of the branch.
        selection: Which samples run.
        split: Gives an input that is the shortcut, too, whole and of the samples that run.
        select: Gives any other input of the samples that run.

    Raises:
        RuntimeError: An input has not one row for each sample of the shortcut.
    """
    gathered = []
    original = shortcut
    for x, dimensions in zip(inputs, batch_dimensions):
        if x is original and shortcut is original and dimensions == 1:
            shortcut, x = split(x, selection)
        elif x is not None and dimensions is not None:
            x = _gather_input(x, dimensions, original.shape[0], lambda t: select(t, selection))
        gathered.append(x)
    return shortcut, gathered


def _gather_input(x: Any, dimensions: Dimensions, num_samples: int, select: Callable[[Tensor], Tensor]) -> Any:
    if type(x) in (list, tuple):
        return type(x)([_gather_input(v, dimensions, num_samples, select) for v in x])
    if isinstance(x, dict):
        return {name: _gather_input(v, _of_keyword(name, dimensions), num_samples, select) for name, v in x.items()}
    if not isinstance(x, Tensor) or not isinstance(dimensions, int) or x.ndim < dimensions or x.shape[0] == 1:
        return x
    if x.shape[0] != num_samples:
        raise RuntimeError(
            f'skip_dropped must be False where a branch has inputs of other rows than its shortcut: shape'
            f' {tuple(x.shape)}, and {num_samples} samples.')
    return select(x)


def _of_keyword(name: str, dimensions: Dimensions) -> Dimensions:
    return dimensions.get(name, name) if isinstance(dimensions, Mapping) else dimensions


def refuse_unknown_inputs(batch_dimensions: Tuple[Dimensions, ...], inputs: Sequence[Any]) -> None:
    """Reject tensors of which nothing says whether they have a row for each sample.

    Raises:
        ValueError: An input is one.
    """
    for x, dimensions in zip(inputs, batch_dimensions):
        if isinstance(dimensions, Mapping):
            refuse_unknown_inputs(tuple(_of_keyword(name, dimensions) for name in x), list(x.values()))
        elif isinstance(dimensions, str) and any(True for _ in tensors_in([x])):
            raise ValueError(
                f'skip_dropped must be False, or BATCH_DIMENSIONS must have {dimensions!r}: nothing says whether the'
                f' first dimension of its argument {dimensions} is the batch.')


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values, and in lists, tuples and dictionaries of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())

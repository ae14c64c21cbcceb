"""Residual additions of a branch that ran for a part of the batch, or not at all.

The backward passes touch what is needed and no more: no tensor of zeros is filled to be added. In a graph that
torch.compile makes both directions gather: a scatter would need zeros, and a compiler fuses it with nothing.
"""
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor

from ..capture import is_transformed
from ..cut.kinds import Dimensions
from .mask import add_product, format_of_sum, multiply_as, per_sample
from .selection import Selection, gather

__all__ = ['add_branch_of_some', 'gather_inputs', 'refuse_unknown_inputs', 'skip_branch', 'split_input']

# of the operations that a shortcut consists of, with the parameters and inputs that they have
_MAX_NODES = 16


def _where_kept(keep_N: Tensor, x: Tensor) -> Tensor:
    """x where a sample is kept, elsewhere 0, whatever there is in x."""
    return torch.where(per_sample(keep_N, x) > 0., x, 0.)


def _add_rows(
        total: Tensor,
        rows: Tensor,
        selection: Selection,
        scale: float = 1.,
        memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """`total`, shape (N, ...), and the rows of the samples that ran, shape (K, ...), added in memory of its own."""
    run_K, row_N, keep_N = selection
    if row_N is None or keep_N is None:
        # index_add would give a contiguous tensor
        total = total.clone(memory_format=memory_format)
        return total.index_add_(0, run_K, rows.to(total.dtype), alpha=scale)
    # on a GPU index_add_ is atomic, and in half precision many times slower than memory is
    if memory_format != torch.preserve_format:
        total = total.contiguous(memory_format=memory_format)
    return add_product(total, gather(rows, row_N), per_sample(keep_N, total), value=scale)


class _SplitInput(torch.autograd.Function):
    """The input twice: whole for the shortcut, and of the samples that run for the branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, in_graph: bool, *selection: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        ctx.in_graph = in_graph
        ctx.save_for_backward(*selection)
        return x.view_as(x), gather(x, selection[0])  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_shortcut, grad_run = grad_outputs
        run_K, row_N, keep_N = ctx.saved_tensors
        if ctx.in_graph:
            grad = grad_shortcut + _where_kept(keep_N, gather(grad_run, row_N))
        else:
            grad = _add_rows(grad_shortcut, grad_run, Selection(run_K, row_N, keep_N))
        return grad, None, None, None, None


def split_input(x: Tensor, selection: Selection, in_graph: bool = False) -> Tuple[Tensor, Tensor]:
    """Split the input of a block into that of its shortcut and that of its branch.

    Args:
        x: Shape (N, ...), contiguous or channels_last, which the second output then is, too.
        selection: Which samples run the branch.
        in_graph: For a graph that torch.compile makes.

    Returns:
        x itself, not to be written to, and its samples that run, shape (K, ...).
    """
    if is_transformed():
        return x, gather(x, selection.run_K)
    shortcut, x_run = _SplitInput.apply(x, in_graph, *selection)
    return shortcut, x_run


def gather_inputs(
        batch_dimensions: Tuple[Dimensions, ...],
        shortcut: Tensor,
        inputs: Sequence[Any],
        selection: Selection,
        in_graph: bool = False,
) -> Tuple[Tensor, List[Any]]:
    """The shortcut, and of the branch's inputs the samples that run it.

    Args:
        batch_dimensions: Of each of the inputs, as in `Branch`.
        shortcut: Shape (N, ...).
        inputs: Those of the branch.
        selection: Which samples do.
        in_graph: For a graph that torch.compile makes.

    Raises:
        RuntimeError: An input has not one row for each sample of the shortcut.
    """
    gathered = []
    original = shortcut
    for x, dimensions in zip(inputs, batch_dimensions):
        if x is original and shortcut is original and dimensions == 1:
            shortcut, x_run = split_input(x, selection, in_graph)
            gathered.append(x_run)
        else:
            gathered.append(_gather_input(x, dimensions, original, selection))
    return shortcut, gathered


def _gather_input(x: Any, dimensions: Dimensions, shortcut: Tensor, selection: Selection) -> Any:
    if type(x) in (list, tuple):
        return type(x)([_gather_input(v, dimensions, shortcut, selection) for v in x])
    if isinstance(x, dict):
        return {name: _gather_input(v, _of_keyword(name, dimensions), shortcut, selection) for name, v in x.items()}
    if not isinstance(x, Tensor) or not isinstance(dimensions, int) or x.ndim < dimensions or x.shape[0] == 1:
        return x
    if x.shape[0] != shortcut.shape[0]:
        raise RuntimeError(
            f'skip_dropped must be False where a branch has inputs of other rows than its shortcut: shape'
            f' {tuple(x.shape)}, and {tuple(shortcut.shape)}.')
    return gather(x, selection.run_K)


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
        elif isinstance(dimensions, str) and any(True for _ in _tensors_in([x])):
            raise ValueError(
                f'skip_dropped must be False, or BATCH_DIMENSIONS must have {dimensions!r}: nothing says whether the'
                f' first dimension of its argument {dimensions} is the batch.')


class _AddBranchOfSome(torch.autograd.Function):

    @staticmethod
    def forward(
            ctx: Any,
            shortcut: Tensor,
            branch: Tensor,
            scale: float,
            memory_format: torch.memory_format,
            *selection: Optional[Tensor],
    ) -> Tensor:
        ctx.scale, ctx.dtype = scale, branch.dtype
        ctx.save_for_backward(selection[0])
        return _add_rows(shortcut, branch, Selection(*selection), scale, memory_format)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        run_K, = ctx.saved_tensors
        grad, = grad_outputs
        grad_branch = gather(grad, run_K)
        if ctx.scale != 1. or grad.dtype != ctx.dtype:
            grad_branch = multiply_as(grad_branch, ctx.scale, ctx.dtype)
        return grad, grad_branch, None, None, None, None, None


class _AddBranchInGraph(torch.autograd.Function):
    """The same in a compiled graph, where samples may have run whose factor is 0."""

    @staticmethod
    def forward(
            ctx: Any,
            shortcut: Tensor,
            branch: Tensor,
            run_K: Tensor,
            row_N: Tensor,
            keep_N: Tensor,
            branch_is_left: bool,
    ) -> Tensor:
        ctx.save_for_backward(run_K, keep_N)
        branch = gather(branch, row_N)
        branch = _where_kept(keep_N, branch * per_sample(keep_N, branch))
        return branch + shortcut if branch_is_left else shortcut + branch

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        run_K, keep_N = ctx.saved_tensors
        grad, = grad_outputs
        return grad, gather(grad, run_K) * per_sample(keep_N[run_K], grad), None, None, None, None


def add_branch_of_some(
        shortcut: Tensor,
        branch: Tensor,
        selection: Selection,
        scale: float = 1.,
        branch_is_left: bool = False,
        in_graph: bool = False,
) -> Tensor:
    """`shortcut + keep_N * scale * branch`, of a branch that ran for some of the samples.

    Args:
        shortcut: Shape (N, ...).
        branch: Shape (K, ...), its samples are those at run_K.
        selection: Which ran it.
        scale: Factor of the branch, beside those that the selection has.
        branch_is_left: The sum has the memory format of `branch + shortcut`, and not of `shortcut + branch`.
        in_graph: For a graph that torch.compile makes; scale is 1 there, and the selection has all that it may have.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    total: Tensor
    if in_graph:
        run_K, row_N, keep_N = cast(Tuple[Tensor, Tensor, Tensor], selection)
        dtype = torch.promote_types(shortcut.dtype, branch.dtype)
        total = _AddBranchInGraph.apply(
            shortcut.to(dtype), branch.to(dtype), run_K, row_N, keep_N.to(dtype), branch_is_left)
        return total
    dtype = torch.result_type(shortcut, branch)
    if is_transformed():
        return shortcut.to(dtype).index_add(0, selection.run_K, branch.to(dtype), alpha=scale)
    memory_format = format_of_sum(shortcut, branch, branch_is_left)
    total = _AddBranchOfSome.apply(shortcut.to(dtype), branch, scale, memory_format, *selection)
    return total


class _SkipBranch(torch.autograd.Function):
    """Identity on the shortcut, with a gradient of zero for what the branch that did not run would have used."""

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, num_parameters: int, *used: Tensor) -> Tensor:
        ctx.parameters = used[:num_parameters]
        # zeros without memory, which keep no activation: the parameters' are of their strides, as they stay
        ctx.zeros = [x.new_zeros(()).expand(x.shape) for x in used[num_parameters:]]
        # never the shortcut's own memory: it may be the block's input, and an activation in place may follow
        return shortcut.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tuple[Optional[Tensor], ...]:
        needed = ctx.needs_input_grad[2:]
        of_parameters = (torch.zeros_like(p) if n else None for p, n in zip(ctx.parameters, needed))
        return (*grad_outputs, None, *of_parameters, *ctx.zeros)


def skip_branch(shortcut: Tensor, parameters: Sequence[Tensor], inputs: Sequence[Any] = ()) -> Tensor:
    """`shortcut + 0 * branch`, without the branch: what it would have used gets the gradient of the formula, zero.

    DistributedDataParallel waits for a gradient of every parameter (https://github.com/pytorch/pytorch/issues/90171),
    of those, too, that an input of the branch was computed from, and momentum and weight decay go on for a dropped
    block as they do in the paper.

    Args:
        shortcut: Shape (N, ...).
        parameters: Those of the branch alone.
        inputs: Those of the branch.

    Returns:
        A tensor of its own memory, shape (N, ...).
    """
    if is_transformed():  # which knows unused parameters, and gives them zeros by itself
        return shortcut.clone()
    lost = [x for x in _tensors_in(inputs) if x.requires_grad and not _comes_from(shortcut, x)]
    return _SkipBranch.apply(shortcut, len(parameters), *parameters, *lost)


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors_in(value)
        elif isinstance(value, dict):
            yield from _tensors_in(value.values())


def _comes_from(shortcut: Tensor, x: Tensor) -> bool:
    """Whether a shortcut is seen to be computed from x, which then has its gradient: x itself, or a downsampled one."""
    if x is shortcut:
        return True
    node, nodes = x.grad_fn, [shortcut.grad_fn]
    for _ in range(_MAX_NODES):
        found = nodes.pop(0) if nodes else None
        if found is None:
            return False
        if found is node or getattr(found, 'variable', None) is x:
            return True
        nodes += [n for n, _ in found.next_functions if n is not None]
    return False

"""Add a branch to the shortcut, in each mode of a forward pass."""
from typing import Any, Callable, Sequence, Union

import torch
from torch import Tensor, nn

from ..capture import is_batched, is_transformed
from ..cut.branch import Branch
from ..draws.bernoulli import host_dtype
from ..draws.selection import Selection
from ..residual.conv_layout import known_layout
from ..residual.inputs import gather_inputs, refuse_unknown_inputs
from ..residual.leave_out import skip_branch
from ..residual.mask import add_branch, add_masked_branch, add_plain_branch
from ..residual.mode import Mode
from ..residual.skip import add_branch_of_some, select_input, split_input
from ..residual.skip_in_graph import (
    MIN_RUN,
    add_branch_in_graph,
    draw_in_graph,
    select_input_in_graph,
    split_input_in_graph,
)
from ..residual.skip_transformed import add_plainly, select_plainly, split_plainly
from .guards import refuse_distributed_activations
from .plan import branch_parameters, is_partitioned, may_add_inplace
from .rate import DropRate

__all__ = ['add_residual', 'add_to_batch', 'add_to_kept', 'leave_out']

# how inputs are split and selected, and sums are made
_EAGER = split_input, select_input, add_branch_of_some
_PLAIN = split_plainly, select_plainly, add_plainly


def add_residual(
        mode: Mode,
        drop_path: DropRate,
        shortcut: Tensor,
        branch: Branch,
        block: nn.Module,
        inputs: Sequence[Any],
) -> Tensor:
    """Run a branch for all samples, and add it.

    Args:
        mode: `Mode.PLAIN`, `Mode.SCALE` or `Mode.MASK`.
        drop_path: That of the branch.
        shortcut: Shape (N, ...).
        branch: What is dropped.
        block: The block that it is a part of.
        inputs: Those of the branch.
    """
    y = branch.run(block, *inputs)
    form = branch.inplace_add and may_add_inplace(block), branch.branch_is_left
    if mode is Mode.PLAIN:
        return add_plain_branch(shortcut, y, *form)
    if mode is Mode.MASK:
        return add_masked_branch(shortcut, y, drop_path.draw_samples(y), *form)
    if drop_path.rate_is_graph_input():
        return add_masked_branch(shortcut, y, drop_path.keep_prob.to(y.device, y.dtype, non_blocking=True), *form)
    return add_branch(shortcut, y, 1. - drop_path.drop_prob, *form)


def add_to_kept(
        drop_path: DropRate,
        select: Callable[[Tensor], Selection],
        shortcut: Tensor,
        branch: Branch,
        block: nn.Module,
        inputs: Sequence[Any],
) -> Tensor:
    """Run a branch for the samples that keep it alone, and add it; no size may hang on a draw under vmap.

    Args:
        drop_path: That of the branch.
        select: Draws which samples those are, in eager mode.
        shortcut: Shape (N, ...).
        branch: What is dropped.
        block: The block that it is a part of.
        inputs: Those of the branch.
    """
    if branch.has_unknown_inputs:
        refuse_unknown_inputs(branch.batch_dimensions, inputs)
    if type(shortcut) is not Tensor and hasattr(shortcut, 'device_mesh'):
        refuse_distributed_activations()
    is_compiling = torch.compiler.is_compiling()
    num_samples = shortcut.shape[0]
    if num_samples < MIN_RUN if is_compiling else is_batched():
        return add_residual(Mode.MASK, drop_path, shortcut, branch, block, inputs)
    if is_compiling:
        return _add_in_graph(drop_path, shortcut, branch, block, inputs)
    selection, scale = select(shortcut), drop_path.kept_scale()
    num_run = selection.run_K.shape[0]
    if num_run == 0:
        if not is_partitioned(block):
            return leave_out(shortcut, branch, block, inputs)
        num_run, selection, scale = 1, Selection(selection.run_K.new_zeros(1), 1), 0.  # all ranks run all modules
    run = branch.run if num_run > 1 else branch.run_for_single_sample
    if selection.num_sure == num_samples:
        return _add_whole(shortcut, run(block, *inputs), scale, branch, block)
    split, select_one, add = _PLAIN if is_transformed() else _EAGER
    shortcut, inputs = gather_inputs(branch.batch_dimensions, shortcut, inputs, selection, split, select_one)
    return add(shortcut, run(block, *inputs), selection, scale, branch.branch_is_left)


def _add_in_graph(
        drop_path: DropRate,
        shortcut: Tensor,
        branch: Branch,
        block: nn.Module,
        inputs: Sequence[Any],
) -> Tensor:
    _break_graph_in_checkpoint()
    scale: Union[Tensor, float] = 1.
    if drop_path.scale_by_keep:
        scale = _scale_in_graph(drop_path, shortcut) if drop_path.rate_is_graph_input() else drop_path.kept_scale()
    selection = draw_in_graph(
        drop_path.draws, drop_path.keep_prob, drop_path.keep_steps, scale, drop_path.round_up, shortcut)
    shortcut, inputs = gather_inputs(
        branch.batch_dimensions, shortcut, inputs, selection, split_input_in_graph, select_input_in_graph)
    with known_layout(block):
        y = branch.run(block, *inputs)
    return add_branch_in_graph(shortcut, y, selection, branch.branch_is_left)


def _scale_in_graph(drop_path: DropRate, x: Tensor) -> Tensor:
    keep_prob = drop_path.keep_prob.to(x.device, host_dtype(x), non_blocking=True)
    return torch.where(keep_prob > 0., keep_prob.reciprocal(), 0.)


def _break_graph_in_checkpoint() -> None:
    """Leave activation checkpointing to eager mode, which runs compiled graphs within, and restores generators.

    Inductor (torch 2.14) has no recomputation of an operator whose result has a size that it does not know.
    """
    from torch._dynamo.comptime import comptime

    comptime(_break_graph_within)


def _break_graph_within(context: Any) -> None:
    translator = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    if not translator.output.is_root_tracer():  # but within the operator that a checkpoint is to the compiler
        context.graph_break()


def _add_whole(shortcut: Tensor, y: Tensor, scale: float, branch: Branch, block: nn.Module) -> Tensor:
    form = branch.inplace_add and may_add_inplace(block), branch.branch_is_left
    if scale == 1.:
        return add_plain_branch(shortcut, y, *form)
    return add_masked_branch(shortcut, y, y.new_full((1,), scale), *form)


def add_to_batch(
        drop_path: DropRate,
        shortcut: Tensor,
        branch: Branch,
        block: nn.Module,
        *inputs: Any,
) -> Tensor:
    """Add a branch that the whole batch keeps."""
    return _add_whole(shortcut, branch.run(block, *inputs), drop_path.kept_scale(), branch, block)


@torch.compiler.disable
def leave_out(shortcut: Tensor, branch: Branch, block: nn.Module, inputs: Sequence[Any]) -> Tensor:
    """The sum without the branch."""
    # the engine that partitions parameters takes no gradient of one that is not there
    parameters = () if is_partitioned(block) else branch_parameters(branch, block)
    return skip_branch(shortcut, parameters, inputs)

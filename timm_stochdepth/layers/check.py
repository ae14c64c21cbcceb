"""Compare a cut forward with the plain one, once: the plain forward is the truth."""
import copy
import random
from contextlib import contextmanager
from typing import Any, Dict, Generator, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..cut.branch import Branch
from ..cut.cut import Cut
from ..draws.selection import Selection
from ..residual.inputs import gather_inputs, refuse_unknown_inputs
from .guards import refuse_distributed_activations

__all__ = ['check_cut', 'copied', 'is_checked']

# attributes that nn.Module has itself
_OF_MODULES = frozenset(vars(nn.Module()))


class _AddsAll(nn.Module):
    """Stands in for a drop path that keeps all samples.

    Args:
        is_by_rows: Compare a branch of some samples with those of the whole batch.

    Attributes:
        has_compared: Whether that was done: a batch of one sample has no others.
    """

    def __init__(self, is_by_rows: bool) -> None:
        super().__init__()
        self.is_by_rows = self.has_compared = is_by_rows

    def forward(self, x: Tensor) -> Tensor:
        return x

    def add(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        if self.is_by_rows:
            if hasattr(shortcut, 'device_mesh'):
                refuse_distributed_activations()
            refuse_unknown_inputs(branch.batch_dimensions, inputs)
        generators, of_python = torch.get_rng_state(), random.getstate()
        y = branch.run(block, *inputs)
        if self.is_by_rows and len(shortcut) > 1:
            torch.set_rng_state(generators)
            random.setstate(of_python)
            _, some = gather_inputs(
                branch.batch_dimensions, shortcut, inputs, Selection(torch.arange(0, len(shortcut), 2), 0),
                lambda x, selection: (x, x[::2]), lambda x, selection: x[::2])
            try:
                y_some = branch.run(block, *some)
            except Exception as e:
                raise _Differs(f'a branch cannot run for some samples: {e}') from e
            _compare(y_some, y[::2], 'a branch of some samples is not that of the batch')
        elif self.is_by_rows:
            self.has_compared = False
        return y + shortcut if branch.branch_is_left else shortcut + y


class _Differs(Exception):
    pass


def _compare(found: Any, expected: Any, what: str) -> None:
    for a, b in zip(tree_leaves(found), tree_leaves(expected)):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape:
                raise _Differs(f'{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}')
            if a.dtype != b.dtype:
                raise _Differs(f'{what}: {a.dtype} and {b.dtype}')
            difference = _difference(a, b)
            if difference > 0. and difference > _rounding(a):
                raise _Differs(f'{what}: off by {difference:.2g} of the largest value')


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, as a share of what is largest in them."""
    if a.is_meta or a.numel() == 0 or torch.equal(a, b):
        return 0.
    a, b = (x.detach().cpu().to(torch.complex128 if x.is_complex() else torch.float64) for x in (a, b))
    is_same = (a == b) | (a.isnan() & b.isnan())
    largest = torch.maximum(a.abs(), b.abs()).nan_to_num(0., 0.).max()
    return float(((a - b).abs().masked_fill(is_same, 0.).max() / largest).nan_to_num(torch.inf))


def _rounding(x: Tensor) -> float:
    """What a kernel for another number of samples may differ by, as a share of the largest value."""
    if not (x.is_floating_point() or x.is_complex()):
        return 0.
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
    if dtype in (torch.float64, torch.complex128):
        return 1e-7
    return 1e-3 if dtype in (torch.float32, torch.complex64) else 3e-2  # a GPU may compute in TF32


def copied(value: Any) -> Any:
    """A copy of an attribute that a forward may change, a list, a meter, an iterator; what cannot be copied itself."""
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value):
        return value
    try:
        return copy.copy(value)
    except Exception:  # whatever other people's code raises
        return value


def _is_small(p: Any) -> TypeGuard[Tensor]:
    # itself: those that are sharded are another's
    return type(p) is nn.Parameter and not p.is_meta and p.numel() > 0 and bool(p.abs().max() < 1e-3)


@contextmanager
def _restored(block: Any) -> Generator[None, None, None]:
    """A look at a block that leaves no trace: attributes and what they hold, buffers, variables, generators."""
    modules = list(block.modules())
    states = [dict(vars(m)) for m in modules]
    forward: Any = type(block)._inner_forward
    globals_ = {name: forward.__globals__[name] for name in forward.__code__.co_names if name in forward.__globals__}
    cells = [(cell, cell.cell_contents) for cell in forward.__closure__ or ()]
    buffers = [(b, b.clone()) for b in block.buffers() if not b.is_meta]
    of_python = random.getstate()
    devices = {b.device for b in (*block.parameters(), *block.buffers()) if b.is_cuda}
    with torch.no_grad(), torch.random.fork_rng([d.index or 0 for d in devices]):
        try:
            for m in modules:
                vars(m).update({name: copied(value) for name, value in vars(m).items() if name not in _OF_MODULES})
                vars(m)['_forward_hooks'] = type(m._forward_hooks)()
                ones = {n: torch.ones_like(p) for n, p in m._parameters.items() if _is_small(p)}
                if ones:  # a branch that starts as one of zeros, or of 1e-6, would prove nothing
                    vars(m)['_parameters'] = {**m._parameters, **ones}
                if m is not block:
                    vars(m)['training'] = False
            yield
        finally:
            torch.clear_autocast_cache()  # of weights that were cast without gradients
            for m, state in zip(modules, states):
                vars(m).clear()
                vars(m).update(state)
            for buffer, value in buffers:
                buffer.copy_(value)
            random.setstate(of_python)
            forward.__globals__.update(globals_)
            for cell, content in cells:
                cell.cell_contents = content


def _run(block: Any, forward: Any, stand_in: nn.Module, args: Any, kwargs: Dict[str, Any]) -> Any:
    given: Any = tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, (args, kwargs))
    with _restored(block):
        vars(block)['_modules'] = {**block._modules, **dict.fromkeys(block._drop_path_names, stand_in)}
        path_of = type(block)._path
        path, is_training = path_of(block, *args, **kwargs), block.training
        vars(block)['training'] = False
        if path_of(block, *args, **kwargs) != path:
            vars(block)['training'] = is_training
        return forward(block, *given[0], **given[1])


def check_cut(block: Any, cut: Cut, args: Any, kwargs: Dict[str, Any], by_rows: bool) -> None:
    """Compare what a block's cut forward computes with its plain forward, and a branch of some samples with the whole.

    Norms and dropouts are in eval mode; hooks on results are not called; what the block notes is as it was before.

    Args:
        block: A block.
        cut: Its cut.
        args: Its forward's arguments.
        kwargs: More of them.
        by_rows: Whether branches are to run for some samples.

    Raises:
        ValueError: They differ.
    """
    expected = _run(block, type(block)._inner_forward, nn.Identity(), args, kwargs)
    stand_in = _AddsAll(by_rows)
    try:
        _compare(_run(block, cut.forward, stand_in, args, kwargs), expected, 'its cut forward is not its own')
    except _Differs as e:
        plain_class = type(block)._plain_class
        setting = 'skip_dropped must be False' if by_rows else "stochastic_method must be 'sample'"
        raise ValueError(
            f'{setting} for {plain_class.__module__}.{plain_class.__qualname__}, which cannot be cut: {e}.'
            f' If you know better, put the class into TRUSTED_BLOCKS. Its cut forward:\n{cut.code}') from None
    cut.checked = 'by rows' if stand_in.has_compared else 'whole'


def is_checked(cut: Cut, args: Any, kwargs: Dict[str, Any]) -> bool:
    """Whether branches were compared by rows, or cannot be, as the batch is of one sample."""
    first = next(iter((*args, *kwargs.values())), None)
    return cut.checked == 'by rows' or bool(cut.checked) and isinstance(first, Tensor) and len(first) == 1

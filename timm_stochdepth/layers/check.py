"""Compare a cut forward with the plain one, once: the plain forward is the truth."""
import copy
import random
from contextlib import contextmanager
from typing import Any, Dict, Generator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..cut.branch import Branch
from ..cut.cut import Cut
from ..draws.selection import Selection
from ..residual.inputs import gather_inputs, refuse_unknown_inputs
from .guards import refuse_distributed_activations

__all__ = ['check_cut', 'copied']

_PRECISE = (torch.float32, torch.float64)
# attributes that nn.Module has itself
_OF_MODULES = frozenset(vars(nn.Module()))


class _AddsAll(nn.Module):
    """Stands in for a drop path that keeps all samples.

    Args:
        is_by_rows: Compare a branch of some samples with those of the whole batch.

    Attributes:
        tells: Whether that has shown anything: not of a single sample, of equal ones, and of a branch that gives zeros.
    """

    def __init__(self, is_by_rows: bool) -> None:
        super().__init__()
        self.is_by_rows = self.tells = is_by_rows

    def forward(self, x: Tensor) -> Tensor:
        return x

    def add(self, shortcut: Tensor, branch: Branch, block: nn.Module, *inputs: Any) -> Tensor:
        if self.is_by_rows:
            if hasattr(shortcut, 'device_mesh'):
                refuse_distributed_activations()
            refuse_unknown_inputs(branch.batch_dimensions, inputs)
        generators, of_python = torch.get_rng_state(), random.getstate()
        y = branch.run(block, *inputs)
        differ = self.is_by_rows and len(shortcut) > 1 and bool((shortcut[1:] != shortcut[:1]).any())
        self.tells &= differ and bool(y.any())
        if self.is_by_rows and y.shape != shortcut.shape or (y + shortcut).shape != shortcut.shape:
            raise _Differs(f'a branch of shape {tuple(y.shape)} is added to one of {tuple(shortcut.shape)}')
        if differ:
            torch.set_rng_state(generators)
            random.setstate(of_python)
            # an odd number of them, which clips and groups of samples do not take
            rows = torch.arange(0, len(shortcut), 2)[:(len(shortcut) - 1) // 4 * 2 + 1].to(shortcut.device)
            _, some = gather_inputs(
                branch.batch_dimensions, shortcut, inputs, Selection(rows, 0),
                lambda x, selection: (x, x[selection.run_K]), lambda x, selection: x[selection.run_K])
            try:
                y_some = branch.run(block, *some)
            except Exception as e:
                raise _Differs(f'a branch cannot run for some samples: {e}') from e
            _compare_rows(y_some, y[rows])
        return y + shortcut if branch.branch_is_left else shortcut + y


class _Differs(Exception):
    pass


def _compare(found: Any, expected: Any, what: str) -> None:
    for a, b in zip(tree_leaves(found), tree_leaves(expected)):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape:
                raise _Differs(f'{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}')
            try:
                torch.testing.assert_close(a, b, equal_nan=True)
            except AssertionError:
                raise _Differs(f'{what}: off by {(a - b).abs().max().item():.2g}') from None


def copied(value: Any) -> Any:
    """A copy of an attribute that a forward may change, a list, a meter, an iterator; what cannot be copied itself."""
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value):
        return value
    try:
        return copy.copy(value)
    except Exception:  # whatever other people's code raises
        return value


def _compare_rows(found: Tensor, expected: Tensor) -> None:
    """Compare by the norm, to which a branch that starts small, by a LayerScale, is as good as any."""
    what = 'a branch of some samples is not that of the batch'
    if found.shape != expected.shape:
        raise _Differs(f'{what}: shapes {tuple(found.shape)} and {tuple(expected.shape)}')
    # kernels for other sizes round otherwise; where products have some 10 bits (TF32, too), it shows
    is_precise = expected.is_cpu and expected.dtype in _PRECISE and not torch.is_autocast_enabled('cpu')
    found, expected = found.float().nan_to_num(), expected.float().nan_to_num()
    errors, norm, median = (found - expected).abs(), expected.norm().item(), expected.abs().median().item()
    # a few values that are far larger than the others hide what these show, of which rounding is a larger share
    shares = errors.norm().item() / norm if norm else 0., errors.median().item() / median / 10. if median else 0.
    if max(shares) > (1e-4 if is_precise else 0.02) or not norm and bool(errors.any()):
        raise _Differs(f'{what}: off by {max(shares):.2g} of it')


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


def check_cut(block: Any, cut: Cut, args: Any, kwargs: Dict[str, Any], by_rows: bool) -> bool:
    """Compare what a block's cut forward computes with its plain forward, and a branch of some samples with the whole.

    Norms and dropouts are in eval mode; hooks on results are not called; what the block notes is as it was before.

    Args:
        block: A block.
        cut: Its cut.
        args: Its forward's arguments.
        kwargs: More of them.
        by_rows: Whether branches are to run for some samples.

    Returns:
        Whether there were samples that tell what mixes them.

    Raises:
        ValueError: They differ.
    """
    adds_all = _AddsAll(by_rows)
    expected = _run(block, type(block)._inner_forward, nn.Identity(), args, kwargs)
    try:
        _compare(_run(block, cut.forward, adds_all, args, kwargs), expected, 'its cut forward is not its own')
    except _Differs as e:
        plain_class = type(block)._plain_class
        setting = 'skip_dropped must be False' if by_rows else "stochastic_method must be 'sample'"
        raise ValueError(
            f'{setting} for {plain_class.__module__}.{plain_class.__qualname__}, which cannot be cut: {e}.'
            f' If you know better, put the class into TRUSTED_BLOCKS. Its cut forward:\n{cut.code}') from None
    cut.is_compared = True
    return adds_all.tells

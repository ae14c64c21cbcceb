"""Who keeps the branches of a forward pass, drawn at its first drop path for all of them: one copy to a device a pass.

A copy for each drop path takes the host longer than the sums do. Which drop paths a pass calls is learned from the pass
before; the draws are taken one by one in that order, and given back where it takes another course, so that from one
seed they are those of drop paths that draw when they are called.
"""
import threading
from typing import Any, Callable, Iterator, List, Optional, Tuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ..capture import is_recorded
from ..draws.bernoulli import Draws
from ..draws.fixed import FixedDraws
from ..draws.selection import Selection
from .rate import DropRate

__all__ = ['select_ahead']

# number of samples and device of a drop path's batch
_Batch = Tuple[int, torch.device]
# a drop path and its batch; None where it has to draw when it is called
_Called = Tuple['ref[DropRate]', Optional[_Batch]]

# the older versions of torch do not say, and there nothing is drawn ahead
_top_hooks: Any = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)

# what the pass that began at a drop path called after it
_passes: 'WeakKeyDictionary[DropRate, List[_Called]]' = WeakKeyDictionary()


class _Pass(threading.local):
    """The forward pass of a thread, as far as it has come.

    Attributes:
        called: Its drop paths up to now.
        drawn: What is drawn of it and not taken yet, with the rate that it is drawn for, the next one last.
        give_back: Puts the generator to where the draws that were taken leave it; the others are as if never drawn.
        left: State of the generator where its last draw left it, None where nobody asked.
    """

    def __init__(self) -> None:
        self.called: List[_Called] = []
        self.drawn: List[Tuple[_Called, float, Selection]] = []
        self.give_back: Callable[[], None] = _nothing
        self.left: Optional[Tensor] = None


def _nothing() -> None:
    pass


_pass = _Pass()


def select_ahead(drop_path: DropRate, shortcut: Tensor) -> Selection:
    """Draw which samples keep a branch, or take what was drawn for it.

    Args:
        drop_path: That of the branch.
        shortcut: Shape (N, ...), on a device that is not the CPU.

    Returns:
        Which samples do.
    """
    batch = shortcut.shape[0], shortcut.device
    selection = _take(drop_path, batch) or _draw_anew(drop_path, batch, shortcut)
    if selection.keep_N is not None and selection.keep_N.dtype != shortcut.dtype:
        return selection._replace(keep_N=selection.keep_N.to(shortcut.dtype))
    return selection


def _take(drop_path: DropRate, batch: _Batch) -> Optional[Selection]:
    if _pass.drawn:
        called, drop_prob, selection = _pass.drawn.pop()
        expected, expected_batch = called
        is_as_expected = (
            expected() is drop_path and drop_prob == drop_path.drop_prob and batch == expected_batch
            and _shares_draws(drop_path) and _draws_for_whole_pass())
        if is_as_expected:
            _pass.called.append(called)
            return selection
        if _draws_for_whole_pass():  # a checkpoint has taken note of the generator, and begins there again
            _pass.give_back()
        _pass.drawn.clear()
    return None


def _draw_anew(drop_path: DropRate, batch: _Batch, shortcut: Tensor) -> Selection:
    draws, dtype = drop_path.draws, shortcut.dtype
    may_wait = _shares_draws(drop_path) and _draws_for_whole_pass()
    generator = draws.generator(batch[1]) if may_wait else None
    if generator is None:
        _note(drop_path, None)
        _pass.left = None
        return draws.select([drop_path.drop_prob], shortcut, drop_path.round_up)[0]
    before = generator.get_state()
    # dropout may have drawn since the last drop path did, and comes in between in each pass
    follows = _pass.left is not None and torch.equal(before, _pass.left)
    is_first = _note(drop_path, batch if follows else None)
    later = list(_next_ones(drop_path, batch)) if is_first else []
    drop_probs = [drop_path.drop_prob, *(d.drop_prob for d, _ in later)]
    now, *drawn = draws.select(drop_probs, shortcut, drop_path.round_up)
    after = _pass.left = generator.get_state()
    if not later:
        return now
    _pass.drawn = [(called, d.drop_prob, selection) for (d, called), selection in zip(later, drawn)][::-1]

    def give_back() -> None:
        if torch.equal(generator.get_state(), after):  # else somebody has seeded it, or drawn more
            generator.set_state(before)
            num_taken = len(drop_probs) - 1 - len(_pass.drawn)
            draws.select(drop_probs[:num_taken], torch.empty((batch[0],), dtype=dtype, device=batch[1]))
            _pass.left = generator.get_state()

    _pass.give_back = give_back
    return now


def _note(drop_path: DropRate, batch: Optional[_Batch]) -> bool:
    """Note that a drop path is called; whether a pass begins with it."""
    last = _pass.called[-1][0]() if _pass.called else None
    is_first = last is None or last.progress is not drop_path.progress or drop_path.drop_path_idx <= last.drop_path_idx
    if is_first:
        first = _pass.called[0][0]() if _pass.called else None
        if first is not None:
            _passes[first] = _pass.called[1:]
        _pass.called = []
    _pass.called.append((ref(drop_path), batch))
    return is_first


def _next_ones(first: DropRate, batch: _Batch) -> Iterator[Tuple[DropRate, _Called]]:
    for called in _passes.get(first, ()):
        drop_path = called[0]()
        if drop_path is None or drop_path.drop_prob == 0. or called[1] != batch:
            return
        if type(drop_path.draws) is not type(first.draws) or drop_path.round_up != first.round_up:
            return
        yield drop_path, called


def _shares_draws(drop_path: DropRate) -> bool:
    return type(drop_path.draws) in (Draws, FixedDraws)  # others may count who draws


def _draws_for_whole_pass() -> bool:
    # a checkpoint restores the generator of its own beginning, and runs in a backward pass, without gradients first, or
    # under hooks; while a CUDA graph is recorded, generators do not say their state
    if _top_hooks is None or not torch.is_grad_enabled() or is_recorded():
        return False
    return _top_hooks(True) is None and torch._C._current_graph_task_id() == -1

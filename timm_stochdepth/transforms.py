"""What PyTorch makes of a forward pass: transforms of `torch.func`, forward-mode differentiation, graphs."""
from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = ['is_batched', 'is_exporting', 'is_transformed', 'refuse_frozen_decisions']


def is_transformed() -> bool:
    """Whether an autograd function without rules for transforms would fail: there the formula is computed as it is."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_batched() -> bool:
    """Whether `torch.func.vmap` is active: there no tensor has a value to decide on, and no size may depend on one."""
    if torch.compiler.is_compiling():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(interpreter.key() == torch._C._functorch.TransformType.Vmap for interpreter in stack)


def is_exporting() -> bool:
    """Whether `torch.export` runs."""
    # of the function of this name the compiler says True, too, before torch 2.12
    return bool(torch.compiler._is_exporting_flag)


# run for real while a graph is made: a compiler of torch 2.7 would lose the words of what it sees raised
@torch.compiler.assume_constant_result
def refuse_frozen_decisions(name: str, value: Any) -> bool:
    """Refuse to be made a graph of, where that would hold what one forward pass decided.

    Raises:
        RuntimeError: torch.export or torch.jit.trace runs.
    """
    if is_exporting() or torch.jit.is_tracing():
        raise RuntimeError(
            f'stochastic depth with {name}={value!r} decides in each training step what to compute, and no exported'
            ' graph can: export model.eval(), fold_stochastic_depth(model), or to train on, the sample method without'
            ' skip_dropped.')
    return True

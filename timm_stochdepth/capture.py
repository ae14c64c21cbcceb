"""Whether a forward pass is being captured: by FX, export, TorchScript, or a transform of torch.func."""
import warnings
from itertools import repeat
from typing import Any, Callable, Dict, Tuple, TypeVar, cast

import torch
from torch import fx, nn
from torch._dynamo.eval_frame import skip_code
from torch.autograd import forward_ad

__all__ = [
    'as_leaf',
    'as_whole_block',
    'is_batched',
    'is_exporting',
    'is_traced',
    'is_transformed',
    'leave_to_python',
    'refuse_captured_decisions',
    'refuse_frozen_decisions',
]

F = TypeVar('F', bound=Callable[..., Any])


def is_traced(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether a module is called by an FX tracer."""
    return any(map(isinstance, (*args, *kwargs.values()), repeat(fx.Proxy)))


def as_leaf(module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """The call of a module by a tracer, for which it is a leaf, so that no decision is frozen into a graph."""
    proxy: Any = next(a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
    return proxy.tracer.create_proxy('call_module', proxy.tracer.path_of_module(module), args, kwargs)


def as_whole_block(block: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """The same for a block that decides in Python what to compute, which a pass over the graph may not expect."""
    warnings.warn(
        f'A graph that is traced in training holds {type(block).__name__} as a whole, since its stochastic depth'
        ' decides in Python what to compute. A pass that works on what is inside (quantization, fusion) finds nothing'
        ' there: give it model.eval(), or fold_stochastic_depth(model).', stacklevel=4)
    return as_leaf(block, args, kwargs)


def is_transformed() -> bool:
    """Whether an autograd function without rules for transforms would fail: there the formula is computed as it is."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_batched() -> bool:
    """Whether `torch.func.vmap` is active: there no tensor has a value to decide on, and no size may depend on one."""
    stack = torch._C._functorch.get_interpreter_stack()
    return bool(stack) and any(interpreter.key() == torch._C._functorch.TransformType.Vmap for interpreter in stack)


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


def refuse_captured_decisions(name: str, value: Any) -> None:
    """Refuse to be captured in a CUDA graph, which would repeat what one forward pass decided, at each replay.

    Raises:
        RuntimeError: A CUDA graph is captured.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f'stochastic depth with {name}={value!r} decides on the CPU what to compute, and a CUDA graph would'
            " repeat it at each replay: capture the sample method without skip_dropped, or with draw='fixed'.")


def leave_to_python(function: F) -> F:
    """A function that torch.compile leaves alone, and whose callees it compiles.

    The decorator alone has newer compilers asked about the function's own frame at each call (pytorch/pytorch#148896).
    """
    skip_code(function.__code__)
    return cast(F, torch.compiler.disable(function, recursive=False))

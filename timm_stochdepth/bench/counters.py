"""What a step costs whatever the machine does meanwhile, counted below the modules.

Seen are the operations that PyTorch runs, one by one, forward and backward. An operation that only looks at memory in
another way is none. Each other one starts one kernel, reads each of its inputs once and writes its result: what a
kernel that is not fused with its neighbours has to move. Kernels that make several passes move more.
"""
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Generator, Hashable, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ['Counts', 'OpCounts', 'StepCounter', 'kept_storages']

# written, and not read before
_OVERWRITES = {'copy_', 'fill_', 'zero_', 'bernoulli_', 'uniform_', 'normal_', 'random_', 'exponential_'}
# read as much of their first input as they return
_GATHERS = {'index', 'index_select', 'gather', 'embedding', 'take', 'take_along_dim'}
# read and write as much of their first input as their last one has, and copy it first if they are not in place
_SCATTERS = {'index_add', 'index_copy', 'index_put', '_index_put_impl', 'scatter', 'scatter_add'}
# those of the CPU are missing in PyTorch's table
_CPU_ATTENTION = {
    '_scaled_dot_product_flash_attention_for_cpu': '_scaled_dot_product_flash_attention',
    '_scaled_dot_product_flash_attention_for_cpu_backward': '_scaled_dot_product_flash_attention_backward',
}


@dataclass
class OpCounts:
    """What one kind of operation does in a step.

    Attributes:
        operations: Of convolutions and matrix products, a multiplication and an addition each one.
        bytes: Read and written.
        kernels: Started.
    """
    operations: float = 0.
    bytes: float = 0.
    kernels: float = 0.

    def add(self, other: 'OpCounts', share: float = 1.) -> None:
        """Add another one's counts, or a share of them."""
        self.operations += share * other.operations
        self.bytes += share * other.bytes
        self.kernels += share * other.kernels


@dataclass
class Counts(OpCounts):
    """What a step does.

    Attributes:
        kept: Bytes that are kept for the backward pass, parameters left out.
    """
    kept: float = 0.


def _num_bytes(tensor: Tensor) -> int:
    """Bytes that are touched by who reads all of a tensor: what is expanded is there once."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor.numel() * tensor.element_size()
    numel = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        numel *= size if stride or not size else 1
    return numel * tensor.element_size()


class StepCounter(TorchDispatchMode):
    """Context in which what PyTorch runs is counted.

    Attributes:
        by_op: Counts by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_op: Dict[str, OpCounts] = defaultdict(OpCounts)

    def __torch_dispatch__(
            self,
            func: Any,
            types: Any,
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        kernels, num_bytes = _count_memory(func, name, args, kwargs, results)
        if kernels:
            formula = flop_registry.get(_counted_as(func.overloadpacket, name))
            operations = formula(*args, **kwargs, out_val=results) if formula else 0
            self.by_op[name].add(OpCounts(operations, num_bytes, kernels))
        return results


def _counted_as(packet: Any, name: str) -> Any:
    return getattr(torch.ops.aten, _CPU_ATTENTION[name]) if name in _CPU_ATTENTION else packet


def _tensors(values: Any) -> List[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _count_memory(
        func: Any,
        name: str,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
        results: Any,
) -> Tuple[int, int]:
    """Kernels that an operation starts, and bytes that they read and write."""
    inputs = _tensors((args, kwargs))
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    results = _tensors(results)
    made = [tensor for tensor in results if tensor.untyped_storage()._cdata not in storages]
    read, written = _access(func, name, args, kwargs)
    is_view = results and not (made or written)
    if is_view or name.startswith(('empty', 'new_empty')):
        return 0, 0
    if name.rstrip('_') in _SCATTERS:
        return _count_scatter(inputs, made)
    if name in _GATHERS:
        source, *others = inputs
        return 1, min(_num_bytes(source), _sum_bytes(made)) + _sum_bytes(others) + _sum_bytes(made)
    return 1, _sum_bytes(read) + _sum_bytes(made) + _sum_bytes(written)


def _count_scatter(inputs: Sequence[Tensor], made: Sequence[Tensor]) -> Tuple[int, int]:
    target, *others = inputs
    touched = min(_num_bytes(target), others[-1].numel() * target.element_size())
    num_bytes = 2 * touched + _sum_bytes(others)
    # autograd's own scatters are in place where nobody watches what it runs
    if not made or torch._C._current_graph_task_id() != -1:
        return 1, num_bytes
    return 2, num_bytes + _num_bytes(target) + _sum_bytes(made)


def _access(
        func: Any,
        name: str,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
) -> Tuple[List[Tensor], List[Tensor]]:
    """The inputs that an operation reads, and those that it writes to."""
    read: List[Tensor] = []
    written: List[Tensor] = []
    only_shape = name.endswith('_like') or name.startswith('new_')
    for idx, argument in enumerate(func._schema.arguments):
        tensors = _tensors(args[idx] if idx < len(args) else kwargs.get(argument.name))
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        written += tensors if is_written else []
        read += [] if only_shape or argument.is_out or (is_written and name in _OVERWRITES) else tensors
    return read, written


def _sum_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each memory once."""
    by_memory: Dict[Hashable, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()._cdata
        by_memory[storage, tensor.storage_offset(), tensor.shape, tensor.stride()] = _num_bytes(tensor)
    return sum(by_memory.values())


@contextmanager
def kept_storages(model: nn.Module) -> Generator[Dict[int, int], None, None]:
    """Context in which what autograd keeps for the backward pass is noted, parameters left out.

    Args:
        model: The network, for its parameters.

    Yields:
        Bytes of each memory that is kept, by the memory.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: Dict[int, int] = {}
    alive: List[Tensor] = []  # so that no memory comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes

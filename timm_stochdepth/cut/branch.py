"""A residual branch: what one drop path drops, as a function of its block."""
from dataclasses import dataclass, field
from typing import Any, Callable, List, Tuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .kinds import Dimensions

__all__ = ['Branch']


@dataclass(frozen=True, eq=False)
class Branch:
    """What one drop path drops.

    Attributes:
        run: The branch, a function of the block and the branch's inputs.
        add_scaled: Its drop path's `add_scaled`, a function of the block, the branch, the shortcut and its inputs.
        batch_dimensions: For each input the number of dimensions from which on its first is the batch, or None; a table
            of them for keywords that are handed on.
        names: Names of the block's children and parameters that it uses, and nothing but it and other branches.
        branch_only: Those of them that no other branch uses.
        inplace_add: Whether the block adds in place, to the result of the branch.
        branch_is_left: Whether the branch is the first operand of the addition, which gives the sum its memory format.
        has_unknown_inputs: Whether nothing says of some inputs whether they have a row for each sample.
    """
    run: Callable[..., Tensor]
    add_scaled: Callable[..., Tensor]
    batch_dimensions: Tuple[Dimensions, ...]
    names: Tuple[str, ...]
    branch_only: Tuple[str, ...]
    inplace_add: bool = False
    branch_is_left: bool = False
    has_unknown_inputs: bool = field(init=False)  # no cached property: a compiler does not look into its lock

    def __post_init__(self) -> None:
        is_unknown = any(not isinstance(d, (int, type(None))) for d in self.batch_dimensions)
        object.__setattr__(self, 'has_unknown_inputs', is_unknown)

    def modules(self, block: nn.Module) -> List[nn.Module]:
        """The modules of the branch, with all that they hold."""
        found = (_get(block, name) for name in self.names)
        return [m for child in found if isinstance(child, nn.Module) for m in child.modules()]

    def parameters(self, block: nn.Module) -> List[Tensor]:
        """The parameters of the branch."""
        return [p for m in self.modules(block) for p in _parameters_of(m)] + self.own_tensors(block)

    def own_tensors(self, block: nn.Module) -> List[Tensor]:
        """Those of them that are no module's of the branch."""
        return [p for p in (_get(block, name) for name in self.names) if isinstance(p, Tensor)]

    def run_for_single_sample(self, block: nn.Module, *inputs: Any) -> Tensor:
        """The branch, of which a BatchNorm that is given one value a channel uses its running statistics.

        One value has no variance, and the norm would raise.
        """
        norms = [m for m in self.modules(block) if isinstance(m, _BatchNorm) and m.training]

        def look(norm: nn.Module, args: Tuple[Tensor, ...]) -> None:
            norm.training = args[0].numel() > args[0].shape[1]

        hooks = [norm.register_forward_pre_hook(look) for norm in norms]
        try:
            return self.run(block, *inputs)
        finally:
            for hook in hooks:
                hook.remove()
            for norm in norms:
                norm.training = True


def _parameters_of(module: nn.Module) -> List[Tensor]:
    parameters: List[Tensor] = list(module.parameters(recurse=False))
    # plain attributes in replicas of nn.DataParallel, and while FSDP1 has them gathered
    if getattr(module, '_is_replica', False) or getattr(module, '_is_fsdp_managed_module', False):
        parameters += [value for value in vars(module).values() if isinstance(value, Tensor) and value.requires_grad]
    return parameters


def _get(block: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition('.')
    return getattr(block.get_submodule(owner) if owner else block, attribute)

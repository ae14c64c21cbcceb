"""What is known of a forward while branches are cut out of it."""
import ast
from typing import Sequence, Set, Type

from torch import nn

from .attributes import attributes_used
from .kinds import kinds_of
from .operands import child_called
from .syntax import bound_by, has_effect, is_movable, loaded, stored_attributes, writes
from .tables import SCALING_LAYERS

__all__ = ['ForwardFacts']


class ForwardFacts:
    """What is known of a forward, on the path that its block takes.

    Args:
        function: The forward.
        block: The block.
        plain_class: The class whose forward it is.
        drop_paths: Names of its drop paths.

    Attributes:
        kinds: What its local variables hold.
        locals: Their names.
        optional: Those of arguments that have a default.
        of_others: Names of variables of the module, or of a function around, that it binds.
    """

    def __init__(
            self,
            function: ast.FunctionDef,
            block: nn.Module,
            plain_class: Type[nn.Module],
            drop_paths: Sequence[str],
    ) -> None:
        self.block, self.plain_class, self.drop_paths = block, plain_class, drop_paths
        self.kinds = kinds_of(function)
        self.of_others = {
            n for node in ast.walk(function) if isinstance(node, (ast.Global, ast.Nonlocal)) for n in node.names}
        bound = set().union(*map(bound_by, function.body)) - self.of_others
        self.locals = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)} | bound
        arguments = [*function.args.args[len(function.args.args) - len(function.args.defaults):],
                     *function.args.kwonlyargs, function.args.vararg]
        self.optional = {a.arg for a in arguments if a is not None}

    def writes(self, statement: ast.stmt) -> Set[str]:
        """Names that a statement binds or changes, also by a child that works in place."""
        found = writes(statement)
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
                if getattr(child_called(node, self.block), 'inplace', False):
                    found.add(node.args[0].id)
        return found

    def may_move(self, statement: ast.stmt) -> bool:
        """Whether a statement can be a part of a branch, and with it be left out."""
        if not is_movable(statement) or writes(statement) & self.of_others:
            return False
        if stored_attributes(statement) and writes(statement) & self.locals:
            return False  # it notes something, and computes something else
        calls = [ast.unparse(n.func) for n in ast.walk(statement) if isinstance(n, ast.Call)]
        if any('rand' in call for call in calls):
            return False
        return not calls or has_effect(statement) or bool(loaded(statement) & (self.kinds.of_batch | self.kinds.sizes))

    def computes(self, node: ast.AST) -> bool:
        """Whether a node is worth leaving out: no scale, no change of shape."""
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'self' and node.attr not in self.drop_paths:
            child = self.block._modules.get(node.attr)
            if child is not None:
                return not isinstance(child, (nn.Identity, nn.Dropout, *SCALING_LAYERS))
            return bool(attributes_used(node, self.block, self.plain_class) & set(self.block._modules))
        if isinstance(node, ast.Call):
            root, _, name = ast.unparse(node.func).partition('.')
            return root in ('F', 'torch', 'nn') or root in self.locals and not name
        return isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)

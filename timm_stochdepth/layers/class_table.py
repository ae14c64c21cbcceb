"""Weak table of the classes that were made for blocks."""
import sys
from collections import OrderedDict
from typing import Any, Callable, Generic, Hashable, List, Type, TypeVar
from weakref import WeakValueDictionary

__all__ = ['ClassTable']

T = TypeVar('T')


class ClassTable(Generic[T]):
    """Classes by what they are made for.

    A class is held by its blocks. The table itself holds the ones that were asked for last: who makes one network after
    another would else have each compiled anew.

    Args:
        num_held: Number of classes that are held without a block.
    """

    def __init__(self, num_held: int = 256) -> None:
        self.num_held = num_held
        self._classes: WeakValueDictionary[Hashable, Type[T]] = WeakValueDictionary()
        self._held: OrderedDict[Type[T], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._classes)

    def values(self) -> List[Type[T]]:
        """The classes."""
        return list(self._classes.values())

    def find(self, key: Hashable, plain_class: type, make: Callable[[], Type[T]]) -> Type[T]:
        """The class of a key, made where there is none.

        Args:
            key: What tells it from others; must not refer to a block or the class.
            plain_class: The class that it is made from.
            make: Makes it.
        """
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = make()
        if _is_importable(plain_class):  # and so stays as long as its module; others may go with their blocks
            self._held[found] = None
            self._held.move_to_end(found)
            if len(self._held) > self.num_held:
                self._held.popitem(last=False)
        return found


def _is_importable(cls: type) -> bool:
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split('.'):
        found = getattr(found, name, None)
    return found is cls

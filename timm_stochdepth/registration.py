"""Registers the models with timm as soon as timm is imported, and imports it for nobody who does not.

timm and torch take seconds to import, which `timm-stochdepth --help` has no use for.
"""
import sys
import threading
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional, Sequence

__all__ = ['register_with_timm']

_PACKAGE = __package__ or 'timm_stochdepth'


def register_with_timm() -> None:
    """Import the models if timm is there already, or let the import of timm do it."""
    if 'timm' in sys.modules:
        import_module(f'{_PACKAGE}.models')
    elif not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds what the others find, for timm and this package alone, to be told when an import of them ends.

    A module of this package that imports timm is not ready itself when that import ends: the models, which use it,
    wait for the end of the outermost import.
    """

    def __init__(self) -> None:
        self.thread = threading.local()

    def find_spec(
            self,
            fullname: str,
            path: Optional[Sequence[str]],
            target: Optional[ModuleType] = None,
    ) -> Optional[ModuleSpec]:
        if fullname != 'timm' and not fullname.startswith(f'{_PACKAGE}.') or getattr(self.thread, 'finding', False):
            return None
        self.thread.finding = True  # another finder that asks all others asks this one too
        try:
            specs = (f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self)
            spec = next((s for s in specs if s is not None), None)
        finally:
            self.thread.finding = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def start(self) -> None:
        self.thread.depth = getattr(self.thread, 'depth', 0) + 1

    def end(self) -> None:
        self.thread.depth -= 1
        if not self.thread.depth and 'timm' in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            import_module(f'{_PACKAGE}.models')


class _Loader(Loader):
    """Another loader, and a word when it has run."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader = loader
        self.finder = finder

    def __getattr__(self, name: str) -> Any:  # who only looks for a module may ask its loader more
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.finder.start()
        try:
            self.loader.exec_module(module)
        except BaseException:
            self.finder.thread.depth -= 1
            raise
        self.finder.end()

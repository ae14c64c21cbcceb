"""Register the models with timm as soon as timm is imported, and import it for nobody who does not.

timm and torch take seconds to import, which `timm-stochdepth --help` has no use for.
"""
import sys
import threading
from importlib import import_module, util
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional

__all__ = ['register_with_timm']

_MODELS = f'{__package__}.models'


def register_with_timm() -> None:
    """Import the models if timm is there already, or let the import of timm do it."""
    if 'timm' in sys.modules:
        import_module(_MODELS)
    elif not any(isinstance(finder, _FindsTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FindsTimm())


class _FindsTimm(MetaPathFinder):
    """Finds timm where all others do, and has the models imported at the end of its import."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(self, fullname: str, *args: Any) -> Optional[ModuleSpec]:
        if fullname != 'timm' or getattr(self._thread, 'is_asking', False):
            return None
        self._thread.is_asking = True  # the others, without this one
        try:
            spec = util.find_spec(fullname)
        finally:
            self._thread.is_asking = False
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                import_module(_MODELS)

            loader.exec_module = run_and_register
        return spec

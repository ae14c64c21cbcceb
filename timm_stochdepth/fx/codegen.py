"""Functions made of generated source, which tracebacks, debuggers and TorchScript can read."""
import linecache
from itertools import count
from typing import Any, Dict, Mapping
from weakref import finalize

__all__ = ['compile_source']

# torch.compile tells functions apart, and what it has seen of their sizes, by file and line
_NUMBERS = count()


class _Use:
    """Lives as long as one of the functions in whose namespace it is."""


def compile_source(source: str, names: Mapping[str, Any]) -> Dict[str, Any]:
    """Run source, and return the names that it sees and those that it defines.

    The source can be read as long as there is one of the functions.

    Args:
        source: Definitions of functions.
        names: What these refer to.
    """
    filename = f'<timm_stochdepth {next(_NUMBERS)}>'
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    use = _Use()
    finalize(use, linecache.cache.pop, filename, None).atexit = False
    namespace = {**names, '__use__': use}
    exec(compile(source, filename, 'exec', dont_inherit=True), namespace)
    return namespace

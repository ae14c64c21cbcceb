"""Functions made of generated source, which tracebacks, debuggers and TorchScript can read."""
import linecache
from itertools import count
from typing import Any, Dict, Mapping

__all__ = ['compile_source']

# torch.compile tells functions apart, and what it has seen of their sizes, by file and line
_NUMBERS = count()


def compile_source(source: str, names: Mapping[str, Any]) -> Dict[str, Any]:
    """Run source, and return the names that it sees and those that it defines.

    Args:
        source: Definitions of functions.
        names: What these refer to.
    """
    filename = f'<timm_stochdepth {next(_NUMBERS)}>'
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = dict(names)
    exec(compile(source, filename, 'exec', dont_inherit=True), namespace)
    return namespace

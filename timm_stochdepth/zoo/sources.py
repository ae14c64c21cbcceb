"""timm's names as its source files have them: timm itself takes seconds to import."""
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Dict

__all__ = ['modules_in_sources']

_ENTRYPOINT = re.compile(r'^@register_model\s+def (\w+)\(', re.MULTILINE)
_OTHER_REGISTRATION = re.compile(r'^[^#\n]*(?<!\w)register_model\s*\(', re.MULTILINE)


def modules_in_sources() -> Dict[str, str]:
    """The module of timm, as in `'timm.models.resnet'`, that each of its names is from; as `names.timm_modules`.

    Raises:
        ValueError: A file registers names otherwise than by a decorator: none of its names can be read.
    """
    spec = find_spec('timm')
    assert spec is not None and spec.submodule_search_locations
    modules: Dict[str, str] = {}
    for path in sorted((Path(spec.submodule_search_locations[0]) / 'models').glob('[!_]*.py')):
        source = path.read_text(encoding='utf-8')
        if _OTHER_REGISTRATION.search(source):
            raise ValueError(f'{path} registers models in a way that is not known here.')
        modules.update(dict.fromkeys(_ENTRYPOINT.findall(source), f'timm.models.{path.stem}'))
    return modules

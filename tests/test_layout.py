"""The rooms of the package, and which of them may use which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import timm_stochdepth

PACKAGE = Path(timm_stochdepth.__file__).parent

# a room uses rooms of the lines above its own, wherever in a file it imports them
ROOMS = """
    version messages
    settings capture output
    zoo cut
    draws
    residual
    layers
    inspection
    checkpoints analysis
    folding
    apply control
    hub
    models
    integrations
    bench registration
    demo
    cli
    __init__ __main__ run blocks site progress shared_draws
"""
LINES = [line.split() for line in ROOMS.strip().splitlines()]
ORDER = [room for line in LINES for room in line]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def module_of(path):
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def imports(path):
    """Names of the package's modules that a file imports, at its top or in a function."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = (*folder[: len(folder) - node.level + 1], *(node.module or '').split('.'))
            base = '.'.join(part for part in start if part)
            for name in node.names:
                inner = f'{base}.{name.name}'.lstrip('.')
                yield inner if inner in MODULES else base


FILES = sorted(PACKAGE.rglob('*.py'))
MODULES = {module_of(path).removesuffix('.__init__'): path for path in FILES}


def test_every_module_has_a_room():
    rooms = {room_of(path) for path in FILES}
    assert sorted(rooms) == sorted(ORDER)


@pytest.mark.parametrize('room', ORDER)
def test_a_room_imports_what_stands_above_it(room):
    (number,) = [i for i, line in enumerate(LINES) if room in line]
    allowed = {room, *(r for line in LINES[:number] for r in line)}
    found = [(module_of(path), name) for path in FILES if room_of(path) == room for name in imports(path)]
    assert [(module, name) for module, name in found if name.partition('.')[0] not in allowed] == []


def test_modules_import_each_other_one_way():
    TopologicalSorter({module_of(path): set(imports(path)) for path in FILES}).prepare()  # raises for a circle


def test_the_package_imports_itself_relatively():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.partition('.')[0] == PACKAGE.name], path

"""Environments that hold the packages of some requirements and no others."""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Dict, Iterator, Set

from packaging.requirements import Requirement


def requirements(package: str, extra: str = '') -> Iterator[Requirement]:
    for line in importlib.metadata.requires(package) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({'extra': extra}):
            yield requirement


def all_requirements(package: str, extra: str = '') -> Set[str]:
    """Names of the packages that pip would install with a package."""
    found: Set[str] = set()
    left = [(package, extra)]
    seen = set()
    while left:
        name, extra = left.pop()
        for requirement in requirements(name, extra):
            for wanted in [(requirement.name, e) for e in ['', *requirement.extras]]:
                if wanted not in seen:
                    seen.add(wanted)
                    left.append(wanted)
            found.add(requirement.name)
    return found - {package}


def create_environment(folder: Path, packages: Set[str]) -> Path:
    """A virtual environment in which those packages of this one are found, and pip; the path of its Python."""
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    python = folder / 'bin' / 'python'
    own = Path(sysconfig.get_paths()['purelib'])
    other = folder / own.relative_to(sys.prefix)
    for name in packages:
        for top in {file.parts[0] for file in importlib.metadata.distribution(name).files or []} - {'..'}:
            if (own / top).exists() and not (other / top).exists():
                (other / top).symlink_to(own / top)
    return python


def clean_environ(environ: Dict[str, str]) -> Dict[str, str]:
    """An environment's variables without those that lead Python to other packages."""
    return {name: value for name, value in environ.items() if not name.startswith(('PYTHON', 'VIRTUAL_ENV'))}

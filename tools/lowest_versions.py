"""Prints the lowest versions that pyproject.toml claims, as constraints for pip."""

import importlib.metadata

from packaging.requirements import Requirement

EXTRAS = ('', 'demo', 'composer')

if __name__ == '__main__':
    claimed = {}
    for requirement in map(Requirement, importlib.metadata.requires('timm-stochdepth')):
        if any(requirement.marker is None or requirement.marker.evaluate({'extra': extra}) for extra in EXTRAS):
            claimed[requirement.name] = requirement.specifier
    for name, specifier in claimed.items():
        lowest = [s.version for s in specifier if s.operator == '>=']
        if not lowest:
            raise SystemExit(f'{name} must have a lowest version in pyproject.toml, but has none.')
        print(f'{name}=={lowest[0]}')

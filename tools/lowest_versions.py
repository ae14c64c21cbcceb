"""Prints the lowest versions that pyproject.toml claims, as constraints for pip."""

from environments import requirements

EXTRAS = ('', 'demo', 'composer')

if __name__ == '__main__':
    claimed = {r.name: r.specifier for extra in EXTRAS for r in requirements('timm-stochdepth', extra)}
    for name, specifier in claimed.items():
        lowest = [s.version for s in specifier if s.operator == '>=']
        if not lowest:
            raise SystemExit(f'{name} must have a lowest version in pyproject.toml, but has none.')
        print(f'{name}=={lowest[0]}')

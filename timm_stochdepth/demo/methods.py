"""What a demo compares on a network of timm, told while the command line is read: nothing here is slow to import."""
from typing import Any, Dict

__all__ = ['METHODS']

# by name, what is applied to the network
METHODS: Dict[str, Dict[str, Any]] = {
    'plain': {},
    'timm': {},
    'skip': dict(stochastic_method='sample', scale_by_keep=True, skip_dropped=True),
    'sample': dict(stochastic_method='sample', scale_by_keep=False),
    'block': dict(stochastic_method='block', scale_by_keep=False),
}

"""The warnings that a call gives."""

import warnings


def told(function, *args, **kwargs):
    """Their texts, with no filter that would say one once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        function(*args, **kwargs)
    return [str(w.message) for w in caught]

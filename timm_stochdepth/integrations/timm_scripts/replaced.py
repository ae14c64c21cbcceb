"""Replace functions of timm that a script calls, while it runs."""
from contextlib import contextmanager
from functools import wraps
from typing import Any, Callable, Generator

__all__ = ['replaced']


@contextmanager
def replaced(name: str, replacement: Callable[..., Any], *owners: Any) -> Generator[None, None, None]:
    """Context in which a function is another one, for whoever looks it up or imports it there.

    What is imported meanwhile, by modules that outlive the script, is the first function again after it.

    Args:
        name: The function's name.
        replacement: Called with the function itself and what that is called with.
        owners: Modules, or a class, that have the function by that name.
    """
    original = getattr(owners[0], name)
    is_over = False

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if is_over else replacement(original, *args, **kwargs)

    for owner in owners:
        setattr(owner, name, call)
    try:
        yield
    finally:
        is_over = True
        for owner in owners:
            setattr(owner, name, original)

"""Ctrl-C, also where a library swallows it: numpy and torch do, while they are imported."""
import signal
import threading
from contextlib import contextmanager
from typing import Any, Generator

__all__ = ['interrupts_last']


@contextmanager
def interrupts_last() -> Generator[None, None, None]:
    """Context in which the libraries of a command are imported: an interrupt in it is one after it, too.

    Raises:
        KeyboardInterrupt: There was one, whatever became of it.
    """
    seen = []

    def interrupt(*args: Any) -> None:
        seen.append(args)
        raise KeyboardInterrupt

    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # somebody else's affair
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as e:
        if seen:  # what a library makes of it
            raise KeyboardInterrupt from e
        raise
    finally:
        signal.signal(signal.SIGINT, usual)
    if seen:
        raise KeyboardInterrupt

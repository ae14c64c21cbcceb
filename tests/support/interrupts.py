"""What a test starts, to interrupt it."""

import signal


def heed_interrupts():
    """To be called in a child: a shell has what it runs in the background ignore the signal, and what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

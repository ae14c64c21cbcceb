"""Say what to do when the Hub is out of reach, where its client only says that."""
from contextlib import contextmanager
from typing import Generator

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

__all__ = ['is_out_of_reach', 'offline_hint']

# what the Hub's client speaks HTTP with begins so, in all its versions; their errors have no base class in common
_HTTP_PACKAGES = ('httpcore', 'httpx', 'requests', 'urllib3')


def is_out_of_reach(error: BaseException) -> bool:
    """Whether an error says that the Hub gave no answer, and the cache does not hold what is asked for."""
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return True
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return False
    return type(error).__module__.startswith(_HTTP_PACKAGES)


@contextmanager
def offline_hint(name: str, how: str) -> Generator[None, None, None]:
    """Context in which the weights of a network of that name are downloaded.

    Raises:
        ConnectionError: The Hub is out of reach; it says how to go on without a network.
    """
    try:
        yield
    except Exception as e:
        if not is_out_of_reach(e):
            raise
        raise ConnectionError(
            f'The weights of {name} cannot be downloaded: the Hub is out of reach, and the cache does not hold them.'
            f' Without a network, {how}') from e

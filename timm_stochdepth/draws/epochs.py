"""What the process group's store says of a network's latest epoch: one key, whatever the number of epochs."""
from typing import Any, NamedTuple

__all__ = ['Epoch', 'agree_on_epoch', 'note_step', 'tell_epoch']


class Epoch(NamedTuple):
    """An epoch of a network's training.

    Attributes:
        number: Its number.
        start: Number of the optimizer's steps that it begins with.
        seed: The seed of its draws.
        has_step: 1 once a step has been made in it.
    """
    number: int
    start: int
    seed: int
    has_step: int = 0

    def __str__(self) -> str:
        return ' '.join(map(str, self))


def _read(said: bytes) -> Epoch:
    return Epoch(*map(int, said.split() or (0, 0, 0)))


def tell_epoch(store: Any, key: str, own: Epoch) -> Epoch:
    """Have the others begin where this rank does, who was told; returns the epoch."""
    said = _read(store.compare_set(key, '', str(own)))
    own = own._replace(number=max(own.number, said.number))
    store.set(key, str(own))
    return own


def agree_on_epoch(store: Any, key: str, own: Epoch) -> Epoch:
    """The epoch that the ranks are in: this rank's own, if it is the first there."""
    latest = b''
    while True:
        latest = store.compare_set(key, latest.decode(), str(own))
        epoch = _read(latest)
        if epoch.number >= own.number and not (epoch.has_step and epoch.start < own.start):
            return epoch
        own = own._replace(number=max(own.number, epoch.number + 1))


def note_step(store: Any, key: str, own: Epoch, is_doubtful: bool) -> Epoch:
    """Note that a step is made in an epoch; returns that epoch.

    Args:
        store: The store.
        key: That of the network.
        own: The epoch as this rank has it.
        is_doubtful: Whether a later one that the store says is this one.
    """
    with_step = own._replace(has_step=1)
    latest = _read(store.compare_set(key, str(own), str(with_step)))
    if is_doubtful and latest.number > own.number:
        store.compare_set(key, str(latest), str(latest._replace(has_step=1)))
        return latest
    if latest.number == 0:  # a rank that comes later, with its first draw, has taken the record of others away
        store.compare_set(key, '', str(with_step))
    return own

"""How the networks of a demo are trained, one object."""
from dataclasses import dataclass

__all__ = ['Recipe']


@dataclass(frozen=True)
class Recipe:
    """How every network of a demo is trained, AdamW under a cosine schedule.

    Attributes:
        data: Name of the images.
        num_images: Number of training images.
        epochs: Passes over them.
        eval_every: Epochs between two evaluations; there is one after the last epoch anyway.
        device: Where to train.
        lr: Learning rate after the warm-up, which decays to 0.
    """
    data: str = 'digits'
    num_images: int = 1437
    epochs: int = 7
    batch_size: int = 64
    eval_every: int = 1
    device: str = 'cpu'
    lr: float = 2e-3
    warmup_lr: float = 1e-4
    warmup_epochs: int = 1
    weight_decay: float = 0.02
    smoothing: float = 0.1

    def evaluates(self, epoch: int) -> bool:
        """Whether there is an evaluation after this epoch, counted from 1."""
        return epoch == self.epochs or epoch % self.eval_every == 0

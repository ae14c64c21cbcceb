"""The images of a demo, as timm's loader takes them."""
from dataclasses import dataclass
from typing import Any, Callable, Optional, Tuple

import torch
from timm.data import create_loader
from torch.utils.data import Dataset, Subset

from .recipe import Recipe

__all__ = ['NUM_CLASSES', 'FirstImages', 'Format', 'Images']

NUM_CLASSES = 10


class FirstImages(Subset):
    """The first images of a dataset in a random order that is always the same.

    Args:
        dataset: Images in any order, whose `transform` can be set.
        num_images: How many.
    """

    def __init__(self, dataset: Any, num_images: int) -> None:
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        super().__init__(dataset, order[:num_images].tolist())

    @property
    def transform(self) -> Optional[Callable]:
        return self.dataset.transform  # type: ignore[attr-defined]

    @transform.setter
    def transform(self, transform: Callable) -> None:
        self.dataset.transform = transform  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Format:
    """What the images of a data set have in common.

    Attributes:
        input_size: Channels, height and width, which are the same.
        mean: What is taken off each channel.
        std: What it is divided by then.
        hflip: Probability that a training image is mirrored.
    """
    input_size: Tuple[int, int, int]
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    hflip: float


@dataclass
class Images:
    """What a demo trains and scores on.

    Attributes:
        format: What they have in common.
        train: Training images.
        validation: Held-out images.
    """
    format: Format
    train: Dataset
    validation: Dataset

    def train_loader(self, recipe: Recipe) -> Any:
        """Batches of augmented images, drawn when they are asked for."""
        return self._loader(
            self.train, recipe, is_training=True, scale=(0.8, 1.0), hflip=self.format.hflip, color_jitter=0.)

    def validation_loader(self, recipe: Recipe) -> Any:
        return self._loader(self.validation, recipe)

    def _loader(self, dataset: Dataset, recipe: Recipe, **kwargs: Any) -> Any:
        return create_loader(
            dataset,  # type: ignore[arg-type]
            input_size=self.format.input_size,
            batch_size=recipe.batch_size,
            interpolation='bicubic',
            crop_pct=1.0,
            mean=self.format.mean,
            std=self.format.std,
            num_workers=0,
            persistent_workers=False,
            device=torch.device(recipe.device),
            **kwargs,
        )

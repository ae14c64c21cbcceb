"""Real images that come with a package: 1,797 handwritten digits of scikit-learn."""
from typing import Any, Callable, Optional, Tuple

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from .images import FirstImages, Format, Images

__all__ = ['FORMAT', 'NUM_TRAIN_IMAGES', 'read_digits']

FORMAT = Format((3, 32, 32), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, hflip=0.)
NUM_TRAIN_IMAGES = 1437


class Digits(Dataset):
    """Digits in memory, in the order of their classes.

    Args:
        images_NHW: Pixels from 0 to 16.
        target_N: The digits that they show.
    """

    def __init__(self, images_NHW: Any, target_N: Any) -> None:
        self.transform: Optional[Callable] = None
        _, height, width = FORMAT.input_size
        by_class = target_N.argsort(kind='stable')
        # 16 shades of grey in 8 bit
        greys = [Image.fromarray((image_HW * 255. / 16.).astype('uint8')) for image_HW in images_NHW[by_class]]
        self.images = [grey.resize((width, height), Image.Resampling.BICUBIC).convert('RGB') for grey in greys]
        self.targets = target_N[by_class].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, idx: int) -> Tuple[Any, int]:
        image = self.images[idx]
        return self.transform(image) if self.transform else image, self.targets[idx]


def read_digits(num_images: int) -> Images:
    """The digits, 1,437 to train on and 360 to score on.

    Args:
        num_images: How many of the training images to take.

    Raises:
        ImportError: scikit-learn is not installed, the `demo` extra brings it.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    splits = train_test_split(digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    train_NHW, validation_NHW, train_target_N, validation_target_N = splits
    train, validation = Digits(train_NHW, train_target_N), Digits(validation_NHW, validation_target_N)
    return Images(FORMAT, FirstImages(train, num_images), validation)

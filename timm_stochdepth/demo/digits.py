"""Real images that come with a package: 1,797 handwritten digits of scikit-learn, as an image folder."""
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset

from ..files import write_beside
from .images import FirstImages, Format, Images

__all__ = ['FORMAT', 'NUM_TRAIN_IMAGES', 'read_digits', 'write_digits']

FORMAT = Format((3, 32, 32), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, hflip=0.)
NUM_TRAIN_IMAGES = 1437


def read_digits(root: Path, num_images: int) -> Images:
    """The digits of an image folder that `write_digits` made.

    Args:
        root: The folder.
        num_images: How many of the training images to take.
    """
    train = create_dataset('', root=str(root), split='train')
    return Images(FORMAT, FirstImages(train, num_images), create_dataset('', root=str(root), split='validation'))


def write_digits(root: Path) -> Path:
    """Write the digits to root/train (1,437 images) and root/validation (360), a folder for each class.

    Args:
        root: A new folder.

    Raises:
        ImportError: scikit-learn is not installed, the `demo` extra brings it.
        FileExistsError: There is something at root.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    splits = train_test_split(digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    train_images, validation_images, train_targets, validation_targets = splits
    _, height, width = FORMAT.input_size
    with write_beside(root) as folder:
        for split, images, targets in (
                ('train', train_images, train_targets),
                ('validation', validation_images, validation_targets),
        ):
            for idx, (image_HW, target) in enumerate(zip(images, targets)):
                class_folder = folder / split / str(target)
                class_folder.mkdir(parents=True, exist_ok=True)
                # 16 shades of grey in 8 bit
                image = Image.fromarray((image_HW * 255. / 16.).astype('uint8'))
                image.resize((width, height), Image.Resampling.BICUBIC).save(class_folder / f'{idx:04d}.png')
    return root

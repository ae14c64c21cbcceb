"""Real images that come with a package: 1,797 handwritten digits of scikit-learn, as an image folder."""
from pathlib import Path

from ..files import write_beside

__all__ = ['IMG_SIZE', 'NUM_CLASSES', 'write_digits']

IMG_SIZE = 32
NUM_CLASSES = 10


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
                image.resize((IMG_SIZE, IMG_SIZE), Image.Resampling.BICUBIC).save(class_folder / f'{idx:04d}.png')
    return root

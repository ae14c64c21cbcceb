"""Fashion-MNIST, 70,000 real images of clothes, from the files of a Debian package."""
import gzip
import shutil
import tempfile
from pathlib import Path

from torchvision.datasets import FashionMNIST

from .images import FirstImages, Format, Images

__all__ = ['DEFAULT_FOLDER', 'FORMAT', 'read_fashion_mnist']

DEFAULT_FOLDER = Path('/usr/share/datasets/fashion-mnist')
FORMAT = Format((1, 28, 28), mean=(0.5,), std=(0.5,), hflip=0.5)
FILES = (
    'train-images-idx3-ubyte',
    'train-labels-idx1-ubyte',
    't10k-images-idx3-ubyte',
    't10k-labels-idx1-ubyte',
)


def read_fashion_mnist(folder: Path, num_images: int) -> Images:
    """Read the images into memory.

    Args:
        folder: Where the four files are, compressed by gzip.
        num_images: How many of the training images to take.

    Raises:
        ValueError: A file is not there, holds something else, or there are fewer images.
    """
    for name in FILES:
        if not (folder / f'{name}.gz').is_file():
            raise ValueError(
                f'--data fashion-mnist needs {name}.gz, which is not in {folder}: install the files with `apt-get'
                ' install dataset-fashion-mnist`, or say with --data-dir where they are.')
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root, 'FashionMNIST', 'raw')  # torchvision reads them unpacked, and there
        raw.mkdir(parents=True)
        try:
            for name in FILES:
                with gzip.open(folder / f'{name}.gz') as source, (raw / name).open('wb') as target:
                    shutil.copyfileobj(source, target)
            train, validation = (FashionMNIST(root, train=is_train) for is_train in (True, False))
            for split in (train, validation):
                if split.data.shape[1:] != FORMAT.input_size[1:] or len(split.data) != len(split.targets):
                    raise ValueError(f'{tuple(split.data.shape)} pixels, {len(split.targets)} labels')
        except (AssertionError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError) as e:
            raise ValueError(f'--data-dir must hold the files of Fashion-MNIST, but got {str(folder)!r}: {e}') from e
    if num_images > len(train):
        raise ValueError(f'--images must be {len(train):,} at the most, as many as there are, but got {num_images}.')
    return Images(FORMAT, FirstImages(train, num_images), validation)

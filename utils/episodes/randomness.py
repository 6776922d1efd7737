"""Random numbers that depend on nothing but (seed, stream, index): counter-based Philox, written out here.

No generator object and no state: the words of index i are computed directly, so they are the same on every machine,
with every library version, and however often a run was interrupted.
"""

from collections.abc import Sequence

import numpy as np

STREAMS = {
    "train": 0,
    "val": 1,
    "test": 2,
    "initialisation": 3,
    "synthetic_strokes": 4,
    "prepared_samples": 5,
    "prepared_splits": 6,
}
"""Name -> number of every stream. Closed: numbers are never changed or used again, since old runs rest on them."""

LARGEST_SEED = 2**56 - 1
"""Eight of the key's 64 bits hold the stream."""

# Salmon et al. 2011; the increments are (sqrt(5) - 1) / 2 and sqrt(3) - 1, times 2^32.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_LOW_32_BITS = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox_4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Apply Philox4x32 with 10 rounds: 128 bits of counter and 64 of key to 128 random bits.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; checked against the Random123 test vectors.

    Args:
        counter: uint64 (..., 4), each value below 2**32.
        key: two numbers below 2**32.
    Returns:
        uint64 (..., 4), each value below 2**32.
    """
    counter_0, counter_1, counter_2, counter_3 = (counter[..., i].astype(np.uint64) for i in range(4))
    key_0, key_1 = key
    for _ in range(10):
        product_0 = counter_0 * _MULTIPLIERS[0]
        product_1 = counter_2 * _MULTIPLIERS[1]
        counter_0 = (product_1 >> _32) ^ counter_1 ^ np.uint64(key_0)
        counter_1 = product_1 & _LOW_32_BITS
        counter_2 = (product_0 >> _32) ^ counter_3 ^ np.uint64(key_1)
        counter_3 = product_0 & _LOW_32_BITS
        key_0 = (key_0 + _KEY_INCREMENTS[0]) & 0xFFFFFFFF
        key_1 = (key_1 + _KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack([counter_0, counter_1, counter_2, counter_3], axis=-1)


def random_words(seed: int, stream: str, indices: Sequence[int] | np.ndarray, purpose: int, count: int) -> np.ndarray:
    """Return `count` random 64-bit words for every index: a pure function of (seed, stream, index, purpose).

    Args:
        seed: 0..LARGEST_SEED.
        stream: a name in STREAMS.
        indices: B numbers from 0 on, such as episode numbers.
        purpose: separates the draws that one index needs; more words of one purpose never change another's.
        count: words per index.
    Returns:
        uint64 (B, count).
    Raises:
        ValueError: a seed, stream or index outside its range.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed {seed} is outside 0..{LARGEST_SEED}")
    if stream not in STREAMS:
        raise ValueError(f'unknown stream "{stream}"; there are: {", ".join(STREAMS)}')
    indices = np.asarray(indices, dtype=np.int64)
    if indices.size and indices.min() < 0:
        raise ValueError(f"index {indices.min()} is below 0")
    indices = indices.astype(np.uint64)
    n_blocks = (count + 1) // 2
    counter = np.zeros((len(indices), n_blocks, 4), dtype=np.uint64)
    counter[:, :, 0] = np.arange(n_blocks, dtype=np.uint64)
    counter[:, :, 1] = (indices & _LOW_32_BITS)[:, None]
    counter[:, :, 2] = (indices >> _32)[:, None]
    counter[:, :, 3] = purpose
    words = philox_4x32_10(counter, (seed & 0xFFFFFFFF, (seed >> 32) << 8 | STREAMS[stream]))
    words = words[..., 0::2] << _32 | words[..., 1::2]  # (B, n_blocks, 2)
    return words.reshape(len(indices), 2 * n_blocks)[:, :count]


def below(words: np.ndarray, bounds: np.ndarray | int) -> np.ndarray:
    """Return floor(words * bounds / 2**64): uniform whole numbers 0..bounds-1 (bias below bounds / 2**64).

    Args:
        words: uint64.
        bounds: broadcast against words, each 1..2**32-1.
    Returns:
        int64, shape of the two together.
    """
    bounds = np.asarray(bounds, dtype=np.uint64)
    high = (words >> _32) * bounds
    low = (words & _LOW_32_BITS) * bounds
    return ((high + (low >> _32)) >> _32).astype(np.int64)


def uniform(words: np.ndarray) -> np.ndarray:
    """Return float64 in [0, 1) from the upper 53 bits of uint64 words, same shape."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_without_replacement(words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draw the first k places of a shuffle (Fisher and Yates, one word per place), row by row.

    Args:
        words: uint64 (R, k).
        sizes: int64 (R,), how many there are to draw from, each at least k.
    Returns:
        int64 (R, k), distinct numbers 0..size-1 per row.
    Raises:
        ValueError: a size below k.
    """
    n_rows, n_drawn = words.shape
    if n_rows == 0:
        return np.zeros((0, n_drawn), dtype=np.int64)
    if sizes.min() < n_drawn:
        raise ValueError(f"cannot draw {n_drawn} different ones out of {sizes.min()}")
    rows = np.arange(n_rows)
    pool = np.tile(np.arange(sizes.max(), dtype=np.int32), (n_rows, 1))
    for place in range(n_drawn):
        chosen = place + below(words[:, place], sizes - place)
        drawn = pool[rows, chosen]
        pool[rows, chosen] = pool[:, place]
        pool[:, place] = drawn
    return pool[:, :n_drawn].astype(np.int64)

"""Make letterbox.npz of the reference's letterboxed images: ``python reduce_letterbox.py GOLDEN.npz letterbox.npz``.

Kept are two of three images; of the large results only the SHA-256 of their bytes, of the third only its size.
"""
import hashlib
import sys

import numpy as np

golden = np.load(sys.argv[1])


def digest(array: np.ndarray) -> np.ndarray:
    """The 32 bytes of SHA-256 over an image."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest(), np.uint8)


np.savez_compressed(
    sys.argv[2],
    wide=golden['wide'], wide_inner=golden['wide_inner'], wide_letterboxed=golden['wide_letterboxed'],
    tall=golden['tall'], tall_inner=golden['tall_inner'], tall_sha256=digest(golden['tall_letterboxed']),
    large_shape=golden['large'].shape, large_inner=golden['large_inner'])

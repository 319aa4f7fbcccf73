"""Keeping what the frozen part of a detector gives for an image: the config's ``trunk_cache``, plain data."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgdet_plugin.common.errors import require, require_known
from mgdet_plugin.plan.keeping import CACHES

DTYPES = ('float32', 'float16')
UNITS = {'MB': 2 ** 20, 'GB': 2 ** 30, 'TB': 2 ** 40}


@dataclass(frozen=True)
class TrunkCaching:
    """How the outputs of the frozen part are kept.

    Attributes:
        where: In 'memory', or in a 'file' of the work folder, which several processes share.
        at_most: How much all processes together keep, such as '4GB' or '500MB'; what has no room is computed each time.
        dtype: 'float32', or 'float16' at half the size and a relative precision of 0.0005.

    Raises:
        UserError: A value is none of those allowed.
    """
    where: str = 'memory'
    at_most: str = '4GB'
    dtype: str = 'float32'

    @classmethod
    def build(cls, given: Any) -> TrunkCaching:
        """The options of a config.

        Raises:
            UserError: One is unknown or out of its range.
        """
        require(isinstance(given, Mapping), "trunk_cache must be a dict such as dict(at_most='4GB')", given)
        require_known(cls, given, 'trunk_cache')
        return cls(**given)

    def __post_init__(self) -> None:
        require(self.where in CACHES, f'trunk_cache.where must be one of {CACHES}', self.where)
        require(self.dtype in DTYPES, f'trunk_cache.dtype must be one of {DTYPES}', self.dtype)
        require(self.most_bytes > 0, f"trunk_cache.at_most must be a size in {', '.join(UNITS)}, such as '4GB'",
                self.at_most)

    @property
    def most_bytes(self) -> int:
        """``at_most`` in bytes; 0 where it is no size."""
        found = re.fullmatch(r'(\d+(?:\.\d+)?) ?([MGT]B)', str(self.at_most))
        return int(float(found[1]) * UNITS[found[2]]) if found else 0

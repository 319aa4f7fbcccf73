"""A weights file that has been listed: its arrays, its texts, and where it came from."""
from __future__ import annotations

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.file_window import Digest, FileWindow
from mgdet_plugin.weights.container.reader_process import TEXT_ATTRIBUTES, Listing
from mgdet_plugin.weights.container.stored_array import ArrayReader


class WeightsFile(ArrayReader):
    """A weights file that has been listed, with where it came from.

    Attributes:
        container: ``HDF5``, ``.keras archive`` or Darknet with its version.
        size: Bytes of the whole file.
    """

    def __init__(self, window: FileWindow, name: str, container: str, size: int, listing: Listing,
                 digest: Digest) -> None:
        super().__init__(window, name)
        self.container = container
        self.size = size
        self.arrays, self.groups, self._texts = listing.arrays, listing.groups, listing.texts
        self._digest = digest

    @property
    def sha256(self) -> str:
        """Hex digest of the whole file, computed since it was opened."""
        return self._digest.hex()

    def texts(self, group: str, attribute: str) -> list[str] | None:
        """A text attribute of a group, one of those listed, as :meth:`.safe_h5.SafeH5.texts` gives it.

        Raises:
            UserError: The attribute is not a list of names.
        """
        if attribute not in TEXT_ATTRIBUTES:
            raise ValueError(f'the attribute {attribute!r} is not listed, only {", ".join(TEXT_ATTRIBUTES)}')
        found = self._texts.get(group, {}).get(attribute)
        if isinstance(found, str):
            raise UserError(found)
        return found

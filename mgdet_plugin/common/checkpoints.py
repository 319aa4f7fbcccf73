"""Checkpoints read without executing anything stored in them."""
from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet_plugin.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
          OSError, AssertionError, zipfile.BadZipFile)
WRITTEN_BY = 'give a .pth file that tools/import_keras.py or a training run wrote'


def load_checkpoint(path: str | Path, mmap: bool = False) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Read a checkpoint with torch's safe loader, onto the CPU.

    Args:
        path: What the import or mmengine wrote, or a bare state dict.
        mmap: Read a tensor's numbers only when they are used, so that names and shapes come at once.

    Returns:
        Name -> tensor; and all of the file's content, of which the first is a part.

    Raises:
        UserError: It cannot be loaded safely or holds no state dict of tensors.
    """
    import torch  # it and mmengine take seconds, which a file that is not there should not cost
    from mmengine.logging import HistoryBuffer  # noqa: F401  importing it lets torch.load read mmengine's log history
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except DAMAGE as error:
        lines = str(error).strip().splitlines()
        raise UserError(f'{path} is no checkpoint that torch can load safely '
                        f'({lines[0] if lines else type(error).__name__}); {WRITTEN_BY}') from None
    state = content.get('state_dict', content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(f'{path} holds no state_dict of tensors; {WRITTEN_BY}')
    return state, content


def check_checksums(path: str | Path) -> None:
    """Read a checkpoint from end to end and compare each part with its checksum, which ``torch.load`` does not.

    Raises:
        UserError: A part holds other bytes than were written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except DAMAGE as error:
        raise UserError(f'{path} is damaged ({error})') from None
    if part is not None:
        raise UserError(f'{path} is damaged ({part} has another checksum than when it was written)')

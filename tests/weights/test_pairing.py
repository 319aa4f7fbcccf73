"""The importer holds against a second way to tell which array is which: by the numbers in the layers' names alone."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mgdet_plugin.weights.importer import import_keras
from tests.support.keras_files import (
    BACKBONE_TREES,
    MODEL_TREES,
    TINY_OPTIONS,
    shifted,
    tiny,
    with_optimizer,
    write,
)
from tests.support.keras_pairing import paired_arrays


@pytest.mark.parametrize('name', [*MODEL_TREES, *BACKBONE_TREES])
def test_importer_agrees_with_the_numbers_in_the_names(tmp_path: Path, name: str):
    part = 'backbone' if name in BACKBONE_TREES else 'model'
    src = write(with_optimizer(shifted(tiny(name), 66, 67)), tmp_path / name)
    import_keras(src, tmp_path / 'out.pth', part=part, cfg_options=TINY_OPTIONS)
    state = {key: value.numpy() for key, value in torch.load(tmp_path / 'out.pth')['state_dict'].items()
             if not key.endswith('num_batches_tracked')}
    expected = paired_arrays(src, list(state))
    assert state.keys() == expected.keys()
    assert [key for key, value in state.items()
            if value.tobytes() != np.ascontiguousarray(expected[key]).tobytes()] == []

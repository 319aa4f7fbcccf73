"""Let Keras read a weights file itself, and compare its variables and outputs with a checkpoint's."""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mgdet_plugin.weights.checkpoint import Checkpoint, read_checkpoint, to_keras
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.keras_model import build_keras_model, load_keras
from mgdet_plugin.weights.mapping.keras_layouts import model_layers
from mgdet_plugin.weights.mapping.layout import resolve_layers
from mgdet_plugin.weights.mapping.network import build_empty, load_config
from tests.support.keras_files import TINY_OPTIONS
from tests.support.keras_resolving import shapes_of

STAGE_ENDS = ('add_10', 'add_18', 'add_22')  # layers of Keras that give the backbone's maps


def compare_with_keras(src: Path, ckpt: Path, pixels: np.ndarray) -> tuple[int, list[float]]:
    """Load a file with Keras into the network built by Keras.

    Args:
        src: The file.
        ckpt: A checkpoint of the small model or of its backbone.
        pixels: (1, H, W, 3) image for the outputs.

    Returns:
        How many tensors of the checkpoint are bit-equal to a variable; the largest difference of every output.
    """
    checkpoint, keras = read_checkpoint(ckpt), load_keras()
    with open_weights(src) as weights:
        layout = resolve_layers(weights)
    model = build_keras_model(shapes_of(layout))
    unset(model)
    suffix = '.keras' if weights.container != 'HDF5' else '.weights.h5' if '/layers' in weights.groups else '.h5'
    with named(src, suffix) as path, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # hundreds of lines before one error
        model.load_weights(str(path))
    equal = 0
    for layer in model_layers(checkpoint.part):
        if layer.tensors:
            for key, values in zip(layer.tensors.values(), model.get_layer(layer.name).get_weights(), strict=True):
                equal += values.tobytes() == to_keras(checkpoint.state[key]).tobytes()
    if checkpoint.part == 'backbone' and layout.part == 'model':
        model = keras.Model(model.inputs, [model.get_layer(name).output for name in STAGE_ENDS])
    theirs, ours = model.predict(pixels, verbose=0), torch_maps(checkpoint, pixels)
    return equal, [float(np.abs(one - other).max()) for one, other in zip(theirs, ours, strict=True)]


def unset(model: Any) -> None:
    """Make every variable NaN, so that what Keras leaves unset differs."""
    for layer in model.layers:
        layer.set_weights([np.full(values.shape, np.nan, np.float32) for values in layer.get_weights()])


@contextmanager
def named(path: Path, suffix: str) -> Iterator[Path]:
    """The file under a name whose suffix tells Keras its layout, which Keras takes from the name alone."""
    with TemporaryDirectory() as folder:
        link = Path(folder) / f'model{suffix}'
        link.symlink_to(path.resolve())
        yield link


@torch.no_grad()
def torch_maps(checkpoint: Checkpoint, pixels: np.ndarray) -> list[np.ndarray]:
    """The maps (1, H, W, channels) of an image by a checkpoint of the small model or of its backbone."""
    model: Any = build_empty(load_config(None, TINY_OPTIONS), checkpoint.part)
    prefix = '' if checkpoint.part == 'model' else 'backbone.'
    model.load_state_dict({key.removeprefix(prefix): value for key, value in checkpoint.state.items()}, strict=True,
                          assign=True)
    model.eval()
    maps = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    outputs = model(maps) if checkpoint.part == 'backbone' else model.bbox_head(model.extract_feat(maps))
    return [output.permute(0, 2, 3, 1).numpy() for output in outputs]

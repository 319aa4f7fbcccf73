"""Let Keras read the source file itself, and compare its variables and its outputs with the checkpoint's."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.letterbox import letterbox_image
from mgdet_plugin.weights.checkpoint import Checkpoint
from mgdet_plugin.weights.comparison import Comparison, Rows, compare
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.keras_model import build_keras_model, load_keras, shapes_of
from mgdet_plugin.weights.mapping.keras_order import model_layers
from mgdet_plugin.weights.mapping.layout import resolve
from mgdet_plugin.weights.mapping.network import build_empty, load_config
from mgdet_plugin.weights.pairing import Source

TOLERANCE = 1e-4
SIDE = 416
FULL_WIDTH = 32  # of Darknet53's first convolution
STRIDES = dict(model=(32, 16, 8), backbone=(8, 16, 32))
STAGE_ENDS = ('add_10', 'add_18', 'add_22')  # layers of Keras that give the backbone's maps
OTHER_STRUCTURE = ('to Keras, a training checkpoint, a nested model or a classifier on top is not the same as the '
                   'plain network: save the detector alone from Keras (save_weights) and verify that file')


def compare_with_keras(source: Source, checkpoint: Checkpoint, rows: Mapping[str, Rows],
                       image: Path | None) -> dict[str, Any]:
    """Build the network in Keras, load the file with Keras, and compare both networks.

    Args:
        source: The file; the safe reader has passed it.
        checkpoint: What is verified.
        rows: Where rows of prediction convolutions came from.
        image: Image file. Default: the photograph that comes with matplotlib.

    Returns:
        Plain types: ``agrees``, ``lines`` for a person, and figures.

    Raises:
        UserError: Keras is not installed, or the image cannot be read.
    """
    pixels, name = network_input(image)
    keras = load_keras()
    version = f'Keras {keras.__version__} ({keras.backend.backend()})'
    with open_weights(source.name) as weights:
        layout = resolve(weights)
    model = build_keras_model(shapes_of(layout))
    for layer in model.layers:  # what Keras leaves unset differs
        layer.set_weights([np.full(values.shape, np.nan, np.float32) for values in layer.get_weights()])
    suffix = '.keras' if weights.container != 'HDF5' else '.weights.h5' if '/layers' in weights.groups else '.h5'
    try:
        with named(Path(source.name), suffix) as path, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # hundreds of lines before one error; every variable is checked below
            model.load_weights(str(path))
    except Exception as error:  # Keras raises anything
        said = ' '.join(str(error).split())[:300] or type(error).__name__
        return dict(agrees=False, version=version, loaded=False, said=said,
                    lines=[f'{version} does not load the file: {said}', OTHER_STRUCTURE])
    variables = compare_variables(model, checkpoint, rows)
    if checkpoint.part == 'backbone' and source.part == 'model':
        model = keras.Model(model.inputs, [model.get_layer(name).output for name in STAGE_ENDS])
    errors = output_errors(model.predict(pixels, verbose=0), torch_maps(checkpoint, pixels), rows)
    return make_account(version, name, checkpoint, variables, errors)


def make_account(version: str, image: str, checkpoint: Checkpoint, variables: Sequence[Comparison],
                 errors: Sequence[float]) -> dict[str, Any]:
    """The result in plain types."""
    equal = sum(item.difference is None for item in variables)
    close = all(error <= TOLERANCE for error in errors)  # False for NaN
    by_stride = dict(zip(map(str, STRIDES[checkpoint.part]), errors, strict=True))
    figures = ', '.join(f'{error:.1e} at stride {stride}' for stride, error in by_stride.items())
    lines = [f'{version} loaded the file; {equal} of {len(variables)} of its variables are bit-equal to the checkpoint',
             f'outputs on {image} at {SIDE} x {SIDE} differ by {figures} at most ({TOLERANCE:.0e} passes)']
    lines += [f'{item.key} and {item.place}: {item.difference}' for item in variables if item.difference][:3]
    return dict(agrees=close and equal == len(variables), version=version, loaded=True, image=image,
                variables=len(variables), variables_equal=equal, tolerance=TOLERANCE, lines=lines,
                max_error={stride: None if np.isnan(error) else error for stride, error in by_stride.items()})


def network_input(image: Path | None) -> tuple[np.ndarray, str]:
    """An image as the networks take it, (1, 416, 416, 3) RGB in 0 to 1, letterboxed; and its name."""
    if image is None:
        from matplotlib.cbook import get_sample_data
        image = Path(get_sample_data('grace_hopper.jpg', asfileobj=False))
    try:
        with Image.open(image) as opened:
            pixels = np.asarray(opened.convert('RGB'))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'--image {image} cannot be read as an image: {error}') from error
    return letterbox_image(pixels, (SIDE, SIDE))[None].astype(np.float32) / 255, image.name


@contextmanager
def named(path: Path, suffix: str) -> Iterator[Path]:
    """The file under a name whose suffix tells Keras its layout, which Keras takes from the name alone."""
    if path.name.endswith(suffix) and (suffix != '.h5' or not path.name.endswith('.weights.h5')):
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / f'model{suffix}'
        link.symlink_to(path.resolve())
        yield link


def compare_variables(model: Any, checkpoint: Checkpoint, rows: Mapping[str, Rows]) -> list[Comparison]:
    """Compare every variable of the Keras model that the checkpoint has with its tensor."""
    values: dict[str, np.ndarray] = {}
    places: dict[str, str] = {}
    for layer in model_layers(checkpoint.part):
        if layer.tensors:
            arrays = model.get_layer(layer.name).get_weights()
            for (weight, key), array in zip(layer.tensors.items(), arrays, strict=True):
                values[key] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
                places[key] = f'{layer.name}/{weight} of Keras'
    read: Callable[[str], np.ndarray] = values.__getitem__
    return compare(places, read, checkpoint, rows, int)


@torch.no_grad()
def torch_maps(checkpoint: Checkpoint, pixels: np.ndarray) -> list[np.ndarray]:
    """The checkpoint's own maps (1, H, W, channels) of an image."""
    model: Any = torch_network(checkpoint)
    maps = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    outputs = model(maps) if checkpoint.part == 'backbone' else model.bbox_head(model.extract_feat(maps))
    return [output.permute(0, 2, 3, 1).numpy() for output in outputs]


def torch_network(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, its widths taken from the checkpoint's own shapes.

    Raises:
        UserError: Its widths are those of no Darknet53 scaled as a whole.
    """
    config = load_config(None, network_options(checkpoint))
    model: Any = build_empty(config, checkpoint.part)
    for scale, sizes in enumerate(zip(checkpoint.bridge_channels, checkpoint.outputs, strict=True)):
        model.bbox_head.predict_convs[scale] = nn.Conv2d(*sizes, 1)  # how channels divide into classes is not needed
    prefix = '' if checkpoint.part == 'model' else 'backbone.'
    state = {key.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
             for key, tensor in checkpoint.state.items()}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f'{checkpoint.name}: its widths are not those of Darknet53 scaled as a whole, so the network '
                        'cannot be built to compare outputs') from error
    network: nn.Module = model
    network.eval()  # mmdet's Darknet returns nothing here
    return network


def network_options(checkpoint: Checkpoint) -> dict[str, Any]:
    """Config keys that give the network the widths of a checkpoint."""
    def width(prefix: str) -> int:
        return int(checkpoint.state[f'{prefix}.conv.weight'].shape[0])

    options: dict[str, Any] = {'model.backbone.type': 'ScaledDarknet',
                               'model.backbone.widen_factor': width('backbone.conv1') / FULL_WIDTH}
    if checkpoint.part == 'backbone':
        return options
    neck = tuple(width(f'neck.blocks.{scale}.conv3') for scale in range(3))
    return options | {
        'model.neck.in_channels': tuple(width(f'backbone.conv_res_block{stage}.conv') for stage in (5, 4, 3)),
        'model.neck.out_channels': neck,
        'model.bbox_head.in_channels': neck,
        'model.bbox_head.bridge_channels': checkpoint.bridge_channels,
    }


def output_errors(expected: Sequence[np.ndarray], found: Sequence[np.ndarray], rows: Mapping[str, Rows]) -> list[float]:
    """Largest difference of every map, of kept channels alone where classes were replaced; NaN where they misfit."""
    errors = []
    for scale, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
        origin = rows.get(f'bbox_head.predict_convs.{scale}')
        if origin is not None and theirs.shape[3] == origin.in_file:
            theirs, ours = theirs[..., origin.taken], ours[..., origin.kept]
        errors.append(float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else float('nan'))
    return errors

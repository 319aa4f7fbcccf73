"""Export a checkpoint to a file that Keras loads into the original architecture."""
from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Literal

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import byte_progress, check_destination, content_hash, write_together
from mgdet_plugin.weights.checkpoint import (
    Checkpoint,
    kernel_key,
    kernel_shape,
    read_checkpoint,
    refuse_unusable,
    to_keras,
    weight_keys,
)
from mgdet_plugin.weights.import_report import Report, file_line, table
from mgdet_plugin.weights.keras_model import NetworkShapes, build_keras_model, load_keras
from mgdet_plugin.weights.mapping.architecture import BOX_ROWS, Part, block_prefixes, predict_prefixes
from mgdet_plugin.weights.mapping.keras_layouts import Read, legacy_h5, model_layers, weights_h5

BRIDGE_FACTORS = (8, 4, 2)
LARGEST_HALF = 65_504
XY_SCALE = 0.15  # of the reference's decoding
LAYOUTS = {
    '.weights.h5': '.weights.h5 (layers/<class>/vars), for Keras 2.15 and 3',
    '.h5': 'weights .h5 (layer_names), for Keras 2 and 3',
    '.keras': '.keras archive',
}
DType = Literal['float32', 'float16']


def export_keras(ckpt: str | Path, out: str | Path, *, part: Part = 'model', dtype: DType = 'float32') -> Report:
    """Turn a checkpoint into a Keras weights file.

    Args:
        ckpt: What the import or a training run wrote.
        out: File to write; its suffix chooses the layout: ``.h5``, ``.weights.h5`` or ``.keras``, which needs Keras.
        part: ``model``, or ``backbone`` for a Darknet53 file; a checkpoint of a model serves for both.
        dtype: How numbers are stored. Keras reads float16 into a float32 model.

    Returns:
        The report: files, layout, widths, classes, every tensor's place, notes.

    Raises:
        UserError: Anything about the checkpoint or the destination is not as it must be; nothing is written.
    """
    ckpt, out = Path(ckpt), Path(out)
    suffix = chosen_suffix(out, part, dtype)
    check_destination(out, ckpt)
    checkpoint = read_checkpoint(ckpt)
    if part == 'model' and checkpoint.part == 'backbone':
        raise UserError(f'{ckpt} holds a backbone alone; export it with --part backbone')
    keys = weight_keys(part)
    rounding = check_values(checkpoint, keys, dtype)
    total = sum(checkpoint.state[key].numel() for key in keys) * np.dtype(dtype).itemsize
    with byte_progress(2 * total, 'export') as progress:
        def read(key: str) -> np.ndarray:
            values: np.ndarray = to_keras(checkpoint.state[key]).astype(dtype)
            progress.update(values.nbytes)
            return values

        write_together({out: content_writer(suffix, part, read, checkpoint)}, progress.update)
    return export_report(checkpoint, out, suffix, part, dtype, rounding)


def chosen_suffix(out: Path, part: Part, dtype: DType) -> str:
    """The layout a destination asks for; options it does not have are refused."""
    if part not in ('model', 'backbone'):
        raise UserError(f'part must be model or backbone, got {part!r}')
    if dtype not in ('float32', 'float16'):
        raise UserError(f'dtype must be float32 or float16, got {dtype!r}')
    suffix = next((suffix for suffix in LAYOUTS if out.name.endswith(suffix)), None)
    if suffix is None:
        raise UserError(f'{out} must end in .h5, .weights.h5 or .keras; the suffix chooses the layout')
    if suffix == '.keras' and dtype == 'float16':
        raise UserError(f'{out}: a .keras archive stores the type its model computes in; --dtype float16 is for .h5 '
                        'and .weights.h5')
    return suffix


def check_values(checkpoint: Checkpoint, keys: Sequence[str], dtype: DType) -> tuple[float, int]:
    """Refuse numbers no network can use, or that the stored type cannot hold.

    Returns:
        What storing does to the numbers: their largest change, and how many other than zero become zero.
    """
    largest, zeroed = 0., 0
    for key in keys:
        values = to_keras(checkpoint.state[key])
        refuse_unusable(values, key, f'{checkpoint.name}: {key}', 'checkpoint')
        if dtype == 'float16':
            if np.abs(values).max() > LARGEST_HALF:
                raise UserError(f'{checkpoint.name}: {key} holds {np.abs(values).max():.6g}; float16 ends at '
                                f'{LARGEST_HALF:,}, export it as float32')
            stored = values.astype(np.float16)
            largest = max(largest, float(np.abs(stored - values).max()))
            zeroed += int(((stored == 0) & (values != 0)).sum())
    return largest, zeroed


def content_writer(suffix: str, part: Part, read: Read, checkpoint: Checkpoint) -> Callable[[BinaryIO], object]:
    """What writes the content of the file to an opened one."""
    if suffix == '.keras':
        model = build_keras_model(network_shapes(checkpoint, part))
        for layer in model_layers(part):
            if layer.tensors:
                model.get_layer(layer.name).set_weights([read(key) for key in layer.tensors.values()])
        return lambda stream: save_archive(model, stream)
    layout = legacy_h5 if suffix == '.h5' else weights_h5
    return lambda stream: stream.write(layout(part, read).getbuffer())


def save_archive(model: Any, stream: BinaryIO) -> None:
    """Let a Keras model save itself beside the opened file, and copy that into it: Keras takes no stream."""
    with TemporaryDirectory(prefix='.export.', dir=Path(stream.name).parent) as folder:
        archive = Path(folder) / 'model.keras'
        model.save(archive)
        with archive.open('rb') as saved:
            shutil.copyfileobj(saved, stream)


def network_shapes(checkpoint: Checkpoint, part: Part) -> NetworkShapes:
    """The shapes Keras builds the network from."""
    kernels, predictions = (
        tuple(kernel_shape(checkpoint.state[kernel_key(prefix)]) for prefix in prefixes)
        for prefixes in (block_prefixes(part), predict_prefixes(part)))
    return NetworkShapes(kernels, predictions)


def export_report(checkpoint: Checkpoint, out: Path, suffix: str, part: Part, dtype: DType,
                rounding: tuple[float, int]) -> Report:
    """The account of an export, plain types only."""
    digest = content_hash(out)
    layers = model_layers(part)
    tensors = [dict(source=key, layer=layer.name, weight=weight, shape=list(checkpoint.state[key].shape))
               for layer in layers for weight, key in layer.tensors.items()]
    whole = part == 'model'
    return dict(
        source=dict(file=Path(checkpoint.name).name, bytes=checkpoint.size, sha256=checkpoint.sha256),
        written=dict(file=out.name, bytes=out.stat().st_size, sha256=digest, layout=LAYOUTS[suffix], dtype=dtype,
                     part=part),
        layers=len(layers),
        layers_with_weights=sum(bool(layer.tensors) for layer in layers),
        outputs=list(checkpoint.outputs) if whole else [],
        bridge_channels=list(checkpoint.bridge_channels) if whole else [],
        class_names=checkpoint.class_names if whole else [],
        tensors=tensors,
        notes=[*checkpoint.notes, *export_notes(checkpoint, suffix, part, dtype, rounding)])


def other_decoding(config: str) -> str:
    """What in the text of a config makes boxes of raw maps another way than the reference; empty where nothing does.

    The text is only searched: running it would run what a stranger wrote.
    """
    uses = re.findall(r"['\"]?anchor_use['\"]?\s*[=:]\s*['\"](\w+)['\"]", config)
    scales = re.findall(r"['\"]?xy_scale['\"]?\s*[=:]\s*([0-9.]+)", config)
    found = [f"anchor_use='{use}'" for use in uses if use != 'likely']
    found += [f'xy_scale={scale}' for scale in scales if scale.strip('.') and float(scale) != XY_SCALE]
    return ', '.join(dict.fromkeys(found))


def export_notes(checkpoint: Checkpoint, suffix: str, part: Part, dtype: DType,
               rounding: tuple[float, int]) -> list[str]:
    """What the user should know or do."""
    notes = []
    stored = sorted({str(tensor.dtype).removeprefix('torch.') for tensor in checkpoint.state.values()
                     if tensor.is_floating_point()} - {'float32'})
    if stored:
        notes.append(f'the checkpoint stores {" and ".join(stored)}; exported from its value in float32')
    if dtype == 'float16':
        notes.append(f'float16 changed numbers by {rounding[0]:.2g} at most, and {rounding[1]:,} to zero; '
                     'for float32 outputs within 1e-4 export float32')
    if suffix == '.keras':
        notes.append(f'written by Keras {load_keras().__version__}: an older Keras may not open it as a model, but its '
                     'load_weights reads it into the network')
    if part == 'backbone':
        return notes
    bridges, outputs = list(checkpoint.bridge_channels), checkpoint.outputs
    default = [factor * channels for factor, channels in zip(BRIDGE_FACTORS, outputs, strict=True)]
    if bridges != default:
        notes.append(f'build the Keras model with bridges of {bridges} channels: its own default for predictions of '
                     f'{list(outputs)} channels is {default}, and Keras then refuses the file')
    decoding = other_decoding(str(checkpoint.meta.get('cfg') or ''))
    if decoding:
        notes.append(f'the checkpoint was trained with {decoding}: decoding as model5 does (most likely anchor, '
                     f'xy_scale {XY_SCALE}) gives other boxes from the same maps')
    names = checkpoint.class_names
    if names and min(outputs) <= BOX_ROWS + len(names):
        notes.append(f'the checkpoint names {len(names)} classes, which do not fit predictions of {list(outputs)} '
                     'channels (5 + anchors + classes)')
    return notes


def export_summary(report: Report) -> str:
    """The table a person reads."""
    source, written = report['source'], report['written']
    rows = [
        ('from', file_line(source)),
        ('layout', f'{written["layout"]}, stored as {written["dtype"]}'),
        ('holds', f'a {written["part"]}: {report["layers"]} layers, {report["layers_with_weights"]} with weights, '
                  f'{len(report["tensors"])} arrays'),
    ]
    if report['outputs']:
        rows += [('outputs', f'{report["outputs"]} channels (5 + anchors + classes), coarse scale first'),
                 ('bridges', f'{report["bridge_channels"]} channels'),
                 ('classes', describe_names(report['class_names']))]
    rows += [('note', note) for note in report['notes']]
    rows.append(('written', file_line(written)))
    return table(rows)


def describe_names(names: Sequence[str]) -> str:
    """Class names on one line; Keras files have no place for them."""
    if not names:
        return 'the checkpoint names none'
    shown = ', '.join(name if name.isprintable() else repr(name) for name in names)
    return f'{len(names)} (a Keras file has no place for names; they stay in the checkpoint): {shown}'

"""Import Keras weights: all of the network's tensors, each set exactly once, or nothing."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mgdet_plugin import __version__
from mgdet_plugin.errors import UserError
from mgdet_plugin.keras_io.archive import MAX_EXPANSION, WeightsFile, open_weights
from mgdet_plugin.keras_io.classes import MAX_CLASSES, ROW_STD, SEED, TargetClasses, parse_classes, replace_class_rows
from mgdet_plugin.keras_io.layout import Assignment, FileLayout, Part, assign, left_over, predict_prefixes, resolve
from mgdet_plugin.keras_io.network import (
    Network,
    anchors_per_scale,
    describe_network,
    load_config,
    set_classes,
    to_torch,
    torch_shape,
)
from mgdet_plugin.keras_io.report import Report, check_destination, write_together
from mgdet_plugin.keras_io.safe_h5 import quoted

BOX_ROWS = 5  # tx, ty, tw, th, objectness
COUNTER = 'num_batches_tracked'
OTHER_CONFIG = 'give a config of MultiGridDet with --config'
BY_NAMES = 'by stored order, and the layer names agree'
BY_ORDER = 'by stored order alone: the file stores no layer names'


def import_keras(src: str | Path, out: str | Path, *, config: str | Path | None = None, part: Part = 'model',
                 classes: str | int | Path | None = None, report: str | Path | None = None,
                 cfg_options: Mapping[str, Any] | None = None) -> Report:
    """Turn a Keras weights file into a checkpoint of the config's model.

    Args:
        src: Keras file: ``.h5``, ``.weights.h5`` or ``.keras``, of the model or of Darknet53.
        out: Checkpoint to write, ``dict(state_dict, meta)`` of plain types. Keys of a backbone begin with
            ``backbone.``: load them by ``init_cfg=dict(type='Pretrained', checkpoint=out, prefix='backbone.')``.
        config: Config of the model. Default: ``configs/mgdet_model5_stage1.py``.
        part: What to import, ``model`` or ``backbone``; a model file serves for both.
        classes: Number of new classes or path of a file of names; their rows are drawn anew. Default: keep all.
        report: Where to write the report as JSON. Default: only in the checkpoint's meta.
        cfg_options: Dotted keys of the config to set.

    Returns:
        The report: file, layout, classes, source and destination of every tensor, arrays not used, notes.

    Raises:
        UserError: Anything about the file, the config or the classes is not as it must be; nothing is written.
    """
    src, out = Path(src), Path(out)
    if part not in ('model', 'backbone'):
        raise UserError(f'part must be model or backbone, got {part!r}')
    if classes is not None and part == 'backbone':
        raise UserError('--classes is for --part model; a backbone has no classes')
    target = None if classes is None else parse_classes(classes)
    report_path = None if report is None else Path(report)
    for path in (out,) if report_path is None else (out, report_path):
        check_destination(path, src)
    if report_path is not None and report_path.resolve() == out.resolve():
        raise UserError(f'--report {report_path} is OUT itself; give another path')
    state, result = convert(src, part, target, config, cfg_options)
    result['written'] = out.name
    meta: dict[str, Any] = dict(mgdet_version=__version__, keras_import=result)
    if target is not None and target.names is not None:
        meta['dataset_meta'] = dict(classes=list(target.names))
    writers: dict[Path, Callable[[BinaryIO], object]] = {}
    if report_path is not None:
        text = json.dumps(result, indent=1).encode() + b'\n'
        writers[report_path] = lambda stream: stream.write(text)
    writers[out] = partial(torch.save, dict(meta=meta, state_dict=state))
    write_together(writers)
    return result


def convert(src: Path, part: Part, target: TargetClasses | None, config_path: str | Path | None,
            cfg_options: Mapping[str, Any] | None) -> tuple[dict[str, Tensor], Report]:
    """The state dict and the report of an import, nothing written."""
    with open_weights(src) as weights:
        layout = resolve(weights)
        if part == 'model' and layout.part == 'backbone':
            raise UserError(f'{src} is a backbone file ({len(layout.convs)} convolutions, no prediction convolutions); '
                            'import it with --part backbone')
        config = load_config(config_path, cfg_options)
        anchors = anchors_per_scale(config) if part == 'model' else ()
        in_file = file_classes(src, layout, anchors) if part == 'model' else 0
        if target is not None:
            set_classes(config, target.count, layout.bridge_channels)
        network = describe_network(config, part)
        assignments = assign(layout, part)
        check_shapes(src, assignments, network, in_file, redraw=target is not None)
        state = read_tensors(weights, assignments)
        not_used = left_over(weights, layout, assignments)
    if target is not None:
        redraw_classes(state, anchors, target.count)
    state = cover(state, network)
    return state, make_report(weights, layout, assignments, state, not_used, in_file, target)


def file_classes(src: Path, layout: FileLayout, anchors: Sequence[int]) -> int:
    """Classes a model file was trained on, from the channels of its prediction maps and the config's anchors."""
    found = {outputs - BOX_ROWS - count for outputs, count in zip(layout.outputs, anchors, strict=False)}
    if len(anchors) != len(layout.outputs) or len(found) != 1 or not 1 <= min(found) <= MAX_CLASSES:
        raise UserError(f'{src}: prediction maps of {list(layout.outputs)} channels do not fit the {list(anchors)} '
                        'anchors a scale of the config: channels are 5 + anchors + classes, with one class count from '
                        f'1 to {MAX_CLASSES:,}')
    return found.pop()


def check_shapes(src: Path, assignments: Sequence[Assignment], network: Network, in_file: int, redraw: bool) -> None:
    """Hold every array's declared shape against the network's, before any is read.

    Args:
        src: The file, for messages.
        assignments: What fills what.
        network: The config's model.
        in_file: Classes of the file, 0 for a backbone.
        redraw: Whether class rows are replaced, so that prediction rows may differ in number.

    Raises:
        UserError: Other widths, another class count, other bridges; in this order, so that the cause is named.
    """
    misfits: list[tuple[Assignment, tuple[int, ...]]] = []
    for item in assignments:
        if item.key not in network.shapes:
            raise UserError(f'the model of the config has no tensor {item.key}; {OTHER_CONFIG}')
        shape, needed = torch_shape(item.source.shape), network.shapes[item.key]
        if redraw and item.key.rpartition('.')[0] in predict_prefixes('model'):
            shape = (needed[0], *shape[1:])
        if shape != needed:
            misfits.append((item, needed))
    for item, needed in misfits:
        if not item.key.startswith('bbox_head.'):
            raise UserError(f'{src}: the layer {item.layer.label} has the shape {item.source.shape} in Keras order, '
                            f'{item.key} needs {needed} in torch order; is this the right --config for the file?')
    if not redraw and in_file != network.num_classes:
        raise UserError(f'{src} was trained on {in_file} classes, the config has {network.num_classes}; to import it '
                        'for other classes give --classes NAMES_OR_COUNT, to keep its own '
                        f'--cfg-options model.bbox_head.num_classes={in_file}')
    if misfits:
        item, needed = misfits[0]
        raise UserError(f'{src}: the layer {item.layer.label} has the shape {item.source.shape} in Keras order, '
                        f'{item.key} needs {needed} in torch order; set model.bbox_head.bridge_channels to the '
                        'widths of the file')


def read_tensors(weights: WeightsFile, assignments: Sequence[Assignment]) -> dict[str, Tensor]:
    """Read every assigned array as a float32 tensor in torch's layout.

    Raises:
        UserError: An array is assigned twice, is not finite, or is a negative variance.
    """
    total = sum(4 * prod(item.source.shape) for item in assignments)
    if total > MAX_EXPANSION * weights.size:
        raise UserError(f'{weights.name}: {weights.size:,} bytes cannot hold the {total:,} bytes of weights declared')
    if len({item.source.path for item in assignments}) != len(assignments):
        raise UserError(f'{weights.name}: an array fills two tensors of the network')
    state: dict[str, Tensor] = {}
    for item in assignments:
        values = weights.read(item.source.path, item.source.shape)
        if not np.isfinite(values).all():
            raise UserError(f'{weights.name}: {quoted(item.source.path)} holds NaN or infinite values; the training '
                            'that wrote it diverged, take an earlier file')
        if item.key.endswith('.running_var') and values.min() < 0:
            raise UserError(f'{weights.name}: {quoted(item.source.path)} holds a negative variance '
                            f'({values.min():.3g}); the file is damaged')
        state[item.key] = to_torch(values)
    return state


def redraw_classes(state: dict[str, Tensor], anchors: Sequence[int], count: int) -> None:
    """Replace the class rows of the prediction convolutions, in place."""
    generator = torch.Generator().manual_seed(SEED)
    for prefix, anchor_count in zip(predict_prefixes('model'), anchors, strict=True):
        state[f'{prefix}.weight'], state[f'{prefix}.bias'] = replace_class_rows(
            state[f'{prefix}.weight'], state[f'{prefix}.bias'], BOX_ROWS + anchor_count, [None] * count, generator)


def cover(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """The whole state dict in the network's order; Keras counts no batches, so those counters are zero.

    Raises:
        UserError: A tensor of the network is not set, or has another shape.
    """
    whole: dict[str, Tensor] = {}
    for key, shape in network.shapes.items():
        tensor = state.get(key)
        if tensor is None and key.endswith(f'.{COUNTER}'):
            tensor = torch.zeros((), dtype=torch.long)
        if tensor is None or tuple(tensor.shape) != shape:
            raise UserError(f'nothing in the file fills {key} of the model with the shape {shape}; {OTHER_CONFIG}')
        whole[key] = tensor
    return whole


def make_report(weights: WeightsFile, layout: FileLayout, assignments: Sequence[Assignment],
                state: Mapping[str, Tensor], not_used: Mapping[str, str], in_file: int,
                target: TargetClasses | None) -> Report:
    """The account of an import, plain types only."""
    sources = {item.key: item for item in assignments}
    tensors = []
    for key, tensor in state.items():
        item = sources.get(key)
        tensors.append(dict(
            destination=key,
            source=item.source.path if item else None,
            layer=item.layer.name if item else None,
            dtype=item.source.dtype if item else None,
            shape=list(tensor.shape)))
    by_reason: dict[str, list[str]] = {}
    for path, reason in not_used.items():
        by_reason.setdefault(reason, []).append(path)
    return dict(
        source=dict(file=Path(weights.name).name, bytes=weights.size, sha256=weights.sha256,
                    container=weights.container),
        found=dict(layout=layout.layout, keras_version=layout.keras_version, part=layout.part,
                   order=BY_NAMES if layout.named else BY_ORDER,
                   layers=f'{len(layout.convs)} convolutions, {len(layout.norms)} batch normalisations, '
                          f'{len(layout.predictions)} prediction convolutions'),
        classes=describe_classes(in_file, target),
        tensors=tensors,
        not_used=by_reason,
        notes=make_notes(layout, target))


def describe_classes(in_file: int, target: TargetClasses | None) -> dict[str, Any] | None:
    """What became of the classes, None for a backbone."""
    if not in_file:
        return None
    if target is None:
        return dict(file=in_file, written=in_file, new=[], text=f'{in_file} in the file, all kept')
    return dict(
        file=in_file, written=target.count, new=list(target.names or range(target.count)),
        text=f'{in_file} in the file, {target.count} written: class rows drawn from N(0, {ROW_STD}) with zero bias '
             f'(seed {SEED}); rows of boxes, objectness and anchors and all other tensors kept')


def make_notes(layout: FileLayout, target: TargetClasses | None) -> list[str]:
    """What the user should know or do."""
    notes = []
    if not layout.named:
        notes.append('a file without layer names cannot show that two layers of equal shape were swapped; compare the '
                     "model's outputs with Keras on an image")
    if target is not None:
        notes.append(f'train it with model.bbox_head.num_classes={target.count} and '
                     f'model.bbox_head.bridge_channels={layout.bridge_channels}')
    return notes

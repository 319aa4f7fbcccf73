"""From a resolved file to the state dict of a config's model.

With :mod:`.network` this is the part of an import that needs torch and mmdet.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log, prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from mmengine.config import Config
from torch import Tensor

from mgdet_plugin import __version__
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import MAX_CLASSES
from mgdet_plugin.weights.checkpoint import COUNTER, refuse_unusable
from mgdet_plugin.weights.container.stored_array import MAX_EXPANSION, quoted
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.import_report import Report, import_report
from mgdet_plugin.weights.mapping.architecture import BOX_ROWS, Part, predict_prefixes, tensor_keys
from mgdet_plugin.weights.mapping.class_names import ClassRows
from mgdet_plugin.weights.mapping.classes import ROW_STD, SEED, TargetClasses, added_rows, class_rows, source_names
from mgdet_plugin.weights.mapping.layout import Assignment, FileLayout, assign, left_over
from mgdet_plugin.weights.mapping.network import (
    Network,
    anchors_per_scale,
    describe_network,
    to_torch,
    torch_shape,
)

OTHER_CONFIG = 'give a config of MultiGridDet with --config'
ADDED_SHARE = 1e-3
"""All added classes together have less than this share of any cell's class probability before they are trained."""


def convert(weights: WeightsFile, layout: FileLayout, part: Part, config: Config, target: TargetClasses | None = None,
            source_classes: str | Path | None = None,
            count: Callable[[int], object] = int,
            added: TargetClasses | None = None) -> tuple[dict[str, Tensor], Report]:
    """The state dict and the report of an import, nothing written.

    Args:
        weights: The opened file.
        layout: Its layers.
        part: What to import.
        config: Config of the model; its class count is set to that of ``target``.
        target: The classes to import for, None for the file's.
        source_classes: Names of the file's classes, as :func:`.classes.source_names` takes them.
        count: Called with the bytes of every array read.
        added: Classes to add after all of the file's, in place of a ``target``.

    Raises:
        UserError: The file holds another network or another part of it, does not fit the config or the classes (all
            this is decided before an array is read), or holds numbers that no network has.
    """
    whole = part == 'model'
    if whole and layout.part == 'backbone':
        raise UserError(f'{weights.name} is a backbone file ({len(layout.convs)} convolutions, no prediction '
                        'convolutions); import it with --part backbone')
    anchors = anchors_per_scale(config) if whole else ()
    in_file = file_classes(weights.name, layout.outputs, anchors) if whole else 0
    names = source_names(source_classes, in_file) if whole else None
    rows = added_rows(added, names, in_file) if added else class_rows(target, names, in_file) if whole else None
    redraw = target is not None or added is not None
    if rows is not None and redraw:
        config.merge_from_dict({'model.bbox_head.num_classes': len(rows.names),
                                'model.bbox_head.bridge_channels': layout.bridge_channels})
    network = describe_network(config, part)
    assignments = assign(layout, part)
    check_fit(weights.name, assignments, network, in_file, redraw)
    state = read_tensors(weights, assignments, count)
    generator = torch.Generator().manual_seed(SEED)
    for prefix, kept in zip(predict_prefixes(part), anchors, strict=True):
        weight, bias = tensor_keys(prefix).values()
        if added is not None:
            state[weight], state[bias] = append_class_rows(state[weight], state[bias], BOX_ROWS + kept, added.count)
        elif rows is not None and redraw:
            state[weight], state[bias] = replace_class_rows(
                state[weight], state[bias], BOX_ROWS + kept, rows.sources, generator)
    state = cover(state, network)
    report = import_report(weights, layout, assignments, state, left_over(weights, layout, assignments))
    if rows is not None:
        add_classes(report, rows, in_file, layout.bridge_channels if redraw else None, drawn=added is None)
        report['anchors'] = [[list(size) for size in scale] for scale in config.model.bbox_head.anchors]
    return state, report


def checkpoint_writer(state: Mapping[str, Tensor], report: Report) -> Callable[[BinaryIO], object]:
    """What writes the checkpoint of an import to an opened file."""
    meta: dict[str, Any] = dict(mgdet_version=__version__, keras_import=report)
    if report['classes']:
        meta['new_classes'] = report['classes']['new_classes']
        if report['classes']['names']:
            meta['dataset_meta'] = dict(classes=report['classes']['names'])
    return partial(torch.save, dict(meta=meta, state_dict=state))


def file_classes(name: str, outputs: Sequence[int], anchors: Sequence[int]) -> int:
    """Classes a model file was trained on, from the channels of its maps and the config's anchors of every scale."""
    found = {channels - BOX_ROWS - count for channels, count in zip(outputs, anchors, strict=False)}
    if len(anchors) != len(outputs) or len(found) != 1 or not 1 <= min(found) <= MAX_CLASSES:
        raise UserError(f'{name}: prediction maps of {list(outputs)} channels do not fit the {list(anchors)} '
                        'anchors a scale of the config: channels are 5 + anchors + classes, with one class count from '
                        f'1 to {MAX_CLASSES:,}')
    return found.pop()


def check_fit(name: str, assignments: Sequence[Assignment], network: Network, in_file: int, redraw: bool) -> None:
    """Hold every array's declared shape against the network's, before any is read.

    Refused are other widths, another class count, other bridges; in this order, so that the cause is named. Where class
    rows are redrawn, prediction rows may differ in number.
    """
    misfits: list[tuple[str, str]] = []
    for item in assignments:
        if item.key not in network.shapes:
            raise UserError(f'the model of the config has no tensor {item.key}; {OTHER_CONFIG}')
        shape, needed = torch_shape(item.source.shape), network.shapes[item.key]
        if redraw and item.key.rpartition('.')[0] in predict_prefixes('model'):
            shape = (needed[0], *shape[1:])
        if shape != needed:
            misfits.append((item.key, f'{name}: the layer {item.layer.label} has the shape {item.source.shape} in '
                                      f'Keras order, {item.key} needs {needed} in torch order'))
    other_width = next((line for key, line in misfits if not key.startswith('bbox_head.')), None)
    if other_width is not None:
        raise UserError(f'{other_width}; is this the right --config for the file?')
    if not redraw and in_file != network.num_classes:
        raise UserError(f'{name} was trained on {in_file} classes, the config has {network.num_classes}; to import it '
                        'for other classes give --classes NAMES_OR_COUNT, to keep its own '
                        f'--cfg-options model.bbox_head.num_classes={in_file}')
    if misfits:
        raise UserError(f'{misfits[0][1]}; set model.bbox_head.bridge_channels to the widths of the file')


def read_tensors(weights: WeightsFile, assignments: Sequence[Assignment],
                 count: Callable[[int], object]) -> dict[str, Tensor]:
    """Read every assigned array as a float32 tensor in torch's layout, refusing numbers no network has."""
    total = sum(4 * prod(item.source.shape) for item in assignments)
    if total > MAX_EXPANSION * weights.size:
        raise UserError(f'{weights.name}: {weights.size:,} bytes cannot hold the {total:,} bytes of weights declared')
    if len({item.source.path for item in assignments}) != len(assignments):
        raise UserError(f'{weights.name}: an array fills two tensors of the network')
    state: dict[str, Tensor] = {}
    for item in assignments:
        values = weights.read(item.source.path, item.source.shape)
        place = f'{weights.name}: {quoted(item.source.path)}'
        refuse_unusable(values, item.key, place, 'file')
        if item.key.endswith(('.bn.weight', '.running_var')) and not values.any():  # an address may point anywhere
            raise UserError(f'{place} holds zeros alone, which no training leaves there; the file is damaged')
        state[item.key] = to_torch(values)
        count(values.nbytes)
    return state


def replace_class_rows(weight: Tensor, bias: Tensor, kept: int, sources: Sequence[int | None],
                       generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give a prediction convolution rows for other classes.

    Shapes: D = 5 + A + C channels of a prediction map, K channels of its bridge.

    Args:
        weight: (D, K, 1, 1), rows of boxes, objectness and anchors first.
        bias: (D,).
        kept: How many first rows stay as they are, 5 + A.
        sources: For each new class, the old class whose row it takes, None for a row drawn from N(0, 0.01) with
            zero bias.
        generator: Where new rows are drawn from.

    Returns:
        weight (kept + len(sources), K, 1, 1) and bias (kept + len(sources),).
    """
    rows = torch.randn(len(sources), *weight.shape[1:], generator=generator) * ROW_STD
    shifts = torch.zeros(len(sources))
    known = [(new, old) for new, old in enumerate(sources) if old is not None]
    if known:
        new, old = (torch.tensor(indices) for indices in zip(*known, strict=True))
        rows[new], shifts[new] = weight[kept + old], bias[kept + old]
    return torch.cat((weight[:kept], rows)), torch.cat((bias[:kept], shifts))


def append_class_rows(weight: Tensor, bias: Tensor, kept: int, count: int) -> tuple[Tensor, Tensor]:
    """Give a prediction convolution rows for further classes that leave the probabilities of its own as they are.

    A new row is the mean of the C old class rows, its bias the mean of theirs less ``log(count / (C ADDED_SHARE))``. A
    mean of logits is at most their log-sum-exp less ``log C`` (Jensen), so in every cell of every picture the new
    classes together have a share below :data:`ADDED_SHARE` of the softmax, and every probability of an old class
    changes by less than that. New rows need no noise between them: their gradients differ as their labels do, and at a
    new object the gradient of its logit is all but -1 from the first step.

    Args:
        weight: (D, K, 1, 1), rows of boxes, objectness and anchors first, then the C classes.
        bias: (D,).
        kept: How many first rows are of no class, 5 + A.
        count: New classes.

    Returns:
        weight (D + count, K, 1, 1) and bias (D + count,).
    """
    rows = weight[kept:].mean(0, keepdim=True).expand(count, *weight.shape[1:])
    shift = bias[kept:].mean() - log(count / ((len(bias) - kept) * ADDED_SHARE))
    return torch.cat((weight, rows)), torch.cat((bias, shift.expand(count)))


def cover(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """The whole state dict in the network's order; Keras counts no batches, so those counters are zero."""
    whole: dict[str, Tensor] = {}
    for key, shape in network.shapes.items():
        tensor = state.get(key)
        if tensor is None and key.endswith(f'.{COUNTER}'):
            tensor = torch.zeros((), dtype=torch.long)
        if tensor is None or tuple(tensor.shape) != shape:
            raise UserError(f'nothing in the file fills {key} of the model with the shape {shape}; {OTHER_CONFIG}')
        whole[key] = tensor
    return whole


def add_classes(report: Report, rows: ClassRows, in_file: int, bridges: Sequence[int] | None,
                drawn: bool = True) -> None:
    """Put into the report what became of the classes.

    Args:
        report: The report.
        rows: Where their rows come from.
        in_file: Classes of the file.
        bridges: Channels of the file's bridges where class rows were replaced or added.
        drawn: Whether new rows were drawn, not appended by :func:`append_class_rows`.
    """
    written = len(rows.names)
    table = [f'{in_file} in the file, {written} written', *rows.table()]
    if bridges is not None:
        new = '' if rows.kept == written else (
            f'new rows are drawn from N(0, {ROW_STD}) with zero bias (seed {SEED}); ' if drawn else
            f'a new row is the mean of the old, its bias leaves new classes less than {ADDED_SHARE:g} of any cell; ')
        table.append(f'{new}rows of boxes, objectness and anchors and all other tensors are kept')
        report['notes'].append(f'train it with model.bbox_head.num_classes={written} and '
                               f'model.bbox_head.bridge_channels={tuple(bridges)}')
    report['notes'] += rows.notes
    names = [name for name in rows.names if name is not None]
    report['classes'] = dict(file=in_file, written=written, names=names or None, rows=rows.report(),
                             new_classes=rows.new_classes, table=table)

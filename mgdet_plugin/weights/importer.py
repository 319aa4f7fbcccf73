"""Import Keras weights: all of the network's tensors, each set exactly once, or nothing."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from mgdet_plugin import __version__
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import byte_progress, check_destination, write_together
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.container.safe_h5 import quoted
from mgdet_plugin.weights.container.stored_array import MAX_EXPANSION
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.mapping.anchors import Anchors, describe_anchor_change, parse_anchors
from mgdet_plugin.weights.mapping.class_names import ClassRows, all_rows
from mgdet_plugin.weights.mapping.classes import (
    ROW_STD,
    SEED,
    TargetClasses,
    class_rows,
    parse_classes,
    replace_class_rows,
    source_names,
)
from mgdet_plugin.weights.mapping.fit import BOX_ROWS, OTHER_CONFIG, check_shapes, file_classes
from mgdet_plugin.weights.mapping.layout import (
    Assignment,
    FileLayout,
    Part,
    assign,
    left_over,
    predict_prefixes,
    resolve,
)
from mgdet_plugin.weights.mapping.network import (
    Network,
    anchors_per_scale,
    describe_network,
    load_config,
    set_classes,
    to_torch,
)
from mgdet_plugin.weights.report import Report, make_report

COUNTER = 'num_batches_tracked'


def import_keras(src: str | Path, out: str | Path, *, config: str | Path | None = None, part: Part = 'model',
                 classes: str | int | Path | None = None, source_classes: str | Path | None = None,
                 anchors: str | Path | None = None, report: str | Path | None = None,
                 cfg_options: Mapping[str, Any] | None = None) -> Report:
    """Turn a Keras weights file into a checkpoint of the config's model.

    Args:
        src: Keras file: ``.h5``, ``.weights.h5`` or ``.keras``, of the model or of Darknet53; or Darknet's own
            ``darknet53.conv.74``.
        out: Checkpoint to write, ``dict(state_dict, meta)`` of plain types. Keys of a backbone begin with
            ``backbone.``: load them by ``init_cfg=dict(type='Pretrained', checkpoint=out, prefix='backbone.')``.
        config: Config of the model. Default: ``configs/mgdet_model5_stage1.py``.
        part: What to import, ``model`` or ``backbone``; a model file serves for both.
        classes: The classes to import for, see :func:`.classes.parse_classes`. Rows of classes the file knows by name
            are kept, the others are drawn anew. Default: keep all.
        source_classes: Names of the file's classes, the same way. Default: COCO's if there are 80 of them.
        anchors: Anchors the model will use in place of the config's, see :func:`.anchors.parse_anchors`; they change
            no tensor.
        report: Where to write the report as JSON. Default: only in the checkpoint's meta.
        cfg_options: Dotted keys of the config to set.

    Returns:
        The report: file, layout, classes, source, destination and statistics of every tensor, arrays not used,
        warnings, notes.

    Raises:
        UserError: Anything about the file, the config or the classes is not as it must be; nothing is written.
    """
    src, out = Path(src), Path(out)
    if part not in ('model', 'backbone'):
        raise UserError(f'part must be model or backbone, got {part!r}')
    for option, given in (('--classes', classes), ('--source-classes', source_classes), ('--anchors', anchors)):
        if given is not None and part == 'backbone':
            raise UserError(f'{option} is for --part model; a backbone has no classes and no anchors')
    report_path = None if report is None else Path(report)
    for path in (out,) if report_path is None else (out, report_path):
        check_destination(path, src)
    if report_path is not None and report_path.resolve() == out.resolve():
        raise UserError(f'--report {report_path} is OUT itself; give another path')
    target = None if classes is None else parse_classes(classes)
    with byte_progress(2 * src.stat().st_size if src.is_file() else 0, f'import {src.name}') as progress:
        state, result = convert(src, part, target, config, cfg_options, source_classes=source_classes,
                                anchors=anchors, count=progress.update)
        result['written'] = out.name
        write_together(make_writers(state, result, out, report_path), progress.update)
    return result


def make_writers(state: Mapping[str, Tensor], report: Report, out: Path,
                 report_path: Path | None) -> dict[Path, Callable[[BinaryIO], object]]:
    """What writes the files of an import, the checkpoint last."""
    meta: dict[str, Any] = dict(mgdet_version=__version__, keras_import=report)
    if report['classes'] and report['classes']['names']:
        meta['dataset_meta'] = dict(classes=report['classes']['names'])
    writers: dict[Path, Callable[[BinaryIO], object]] = {}
    if report_path is not None:
        text = json.dumps(report, indent=1).encode() + b'\n'
        writers[report_path] = lambda stream: stream.write(text)
    writers[out] = partial(torch.save, dict(meta=meta, state_dict=state))
    return writers


@dataclass(frozen=True)
class ImportPlan:
    """What an import will do, decided from the structure of the file and the config alone.

    Attributes:
        layout: The resolved file.
        network: The config's model, for the classes written.
        assignments: What fills what.
        in_file: Classes of the file, 0 for a backbone.
        rows: Where every class row comes from, None for a backbone.
        anchors: (width, height) in pixels of the model's anchors, coarse scale first; empty for a backbone.
    """

    layout: FileLayout
    network: Network
    assignments: list[Assignment]
    in_file: int
    rows: ClassRows | None
    anchors: Anchors


def convert(src: Path, part: Part, target: TargetClasses | None = None, config_path: str | Path | None = None,
            cfg_options: Mapping[str, Any] | None = None, *, source_classes: str | Path | None = None,
            anchors: str | Path | None = None,
            count: Callable[[int], object] = int) -> tuple[dict[str, Tensor], Report]:
    """The state dict and the report of an import, nothing written; ``count`` is called with the bytes read."""
    with open_weights(src) as weights:
        plan = make_plan(weights, part, target, load_config(config_path, cfg_options), source_classes)
        new_anchors = plan.anchors if anchors is None else parse_anchors(anchors)
        costs = [] if anchors is None else describe_anchor_change(plan.anchors, new_anchors)
        state = read_tensors(weights, plan.assignments, count)
        not_used = left_over(weights, plan.layout, plan.assignments)
    if plan.rows is not None and target is not None:
        replace_classes(state, [len(scale) for scale in plan.anchors], plan.rows)
    state = cover(state, plan.network)
    report = make_report(weights, plan.layout, plan.assignments, state, not_used)
    if plan.rows is not None:
        add_classes(report, plan.rows, plan.in_file, plan.layout.bridge_channels if target is not None else None)
        report['anchors'] = [[list(size) for size in scale] for scale in new_anchors]
    if anchors is not None:
        report['warnings'] += costs
        report['notes'].append(f'train it with model.bbox_head.anchors={report["anchors"]}')
    return state, report


def make_plan(weights: WeightsFile, part: Part, target: TargetClasses | None, config: Config,
              source_classes: str | Path | None) -> ImportPlan:
    """Decide everything about an import before an array is read.

    Raises:
        UserError: The file holds another network or another part of it, or does not fit the config or the classes.
    """
    layout = resolve(weights)
    if part == 'model' and layout.part == 'backbone':
        raise UserError(f'{weights.name} is a backbone file ({len(layout.convs)} convolutions, no prediction '
                        'convolutions); import it with --part backbone')
    per_scale = anchors_per_scale(config) if part == 'model' else ()
    in_file = file_classes(weights.name, layout, per_scale) if part == 'model' else 0
    rows = choose_rows(target, source_classes, in_file) if part == 'model' else None
    if target is not None:
        set_classes(config, target.count, layout.bridge_channels)
    network = describe_network(config, part)
    assignments = assign(layout, part)
    check_shapes(weights.name, assignments, network, in_file, redraw=target is not None)
    anchors = tuple(tuple(map(tuple, scale)) for scale in config.model.bbox_head.anchors) if part == 'model' else ()
    return ImportPlan(layout, network, assignments, in_file, rows, anchors)


def choose_rows(target: TargetClasses | None, source_classes: str | Path | None, in_file: int) -> ClassRows:
    """Where every class row that is written comes from."""
    names = source_names(source_classes, in_file)
    return all_rows(names, in_file) if target is None else class_rows(target, names)


def read_tensors(weights: WeightsFile, assignments: Sequence[Assignment],
                 count: Callable[[int], object]) -> dict[str, Tensor]:
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
        count(values.nbytes)
    return state


def replace_classes(state: dict[str, Tensor], anchors: Sequence[int], rows: ClassRows) -> None:
    """Give the prediction convolutions the class rows chosen, in place."""
    generator = torch.Generator().manual_seed(SEED)
    for prefix, anchor_count in zip(predict_prefixes('model'), anchors, strict=True):
        state[f'{prefix}.weight'], state[f'{prefix}.bias'] = replace_class_rows(
            state[f'{prefix}.weight'], state[f'{prefix}.bias'], BOX_ROWS + anchor_count, rows.sources, generator)


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


def add_classes(report: Report, rows: ClassRows, in_file: int, bridges: Sequence[int] | None) -> None:
    """Put into the report what became of the classes.

    Args:
        report: The report.
        rows: Where the class rows came from.
        in_file: Classes of the file.
        bridges: Bridge widths if class rows were replaced.
    """
    written = len(rows.names)
    table = [f'{in_file} in the file, {written} written', *rows.table()]
    if bridges is not None:
        new = f'new rows are drawn from N(0, {ROW_STD}) with zero bias (seed {SEED}); ' if rows.kept < written else ''
        table.append(f'{new}rows of boxes, objectness and anchors and all other tensors are kept')
        report['notes'].append(f'train it with model.bbox_head.num_classes={written} and '
                               f'model.bbox_head.bridge_channels={tuple(bridges)}')
    report['notes'] += rows.notes
    names = [name for name in rows.names if name is not None]
    report['classes'] = dict(file=in_file, written=written, names=names or None, rows=rows.report(), table=table)

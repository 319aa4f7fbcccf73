"""Import Keras weights: all of the network's tensors, each set exactly once, or nothing."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import byte_progress, check_destination, write_together
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.mapping.architecture import Part
from mgdet_plugin.weights.mapping.classes import parse_classes
from mgdet_plugin.weights.mapping.layout import resolve_layers
from mgdet_plugin.weights.report import Report


def import_keras(src: str | Path, out: str | Path, *, config: str | Path | None = None, part: Part = 'model',
                 classes: str | int | Path | None = None, source_classes: str | Path | None = None,
                 report: str | Path | None = None, cfg_options: Mapping[str, Any] | None = None) -> Report:
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
    for option, given in (('--classes', classes), ('--source-classes', source_classes)):
        if given is not None and part == 'backbone':
            raise UserError(f'{option} is for --part model; a backbone has no classes and no anchors')
    if config is not None and not Path(config).is_file():
        raise UserError(f'config {config} does not exist; give one with --config')
    report_path = None if report is None else Path(report)
    for path in (out,) if report_path is None else (out, report_path):
        check_destination(path, src)
    if report_path is not None and report_path.resolve() == out.resolve():
        raise UserError(f'--report {report_path} is OUT itself; give another path')
    with byte_progress(2 * src.stat().st_size if src.is_file() else 0, f'import {src.name}') as progress:
        with open_weights(src) as weights:
            layout = resolve_layers(weights)
            target = None if classes is None else parse_classes(classes)
            # It imports torch and mmdet, seconds that no refusal so far should take.
            from mgdet_plugin.weights import conversion
            network = conversion.load_config(config, cfg_options)
            state, result = conversion.convert(weights, layout, part, network, target, source_classes, progress.update)
        writers = {}
        result['written'] = out.name
        if report_path is not None:
            text = json.dumps(result, indent=1).encode() + b'\n'
            writers[report_path] = lambda stream: stream.write(text)
        writers[out] = conversion.checkpoint_writer(state, result)  # it appears last
        write_together(writers, progress.update)
    return result

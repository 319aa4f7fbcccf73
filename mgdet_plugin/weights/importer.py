"""Import Keras weights: all of the network's tensors, each set exactly once, or nothing."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import byte_progress, check_destination, write_together
from mgdet_plugin.weights.checkpoint import read_checkpoint
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.import_report import Report, as_json
from mgdet_plugin.weights.mapping.architecture import Part
from mgdet_plugin.weights.mapping.classes import ADD_CLASSES, parse_classes
from mgdet_plugin.weights.mapping.layout import resolve_layers

CHECKPOINTS = ('.pth', '.pt')


def import_keras(src: str | Path, out: str | Path, *, config: str | Path | None = None, part: Part = 'model',
                 classes: str | int | Path | None = None, source_classes: str | Path | None = None,
                 report: str | Path | None = None, cfg_options: Mapping[str, Any] | None = None,
                 add_classes: str | Path | None = None) -> Report:
    """Turn a Keras weights file into a checkpoint of the config's model.

    Args:
        src: Keras file: ``.h5``, ``.weights.h5`` or ``.keras``, of the model or of Darknet53; or Darknet's own
            ``darknet53.conv.74``. With ``classes`` or ``add_classes`` a checkpoint (``.pth``) of an import or a
            run, too.
        out: Checkpoint to write, ``dict(state_dict, meta)`` of plain types. Keys of a backbone begin with
            ``backbone.``: load them by ``init_cfg=dict(type='Pretrained', checkpoint=out, prefix='backbone.')``.
        config: Config of the model. Default: ``configs/mgdet_model5_stage1.py``.
        part: What to import, ``model`` or ``backbone``; a model file serves for both.
        classes: The classes to import for, see :func:`.classes.parse_classes`. Rows of classes the file knows by name
            are kept, the others are drawn anew. Default: keep all.
        source_classes: Names of the file's classes, the same way. Default: those a checkpoint stores; COCO's if there
            are 80 of them.
        report: Where to write the report as JSON. Default: only in the checkpoint's meta.
        cfg_options: Dotted keys of the config to set.
        add_classes: Classes to add after all of the file's, given like ``classes`` but by a number, in place of them.
            Their rows leave what the weights detect as it is, see :func:`.conversion.append_class_rows`.

    Returns:
        The report: file, layout, classes, source, destination and statistics of every tensor, arrays not used,
        warnings, notes.

    Raises:
        UserError: Anything about the file, the config or the classes is not as it must be; nothing is written.
    """
    src, out, report_path = Path(src), Path(out), None if report is None else Path(report)
    check_options(config, part, {'--classes': classes, '--source-classes': source_classes, ADD_CLASSES: add_classes})
    check_destinations(src, out, report_path)
    added = None if add_classes is None else parse_classes(add_classes, ADD_CLASSES)
    with byte_progress(2 * src.stat().st_size if src.is_file() else 0, f'import {src.name}') as progress:
        if src.suffix in CHECKPOINTS and src.is_file():
            if added is None and classes is None:
                raise UserError(f'{src} is a checkpoint, which needs no import; add classes to it with {ADD_CLASSES}, '
                                'choose others with --classes, or give a Keras file')
            target = None if classes is None else parse_classes(classes)
            checkpoint = read_checkpoint(src)
            from mgdet_plugin.weights.added_classes import with_other_classes
            from mgdet_plugin.weights.conversion import checkpoint_writer
            from mgdet_plugin.weights.mapping.network import load_config
            state, result = with_other_classes(checkpoint, load_config(config, cfg_options), target, added,
                                               source_classes)
        else:
            with open_weights(src) as weights:
                layout = resolve_layers(weights)
                target = None if classes is None else parse_classes(classes)
                # These import torch and mmdet, seconds that no refusal so far should take.
                from mgdet_plugin.weights.conversion import checkpoint_writer, convert
                from mgdet_plugin.weights.mapping.network import load_config
                state, result = convert(weights, layout, part, load_config(config, cfg_options), target, source_classes,
                                        progress.update, added)
        result['written'] = out.name
        writers = {} if report_path is None else {report_path: as_json(result)}
        writers[out] = checkpoint_writer(state, result)  # it appears last
        write_together(writers, progress.update)
    return result


def check_options(config: str | Path | None, part: Part, class_options: Mapping[str, object]) -> None:
    """Refuse options that do not go together, before any work."""
    if part not in ('model', 'backbone'):
        raise UserError(f'part must be model or backbone, got {part!r}')
    for option, given in class_options.items():
        if given is not None and part == 'backbone':
            raise UserError(f'{option} is for --part model; a backbone has no classes and no anchors')
    if class_options['--classes'] is not None and class_options[ADD_CLASSES] is not None:
        raise UserError(f'--classes names all classes to import for, {ADD_CLASSES} further ones beside those of the '
                        'file; give one of the two')
    if config is not None and not Path(config).is_file():
        raise UserError(f'config {config} does not exist; give one with --config')


def check_destinations(src: Path, out: Path, report: Path | None) -> None:
    """Refuse paths that cannot be written to, or that are one file."""
    for path in (out,) if report is None else (out, report):
        check_destination(path, src)
    if report is not None and report.resolve() == out.resolve():
        raise UserError(f'--report {report} is OUT itself; give another path')

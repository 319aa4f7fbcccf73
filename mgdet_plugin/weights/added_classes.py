"""Other classes for a checkpoint: weights that a run learnt, with rows for what they are to learn next."""
from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from mgdet_plugin.common.checkpoints import new_classes_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.weights.checkpoint import Checkpoint, refuse_unusable, to_keras
from mgdet_plugin.weights.conversion import add_classes, append_class_rows, cover, file_classes, replace_class_rows
from mgdet_plugin.weights.import_report import Report, find_warnings, tensor_entry
from mgdet_plugin.weights.mapping.architecture import BOX_ROWS, predict_prefixes, tensor_keys
from mgdet_plugin.weights.mapping.class_names import ClassRows
from mgdet_plugin.weights.mapping.classes import SEED, TargetClasses, added_rows, class_rows, source_names
from mgdet_plugin.weights.mapping.network import anchors_per_scale, describe_network

CONTAINER = 'checkpoint'


def with_other_classes(checkpoint: Checkpoint, config: Config, target: TargetClasses | None,
                       added: TargetClasses | None, source_classes: str | Path | None = None,
                       ) -> tuple[dict[str, Tensor], Report]:
    """The state dict and the report of a checkpoint for other classes than its own, nothing written.

    Args:
        checkpoint: Of the whole model.
        config: Config of its model; class count and bridge widths are set to the checkpoint's.
        target: The classes to write; rows are kept by name. None with ``added``.
        added: The classes to add after the checkpoint's, whose rows stay.
        source_classes: Names of the checkpoint's classes. Default: those stored in it, or COCO's if there are 80.

    Raises:
        UserError: The checkpoint is of a backbone, does not fit the config or the names, or holds numbers that no
            network has.
    """
    if checkpoint.part == 'backbone':
        raise UserError(f'{checkpoint.name} holds a backbone alone, which has no classes; give weights of a model')
    anchors = anchors_per_scale(config)
    in_file = file_classes(checkpoint.name, checkpoint.outputs, anchors)
    names = own_names(checkpoint, in_file, source_classes)
    rows = added_rows(added, names, in_file) if added else class_rows(target, names, in_file)
    config.merge_from_dict({'model.bbox_head.num_classes': len(rows.names),
                            'model.bbox_head.bridge_channels': checkpoint.bridge_channels})
    state = dict(checkpoint.state)
    for key, tensor in state.items():
        refuse_unusable(to_keras(tensor), key, f'{checkpoint.name}: {key}', CONTAINER)
    generator = torch.Generator().manual_seed(SEED)
    for prefix, kept in zip(predict_prefixes('model'), anchors, strict=True):
        weight, bias = tensor_keys(prefix).values()
        first = BOX_ROWS + kept
        state[weight], state[bias] = (
            append_class_rows(state[weight], state[bias], first, added.count) if added else
            replace_class_rows(state[weight], state[bias], first, rows.sources, generator))
    state = cover(state, describe_network(config, 'model'))
    report: Report = dict(
        source=dict(file=Path(checkpoint.name).name, bytes=checkpoint.size, sha256=checkpoint.sha256,
                    container=CONTAINER),
        found=dict(layout='checkpoint of this package', keras_version=None, part='model',
                   order='by the names of its tensors', layers=f'{len(predict_prefixes("model"))} prediction maps of '
                   f'{list(checkpoint.outputs)} channels'),
        classes=None,
        tensors=[tensor_entry(key, tensor, key, None, str(tensor.dtype).removeprefix('torch.'))
                 for key, tensor in state.items()],
        not_used={},
        warnings=find_warnings(state),
        notes=list(checkpoint.notes))
    add_classes(report, rows, in_file, checkpoint.bridge_channels, drawn=added is None)
    report['classes']['new_classes'] = _not_learnt(checkpoint, rows, names)
    imported = checkpoint.meta.get('keras_import')
    if isinstance(imported, dict) and imported.get('anchors'):
        report['anchors'] = imported['anchors']  # those it was imported for; the config's are not known to be them
    return state, report


def _not_learnt(checkpoint: Checkpoint, rows: ClassRows, names: tuple[str, ...] | None) -> list[str | int]:
    """Written classes the weights have not learnt: those that were new in the checkpoint, and those new now."""
    before = new_classes_of(dict(meta=checkpoint.meta), checkpoint.name)
    new = {row if isinstance(row, int) else (names or ()).index(row) for row in before
           if isinstance(row, int) or row in (names or ())}
    inherited = [place if name is None else name
                 for place, (name, row) in enumerate(zip(rows.names, rows.sources, strict=True)) if row in new]
    return [*inherited, *rows.new_classes]


def own_names(checkpoint: Checkpoint, in_file: int, given: str | Path | None) -> tuple[str, ...] | None:
    """Names of a checkpoint's classes: those given, those stored in it, or COCO's for 80 of them.

    Raises:
        UserError: They are not names, or not as many as it has classes.
    """
    if given is not None or not checkpoint.class_names:
        return source_names(given, in_file)
    names = checked_names(checkpoint.class_names, f'{checkpoint.name}: meta.dataset_meta.classes')
    if len(names) != in_file:
        raise UserError(f'{checkpoint.name} names {len(names):,} classes, its prediction maps have {in_file:,} with '
                        "the config's anchors; give the config it was trained with by --config, or --source-classes")
    return names

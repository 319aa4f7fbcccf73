"""Further classes for a checkpoint: weights that a run learnt, with rows for what they are to learn next."""
from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from torch import Tensor

from mgdet_plugin.common.checkpoints import new_classes_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.weights.checkpoint import Checkpoint, refuse_unusable, to_keras
from mgdet_plugin.weights.conversion import add_classes, append_class_rows, cover, file_classes
from mgdet_plugin.weights.import_report import Report, find_warnings, tensor_entry
from mgdet_plugin.weights.mapping.architecture import BOX_ROWS, predict_prefixes, tensor_keys
from mgdet_plugin.weights.mapping.classes import TargetClasses, added_rows, source_names
from mgdet_plugin.weights.mapping.network import anchors_per_scale, describe_network

CONTAINER = 'checkpoint'


def with_added_classes(checkpoint: Checkpoint, config: Config, added: TargetClasses,
                       source_classes: str | Path | None = None) -> tuple[dict[str, Tensor], Report]:
    """The state dict and the report of a checkpoint with classes added after its own, nothing written.

    Args:
        checkpoint: Of the whole model.
        config: Config of its model; class count and bridge widths are set to the checkpoint's.
        added: The classes to add.
        source_classes: Names of the checkpoint's classes. Default: those stored in it, or COCO's if there are 80.

    Raises:
        UserError: The checkpoint is of a backbone, does not fit the config or the names, or holds numbers that no
            network has.
    """
    if checkpoint.part == 'backbone':
        raise UserError(f'{checkpoint.name} holds a backbone alone, which has no classes; give weights of a model')
    anchors = anchors_per_scale(config)
    in_file = file_classes(checkpoint.name, checkpoint.outputs, anchors)
    rows = added_rows(added, own_names(checkpoint, in_file, source_classes), in_file)
    config.merge_from_dict({'model.bbox_head.num_classes': len(rows.names),
                            'model.bbox_head.bridge_channels': checkpoint.bridge_channels})
    state = dict(checkpoint.state)
    for key, tensor in state.items():
        refuse_unusable(to_keras(tensor), key, f'{checkpoint.name}: {key}', CONTAINER)
    for prefix, kept in zip(predict_prefixes('model'), anchors, strict=True):
        weight, bias = tensor_keys(prefix).values()
        state[weight], state[bias] = append_class_rows(state[weight], state[bias], BOX_ROWS + kept, added.count)
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
    add_classes(report, rows, in_file, checkpoint.bridge_channels, drawn=False)
    report['classes']['new_classes'] = [*new_classes_of(dict(meta=checkpoint.meta), checkpoint.name),
                                        *rows.new_classes]
    imported = checkpoint.meta.get('keras_import')
    if isinstance(imported, dict) and imported.get('anchors'):
        report['anchors'] = imported['anchors']  # those it was imported for; the config's are not known to be them
    return state, report


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

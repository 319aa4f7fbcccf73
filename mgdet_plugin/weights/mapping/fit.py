"""Whether a file's layers fit the model of a config, from declared shapes alone, before any array is read."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.mapping.classes import MAX_CLASSES
from mgdet_plugin.weights.mapping.layout import Assignment, FileLayout, predict_prefixes
from mgdet_plugin.weights.mapping.network import Network, torch_shape

BOX_ROWS = 5  # tx, ty, tw, th, objectness
OTHER_CONFIG = 'give a config of MultiGridDet with --config'


def file_classes(name: str, layout: FileLayout, anchors: Sequence[int]) -> int:
    """Classes a model file was trained on, from the channels of its prediction maps and the config's anchors.

    Args:
        name: The file, for messages.
        layout: The resolved file.
        anchors: A of every scale, coarse first.

    Raises:
        UserError: The channels give no class count, or another one for each scale.
    """
    found = {outputs - BOX_ROWS - count for outputs, count in zip(layout.outputs, anchors, strict=False)}
    if len(anchors) != len(layout.outputs) or len(found) != 1 or not 1 <= min(found) <= MAX_CLASSES:
        raise UserError(f'{name}: prediction maps of {list(layout.outputs)} channels do not fit the {list(anchors)} '
                        'anchors a scale of the config: channels are 5 + anchors + classes, with one class count from '
                        f'1 to {MAX_CLASSES:,}')
    return found.pop()


def check_shapes(name: str, assignments: Sequence[Assignment], network: Network, in_file: int, redraw: bool) -> None:
    """Hold every array's declared shape against the network's, before any is read.

    Args:
        name: The file, for messages.
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
            raise UserError(f'{name}: the layer {item.layer.label} has the shape {item.source.shape} in Keras order, '
                            f'{item.key} needs {needed} in torch order; is this the right --config for the file?')
    if not redraw and in_file != network.num_classes:
        raise UserError(f'{name} was trained on {in_file} classes, the config has {network.num_classes}; to import it '
                        'for other classes give --classes NAMES_OR_COUNT, to keep its own '
                        f'--cfg-options model.bbox_head.num_classes={in_file}')
    if misfits:
        item, needed = misfits[0]
        raise UserError(f'{name}: the layer {item.layer.label} has the shape {item.source.shape} in Keras order, '
                        f'{item.key} needs {needed} in torch order; set model.bbox_head.bridge_channels to the '
                        'widths of the file')

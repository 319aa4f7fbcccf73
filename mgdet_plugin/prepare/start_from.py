"""What a run starts from: which network a weights file holds, and the file made fit for the classes of a set."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS
from mgdet_plugin.prepare.choices import Network
from mgdet_plugin.weights.checkpoint import kernel_key, read_checkpoint
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.importer import CHECKPOINTS, import_keras
from mgdet_plugin.weights.mapping.architecture import Part, block_prefixes
from mgdet_plugin.weights.mapping.layout import resolve_layers

WIDTHS: dict[int, Network] = {32: 'model5', 8: 'nano'}
"""Channels of the first convolution -> the network of our configs."""
ANCHORS = 3  # a scale
NECK, NECK_WIDTH = 'neck.blocks.0.conv1', 8  # the neck's first convolution has eight times as many


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        path: the file.
        part: of the network.
        network: which of ours.
        bridges: channels of every bridge, coarse scale first; none of a backbone.
        classes: names of its classes where it stores them.
        outputs: channels of every prediction map; none of a backbone.
    """

    path: Path
    part: Part
    network: Network
    bridges: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    outputs: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes it has with three anchors a scale, as all of ours; 0 of a backbone."""
        return self.outputs[0] - 5 - ANCHORS if self.outputs else 0

    @property
    def is_checkpoint(self) -> bool:
        """Whether it can be loaded as it is."""
        return self.path.suffix in CHECKPOINTS


def look_into(path: Path) -> Weights:
    """Tell what a weights file holds, by its structure.

    Raises:
        UserError: it is missing or no weights file of MultiGridDet, or its width is that of none of our configs.
    """
    if path.suffix in CHECKPOINTS:
        checkpoint = read_checkpoint(path)
        width = checkpoint.state[kernel_key(block_prefixes(checkpoint.part)[0])].shape[0]
        neck = checkpoint.state[kernel_key(NECK)].shape[0] if checkpoint.part == 'model' else None
        part, bridges, names = checkpoint.part, checkpoint.bridge_channels, tuple(checkpoint.class_names)
        outputs = checkpoint.outputs
    else:
        with open_weights(path) as weights:
            layout = resolve_layers(weights)
            width = layout.convs[0].arrays['kernel'].shape[3]
            part, bridges, names = layout.part, layout.bridge_channels, ()
            outputs = layout.outputs
            neck = (layout.convs[block_prefixes(part).index(NECK)].arrays['kernel'].shape[3] if part == 'model'
                    else None)
    if width not in WIDTHS:
        raise UserError(f'{path} is of a network whose first convolution has {width} channels; ours have '
                        f'{" or ".join(map(str, WIDTHS))} (the full and the small one). Import it with a config of its '
                        'own by import_keras --config')
    if neck not in (None, NECK_WIDTH * width):
        raise UserError(f'{path} is of a model with another neck ({neck} channels, imported weights have '
                        f'{NECK_WIDTH * width}), as models trained from nothing have: inherit the config that trained '
                        'it, and set load_from and the data')
    return Weights(path, part, WIDTHS[width], bridges, names, outputs)


def import_config(network: Network) -> Path:
    """The config whose model weights are imported for."""
    return CONFIGS / f'mgdet_{network}_stage1.py'


def made_fit(weights: Weights, classes: Sequence[str], folder: Path,
             source_classes: str | None) -> tuple[Path | None, list[str]]:
    """Write a checkpoint for a set's classes into a folder, rows matched by name.

    Args:
        weights: The file.
        classes: Of the set.
        folder: Where to write, as ``<name>.pth``.
        source_classes: Names of the file's classes, as ``import_keras --source-classes`` takes them.

    Returns:
        The file written, None where the given one can be loaded as it is; and what was done, one line each.

    Raises:
        UserError: It does not fit, or holds numbers that no network has.
    """
    name = weights.path.name
    if weights.is_checkpoint and (weights.part == 'backbone' or weights.classes == tuple(classes)):
        same = '' if weights.part == 'backbone' else ', its classes are those of the set'
        return None, [f'{name}: {_words(weights)}; taken as it is{same}']
    out = folder / f'{name.partition(".")[0]}.pth'
    whole = weights.part == 'model'
    names = folder / 'classes.json'
    names.write_text(json.dumps(dict(categories=[dict(name=each) for each in classes])))
    try:
        report = import_keras(weights.path, out, config=import_config(weights.network), part=weights.part,
                              classes=names if whole else None, source_classes=source_classes if whole else None)
    finally:
        names.unlink()
    lines = [f'{name}: {_words(weights)}; imported, {len(report["tensors"]):,} tensors set']
    lines += report['classes']['table'] if whole else []
    return out, lines + [line for line in report['notes'] if not line.startswith('train it with')] + report['warnings']


def _words(weights: Weights) -> str:
    size = dict(model5='the full network', nano='the small network')[weights.network]
    return size if weights.part == 'model' else f'the backbone of {size}'

"""Which layer of a Keras file is which module of the network.

Keras numbers layers as they are created and stores them in ``model.layers`` (topological) order. The network's side is
the order of creation: the backbone, then for every scale three block convolutions, the bridge and, but for the last
scale, the convolution before upsampling. The topological order differs from it in one thing: all bridges come last.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mgdet_plugin.errors import UserError
from mgdet_plugin.keras_io.archive import WeightsFile
from mgdet_plugin.keras_io.keras_layers import NORM_WEIGHTS, KerasLayer, LayerKind, counted, stored_layers
from mgdet_plugin.keras_io.safe_h5 import StoredArray, quoted

Part = Literal['model', 'backbone']

RESIDUAL_BLOCKS = (1, 2, 8, 8, 4)  # of Darknet53, per stage
SCALES = 3
TORCH_NORM_NAMES = dict(zip(NORM_WEIGHTS, ('weight', 'bias', 'running_mean', 'running_var'), strict=True))
CLASSIFIER = 'classifier on top'
OTHER_PART = 'neck and head, not part of the backbone'
SAVE_AGAIN = 'names and order must agree; save the file again from Keras'


def backbone_prefixes() -> list[str]:
    """The 52 backbone blocks (convolution and normalisation) in order of creation."""
    prefixes = ['backbone.conv1']
    for stage, repeats in enumerate(RESIDUAL_BLOCKS, 1):
        prefixes.append(f'backbone.conv_res_block{stage}.conv')
        for index in range(repeats):
            prefixes += [f'backbone.conv_res_block{stage}.res{index}.conv{half}' for half in (1, 2)]
    return prefixes


def block_prefixes(part: Part) -> list[str]:
    """All convolution-normalisation blocks in order of creation: 66 of the model, 52 of the backbone."""
    prefixes = backbone_prefixes()
    if part == 'model':
        for scale in range(SCALES):
            prefixes += [f'neck.blocks.{scale}.conv{index}' for index in (1, 2, 3)]
            prefixes.append(f'bbox_head.bridges.{scale}')
            if scale < SCALES - 1:
                prefixes.append(f'neck.up_convs.{scale}')
    return prefixes


def predict_prefixes(part: Part) -> list[str]:
    """The prediction convolutions, coarse scale first; none in the backbone."""
    return [f'bbox_head.predict_convs.{scale}' for scale in range(SCALES)] if part == 'model' else []


def topological_order(part: Part) -> list[int]:
    """For each place in ``model.layers`` order, the index in order of creation."""
    prefixes = block_prefixes(part)
    return sorted(range(len(prefixes)), key=lambda index: prefixes[index].startswith('bbox_head'))


@dataclass(frozen=True)
class FileLayout:
    """A file's layers, resolved.

    Attributes:
        part: ``model`` or ``backbone``, what the file holds.
        layout: The layout found, in words.
        keras_version: As stored, None where it is not.
        named: Whether names confirmed the stored order; without names the order alone decides.
        convs: Convolutions without bias in order of creation.
        norms: Batch normalisations in order of creation.
        predictions: Prediction convolutions, coarse scale first.
        extras: Arrays not used, path -> what they are.
    """

    part: Part
    layout: str
    keras_version: str | None
    named: bool
    convs: list[KerasLayer] = field(repr=False)
    norms: list[KerasLayer] = field(repr=False)
    predictions: list[KerasLayer] = field(repr=False)
    extras: dict[str, str] = field(repr=False)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels of every prediction map, 5 + A + C, coarse scale first."""
        return tuple(layer.arrays['kernel'].shape[3] for layer in self.predictions)

    @property
    def bridge_channels(self) -> tuple[int, ...]:
        """Output channels of the bridges, coarse scale first."""
        blocks = zip(block_prefixes(self.part), self.convs, strict=True)
        return tuple(layer.arrays['kernel'].shape[3] for prefix, layer in blocks if 'bridges' in prefix)


@dataclass(frozen=True)
class Assignment:
    """One tensor of the network and the array that fills it.

    Attributes:
        key: Key of the state dict.
        source: The array of the file, (kh, kw, in, out) for a kernel and (channels,) for all else.
        layer: The Keras layer it belongs to.
    """

    key: str
    source: StoredArray
    layer: KerasLayer


def resolve(weights: WeightsFile) -> FileLayout:
    """Find the network's layers in a file, by stored order and names together.

    Args:
        weights: The opened file; only its structure is looked at.

    Raises:
        UserError: The file holds another network, names and stored order disagree, or an array is of unknown use.
    """
    stored = stored_layers(weights)
    by_kind: dict[LayerKind, list[KerasLayer]] = {'conv': [], 'norm': [], 'biased conv': [], 'dense': [], 'other': []}
    for layer in stored.layers:
        by_kind[layer.kind].append(layer)
    part = tell_part(weights.name, by_kind)
    order = topological_order(part)
    predictions = by_kind['biased conv'][:len(predict_prefixes(part))]
    used = [*by_kind['conv'], *by_kind['norm'], *predictions]
    named = {layer.name is not None for layer in used}
    if len(named) > 1:
        raise UserError(f'{weights.name}: some layers have names and some have none; {SAVE_AGAIN}')
    convs = in_creation_order(weights.name, by_kind['conv'], order)
    norms = in_creation_order(weights.name, by_kind['norm'], order)
    predictions = in_creation_order(weights.name, predictions, range(len(predictions)))
    for conv, norm in zip(convs, norms, strict=True):
        if conv.arrays['kernel'].shape[3] != norm.arrays['gamma'].shape[0]:
            raise UserError(f'{weights.name}: {conv.label} has {conv.arrays["kernel"].shape[3]} channels and its '
                            f'normalisation {norm.label} {norm.arrays["gamma"].shape[0]}; {SAVE_AGAIN}')
    classifier = [layer for layer in by_kind['dense'] + by_kind['biased conv'] if part == 'backbone']
    extras = known_extras(weights, used, classifier)
    return FileLayout(part, stored.layout, stored.keras_version, named == {True}, convs, norms, predictions, extras)


def tell_part(file_name: str, by_kind: Mapping[LayerKind, Sequence[KerasLayer]]) -> Part:
    """Tell model and backbone files apart by how many layers of each kind they hold."""
    convs, norms, biased = (len(by_kind[kind]) for kind in ('conv', 'norm', 'biased conv'))
    for part in ('model', 'backbone'):
        blocks = len(block_prefixes(part))
        if convs == norms == blocks and (biased == SCALES if part == 'model' else biased <= 1):
            return part
    raise UserError(f'{file_name}: not a MultiGridDet or Darknet53 file: it has {convs} convolutions without bias, '
                    f'{norms} batch normalisations and {biased} convolutions with bias; the model has 66, 66 and 3, '
                    'the backbone 52, 52 and at most one in a classifier')


def in_creation_order(file_name: str, layers: Sequence[KerasLayer], order: Sequence[int]) -> list[KerasLayer]:
    """Bring layers from stored order into order of creation, and hold their names against it.

    Args:
        file_name: What to call the file in messages.
        layers: Layers of one kind in stored order.
        order: For each of them, its index in order of creation.

    Raises:
        UserError: The layers have numbered names whose order is another one, or names without a common base.
    """
    by_order = [layer for _, layer in sorted(zip(order, layers, strict=True), key=lambda pair: pair[0])]
    names = [counted(layer.name) for layer in by_order if layer.name is not None]
    if not names:
        return by_order
    odd = next((layer for layer, (base, _) in zip(by_order, names, strict=True) if base != names[0][0]), None)
    if odd is not None:
        raise UserError(f'{file_name}: {by_order[0].label} and {odd.label} do not count as layers of one kind; '
                        f'{SAVE_AGAIN}')
    by_name = [layer for _, layer in sorted(zip(names, by_order, strict=True), key=lambda pair: pair[0])]
    wrong = [(one, other) for one, other in zip(by_order, by_name, strict=True) if one is not other]
    if wrong:
        pairs = ', '.join(f'{one.label} where {other.label} belongs' for one, other in wrong[:3])
        raise UserError(f'{file_name}: layer names and stored order disagree about {len(wrong)} layers ({pairs}); '
                        f'{SAVE_AGAIN}')
    if len(set(names)) < len(names):
        raise UserError(f'{file_name}: two layers have the same number; {SAVE_AGAIN}')
    return by_order


def known_extras(weights: WeightsFile, used: Sequence[KerasLayer], classifier: Sequence[KerasLayer]) -> dict[str, str]:
    """Account for every array that no layer of the network uses.

    Returns:
        Path -> what it is.

    Raises:
        UserError: An array is neither used nor of a known kind.
    """
    used_paths = {array.path for layer in used for array in layer.arrays.values()}
    on_top = {array.path for layer in classifier for array in layer.arrays.values()}
    extras: dict[str, str] = {}
    unknown = []
    for path in weights.arrays:
        if path in used_paths:
            continue
        if path in on_top:
            extras[path] = CLASSIFIER
        elif path.startswith(('/optimizer/', '/optimizer_weights/')):
            extras[path] = 'optimizer state'
        elif '/seed_generator/vars/' in path:
            extras[path] = 'random generator state'
        else:
            unknown.append(quoted(path))
    if unknown:
        raise UserError(f'{weights.name}: {len(unknown)} arrays belong to no layer of the network '
                        f'({", ".join(unknown[:3])}); save the detector alone from Keras')
    return extras


def assign(layout: FileLayout, part: Part) -> list[Assignment]:
    """Pair the network's tensors with arrays of the file, in order of creation.

    Args:
        layout: The resolved file.
        part: What to import; the backbone comes out of a model file too.
    """
    blocks, predictions = block_prefixes(part), predict_prefixes(part)
    pairs: list[Assignment] = []
    for prefix, conv, norm in zip(blocks, layout.convs, layout.norms, strict=False):  # a model file has more blocks
        pairs.append(Assignment(f'{prefix}.conv.weight', conv.arrays['kernel'], conv))
        pairs += [Assignment(f'{prefix}.bn.{name}', norm.arrays[weight], norm)
                  for weight, name in TORCH_NORM_NAMES.items()]
    for prefix, layer in zip(predictions, layout.predictions, strict=False):
        pairs.append(Assignment(f'{prefix}.weight', layer.arrays['kernel'], layer))
        pairs.append(Assignment(f'{prefix}.bias', layer.arrays['bias'], layer))
    return pairs


def left_over(weights: WeightsFile, layout: FileLayout, assignments: Sequence[Assignment]) -> dict[str, str]:
    """Every array of the file that the import does not use, path -> what it is."""
    used = {assignment.source.path for assignment in assignments}
    return {path: layout.extras.get(path, OTHER_PART) for path in weights.arrays if path not in used}

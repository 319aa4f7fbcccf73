"""Which layer of a Keras file is which module of the network: by stored order, names and shapes together."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.darknet_file import DarknetFile
from mgdet_plugin.weights.container.stored_array import StoredArray, quoted
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.mapping.architecture import (
    NORM_TENSORS,
    SCALES,
    Part,
    block_prefixes,
    predict_prefixes,
    shape_conflicts,
    tensor_keys,
    topological_order,
)
from mgdet_plugin.weights.mapping.keras_layers import (
    KerasLayer,
    LayerKind,
    check_numbers,
    counted,
    is_state,
    state_kind,
    stored_layers,
)

SAVE_AGAIN = 'names, order and shapes must agree; save the file again from Keras'
PARTS: tuple[Part, ...] = ('model', 'backbone')
CLASSIFIER = 'classifier on top'
OTHER_PART = 'neck and head, not part of the backbone'
SIDE_STATE = 'state of a loss, a metric or a counter'
OUTSIDE_LAYERS = re.compile(r'(/model_weights)?/top_level_model_weights/.+|/vars/\d+')
SHARD = re.compile(r'.*_\d{5}\.weights\.h5', re.DOTALL)


@dataclass(frozen=True)
class FileLayout:
    """A file's layers, resolved."""

    part: Part  # what the file holds
    layout: str  # the layout found, in words
    keras_version: str | None  # as stored, None where it is not
    named: bool  # whether names confirmed the stored order; without names the order alone decides
    convs: list[KerasLayer] = field(repr=False)  # without bias, in order of creation
    norms: list[KerasLayer] = field(repr=False)  # in order of creation
    predictions: list[KerasLayer] = field(repr=False)  # coarse scale first
    extras: dict[str, str] = field(repr=False)  # arrays not used, path -> what they are

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
    """One tensor of the network and the array that fills it."""

    key: str  # of the state dict
    source: StoredArray  # (kh, kw, in, out) for a kernel and (channels,) for all else
    layer: KerasLayer  # which it belongs to


def resolve_layers(weights: WeightsFile) -> FileLayout:
    """Find the network's layers in an opened file, of which only the structure is looked at.

    Raises:
        UserError: The file holds another network; names, stored order and shapes disagree; an array is of unknown use.
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
    if named == {False} and not isinstance(weights, DarknetFile):
        for kinds in (('conv', 'biased conv'), ('norm',)):
            check_numbers(weights.name, [layer for layer in stored.layers if layer.kind in kinds])
    convs = in_creation_order(weights.name, by_kind['conv'], order)
    norms = in_creation_order(weights.name, by_kind['norm'], order)
    predictions = in_creation_order(weights.name, predictions, range(len(predictions)))
    classifier = [layer for layer in by_kind['dense'] + by_kind['biased conv'] if part == 'backbone']
    check_layer_shapes(weights.name, part, convs, norms, predictions)
    check_classifier(weights.name, convs[-1], classifier)
    if stored.in_model_order:
        check_nothing_between(weights.name, stored.layers, used)
    extras = known_extras(weights, used, classifier, by_kind['other'])
    return FileLayout(part, stored.layout, stored.keras_version, named == {True}, convs, norms, predictions, extras)


def tell_part(file_name: str, by_kind: Mapping[LayerKind, Sequence[KerasLayer]]) -> Part:
    """Tell model and backbone files apart by how many layers of each kind they hold."""
    convs, norms, biased = (len(by_kind[kind]) for kind in ('conv', 'norm', 'biased conv'))
    for part in PARTS:
        blocks = len(block_prefixes(part))
        if convs == norms == blocks and (biased == SCALES if part == 'model' else biased <= 1):
            return part
    shard = '; by its name it is one part of a sharded save: save it again in one file, without max_shard_size'
    raise UserError(f'{file_name}: not a MultiGridDet or Darknet53 file: it has {convs} convolutions without bias, '
                    f'{norms} batch normalisations and {biased} convolutions with bias; the model has 66, 66 and 3, '
                    'the backbone 52, 52 and at most one in a classifier' + shard * bool(SHARD.fullmatch(file_name)))


def in_creation_order(file_name: str, layers: Sequence[KerasLayer], order: Sequence[int]) -> list[KerasLayer]:
    """Bring layers of one kind from stored order into order of creation, and hold their names against it.

    Layers listed in runs (of a nested model, the frozen ones after the trainable ones) must keep the order in each run.
    ``order`` gives for each place of the model's order its index in order of creation.
    """
    by_order = [layer for _, layer in sorted(zip(order, layers, strict=True), key=lambda pair: pair[0])]
    names = [counted(layer.name) for layer in by_order if layer.name is not None]
    if not names:
        return by_order
    odd = next((layer for layer, (base, _) in zip(by_order, names, strict=True) if base != names[0][0]), None)
    if odd is not None:
        raise UserError(f'{file_name}: {by_order[0].label} and {odd.label} do not count as layers of one kind; '
                        f'{SAVE_AGAIN}')
    if len(set(names)) < len(names):
        raise UserError(f'{file_name}: two layers have the same number; {SAVE_AGAIN}')
    by_name = [layer for _, layer in sorted(zip(names, by_order, strict=True), key=lambda pair: pair[0])]
    wrong = [f'{one.label} where {other.label} belongs' for one, other in zip(by_order, by_name, strict=True)
             if one is not other]
    if wrong and all(layer.kind == 'conv' and layer.in_runs for layer in layers):
        wrong = run_breaks([by_name[index] for index in order], layers)
        if len(wrong) == 1:
            return by_name
    if wrong:
        raise UserError(f'{file_name}: layer names and stored order disagree about {len(wrong)} layers '
                        f'({", ".join(wrong[:4])}); {SAVE_AGAIN}')
    return by_order


def run_breaks(expected: Sequence[KerasLayer], stored: Sequence[KerasLayer]) -> list[str]:
    """Where stored layers leave the expected order; once if they are two runs of it, one after the other."""
    place = {id(layer): index for index, layer in enumerate(expected)}
    return [f'{earlier.label} before {later.label}' for earlier, later in pairwise(stored)
            if place[id(later)] < place[id(earlier)]]


def check_layer_shapes(file_name: str, part: Part, convs: Sequence[KerasLayer], norms: Sequence[KerasLayer],
                       predictions: Sequence[KerasLayer]) -> None:
    """Refuse layers, in order of creation, whose shapes do not fit one another, naming those which disagree."""
    conflicts = []
    for conv, norm in zip(convs, norms, strict=True):
        channels = conv.arrays['kernel'].shape[3]
        lengths = [norm.arrays[weight].shape[0] for weight in NORM_TENSORS]
        if set(lengths) != {channels}:
            conflicts.append(f'{conv.label} gives {channels} channels, its normalisation {norm.label} has '
                             f'{lengths[0] if len(set(lengths)) == 1 else lengths}')
    layers = [*convs, *predictions]
    conflicts += shape_conflicts(part, [layer.arrays['kernel'].shape for layer in layers],
                                 [layer.label for layer in layers])
    conflicts += [f'{layer.label} gives {layer.arrays["kernel"].shape[3]} channels and has '
                  f'{layer.arrays["bias"].shape[0]} biases' for layer in predictions
                  if layer.arrays['kernel'].shape[3:] != layer.arrays['bias'].shape]
    if conflicts:
        more = f' and {len(conflicts) - 3} more' if len(conflicts) > 3 else ''
        raise UserError(f'{file_name}: shapes disagree with the order of the layers: {"; ".join(conflicts[:3])}{more}; '
                        f'{SAVE_AGAIN}')


def check_classifier(file_name: str, last: KerasLayer, classifier: Sequence[KerasLayer]) -> None:
    """Refuse a convolution with bias beside a backbone unless it lies on the backbone's outputs."""
    for layer in classifier:
        kernel = layer.arrays['kernel'].shape
        if layer.kind == 'biased conv' and kernel[:3] != (1, 1, last.arrays['kernel'].shape[3]):
            raise UserError(f'{file_name}: {layer.label} with a kernel {kernel} is no classifier on '
                            f'the {last.arrays["kernel"].shape[3]} channels of {last.label}; this is no Darknet53 file')


def check_nothing_between(file_name: str, layers: Sequence[KerasLayer], used: Sequence[KerasLayer]) -> None:
    """Refuse layers with float weights of their own that the model's order puts before the network's last layer."""
    network = {id(layer) for layer in used}
    last = max(index for index, layer in enumerate(layers) if id(layer) in network)
    for layer in layers[:last]:
        if layer.kind in ('dense', 'other') and any(array.dtype != 'integer' for array in layer.arrays.values()):
            raise UserError(f'{file_name}: {layer.label}, a layer with weights that the network does not have, lies '
                            'among its layers; this is another network')


def known_extras(weights: WeightsFile, used: Sequence[KerasLayer], classifier: Sequence[KerasLayer],
                 others: Sequence[KerasLayer]) -> dict[str, str]:
    """What every array is that no layer of the network uses, path by path; one of unknown kind is refused."""
    used_paths = {array.path for layer in used for array in layer.arrays.values()}
    known = {array.path: CLASSIFIER for layer in classifier for array in layer.arrays.values()}
    known |= {array.path: SIDE_STATE for layer in others if is_state(layer) for array in layer.arrays.values()}
    if isinstance(weights, DarknetFile):
        known |= weights.extras
    extras = {path: known.get(path) or state_kind(path) or state_outside_layers(array)
              for path, array in weights.arrays.items() if path not in used_paths}
    unknown = [quoted(path) for path, reason in extras.items() if reason is None]
    if unknown:
        raise UserError(f'{weights.name}: {len(unknown)} arrays belong to no layer of the network '
                        f'({", ".join(unknown[:3])}); save the detector alone from Keras')
    return {path: reason for path, reason in extras.items() if reason is not None}


def state_outside_layers(array: StoredArray) -> str | None:
    """What an array is that a model keeps beside its layers: a scalar or a whole number is state, all else unknown."""
    harmless = not array.shape or array.dtype == 'integer'
    return SIDE_STATE if harmless and OUTSIDE_LAYERS.fullmatch(array.path) else None


def assign(layout: FileLayout, part: Part) -> list[Assignment]:
    """Pair the network's tensors with arrays of the file, in order of creation; a backbone comes out of a model too."""
    blocks = zip(block_prefixes(part), zip(layout.convs, layout.norms, strict=True), strict=False)  # the model has more
    predictions = zip(predict_prefixes(part), zip(layout.predictions, strict=True), strict=False)
    return [Assignment(key, layer.arrays[weight], layer) for prefix, layers in (*blocks, *predictions)
            for weight, key in tensor_keys(prefix).items() for layer in layers if weight in layer.arrays]


def left_over(weights: WeightsFile, layout: FileLayout, assignments: Sequence[Assignment]) -> dict[str, str]:
    """Every array of the file that the import does not use, path -> what it is."""
    used = {assignment.source.path for assignment in assignments}
    return {path: layout.extras.get(path, OTHER_PART) for path in weights.arrays if path not in used}

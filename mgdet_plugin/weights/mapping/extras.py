"""Arrays of a Keras file that the network does not use: known kinds are listed and never read, all others refused."""
from __future__ import annotations

import re
from collections.abc import Sequence

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.darknet_file import DarknetFile
from mgdet_plugin.weights.container.safe_h5 import StoredArray, quoted
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.mapping.keras_layers import KerasLayer, is_state, state_kind

CLASSIFIER = 'classifier on top'
OTHER_PART = 'neck and head, not part of the backbone'
SIDE_STATE = 'state of a loss, a metric or a counter'

OUTSIDE_LAYERS = re.compile(r'(/model_weights)?/top_level_model_weights/.+|/vars/\d+')


def known_extras(weights: WeightsFile, used: Sequence[KerasLayer], classifier: Sequence[KerasLayer],
                 others: Sequence[KerasLayer]) -> dict[str, str]:
    """Account for every array that no layer of the network uses.

    Args:
        weights: The file.
        used: Layers of the network.
        classifier: Layers on top of a backbone.
        others: Layers of other kinds, such as a loss.

    Returns:
        Path -> what it is.

    Raises:
        UserError: An array is neither used nor of a known kind.
    """
    used_paths = {array.path for layer in used for array in layer.arrays.values()}
    known = {array.path: CLASSIFIER for layer in classifier for array in layer.arrays.values()}
    known |= {array.path: SIDE_STATE for layer in others if is_state(layer) for array in layer.arrays.values()}
    if isinstance(weights, DarknetFile):
        known |= weights.extras
    extras: dict[str, str] = {}
    unknown = []
    for path, array in weights.arrays.items():
        if path in used_paths:
            continue
        reason = known.get(path) or state_kind(path) or state_outside_layers(array)
        if reason is None:
            unknown.append(quoted(path))
        else:
            extras[path] = reason
    if unknown:
        raise UserError(f'{weights.name}: {len(unknown)} arrays belong to no layer of the network '
                        f'({", ".join(unknown[:3])}); save the detector alone from Keras')
    return extras


def state_outside_layers(array: StoredArray) -> str | None:
    """What an array is that a model keeps beside its layers: a scalar or a whole number is state, all else unknown."""
    harmless = not array.shape or array.dtype == 'integer'
    return SIDE_STATE if harmless and OUTSIDE_LAYERS.fullmatch(array.path) else None

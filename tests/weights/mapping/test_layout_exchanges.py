"""Two layers exchanged: refused wherever names, order or shapes can show it, for all pairs of the full network."""
from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.mapping.keras_layers import counted
from mgdet_plugin.weights.mapping.layout import FileLayout, resolve_layers
from tests.support.keras_files import NAMED_TREES, Listing, Tree, root_of, swapped_names, tree
from tests.support.keras_resolving import refusal, resolved
from tests.support.keras_variants import nested


def equal_shape_pairs(layout: FileLayout) -> list[tuple[str, str]]:
    """Names of every two layers of the network which no check of shapes can tell apart."""
    by_shape: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for layer in (*layout.convs, *layout.norms, *layout.predictions):
        by_shape[layer.kind, *(array.shape for array in layer.arrays.values())].append(str(layer.name))
    return [pair for names in by_shape.values() for pair in combinations(names, 2)]


@pytest.mark.parametrize('name', NAMED_TREES)
def test_refuses_every_exchange_of_equal_layers(name):
    """All 618 pairs in one legacy and one ``vars`` layout, a seeded tenth in the layouts with the same structure.

    Without its numbers a file that exchanges the names of two equal layers cannot be told from one that exchanges
    their places.
    """
    source = tree(name)
    weights = Listing(source)
    pairs = equal_shape_pairs(resolve_layers(weights))  # type: ignore[arg-type]
    assert len(pairs) == 618
    if name not in ('keras2_model5_legacy.h5', 'keras3_model5.weights.h5'):
        pairs = random.Random(0).sample(pairs, 62)
    names = source['groups'][root_of(source) or '/'].get('layer_names')
    for pair in pairs:
        restore = exchange_in_list(names, *pair) if names else exchange_in_attributes(source, *pair)
        with pytest.raises(UserError, match='names and stored order disagree about 2 layers') as caught:
            resolve_layers(weights)  # type: ignore[arg-type]
        assert all(repr(layer) in str(caught.value) for layer in pair)
        restore()
    resolve_layers(weights)  # type: ignore[arg-type]


@pytest.mark.parametrize('frozen', [0, 52, 66])
def test_refuses_exchanges_in_a_nested_model_partly_frozen(frozen):
    """There frozen layers come last, so names decide between two orders; a seeded tenth of the pairs."""
    source = nested(tree('keras2_model5_legacy.h5'),
                    lambda layer: not layer.startswith('predict') and counted(layer)[1] < frozen)
    pairs = equal_shape_pairs(resolved(source))
    assert len(pairs) == 618
    for pair in random.Random(0).sample(pairs, 62):
        line = refusal(swapped_names(source, *pair))
        assert 'names and stored order disagree' in line and all(repr(layer) in line for layer in pair)


def exchange_in_list(names: list[str], one: str, other: str) -> Callable[[], object]:
    """Exchange two entries of ``layer_names``; returns what takes it back."""
    first, second = names.index(one), names.index(other)
    names[first], names[second] = other, one
    return lambda: exchange_in_list(names, one, other)


def exchange_in_attributes(source: Tree, one: str, other: str) -> Callable[[], object]:
    """Exchange two ``name`` attributes of a ``vars`` tree; returns what takes it back."""
    attrs = {group['name']: group for group in source['groups'].values() if 'name' in group}
    attrs[one]['name'], attrs[other]['name'] = other, one
    return lambda: exchange_in_attributes(source, one, other)


@pytest.mark.parametrize('kind', ['conv2d', 'batch_normalization'])
def test_refuses_exchanges_of_unequal_layers_without_names(kind):
    """Shapes alone tell them apart: a seeded 200 of all pairs, in the layout that stores no names."""
    source = tree('keras2_model5.weights.h5')
    weights = Listing(source)
    layout = resolve_layers(weights)  # type: ignore[arg-type]
    layers = layout.convs if kind == 'conv2d' else layout.norms
    pairs = [(one, other) for one, other in combinations(layers, 2)
             if [array.shape for array in one.arrays.values()] != [array.shape for array in other.arrays.values()]]
    for pair in random.Random(0).sample(pairs, 200):
        for weight in pair[0].arrays:
            exchange_shapes(weights, *(layer.arrays[weight].path for layer in pair))
        with pytest.raises(UserError, match='shapes disagree with the order of the layers') as caught:
            resolve_layers(weights)  # type: ignore[arg-type]
        assert any(layer.label in str(caught.value) for layer in pair)
        for weight in pair[0].arrays:
            exchange_shapes(weights, *(layer.arrays[weight].path for layer in pair))
    resolve_layers(weights)  # type: ignore[arg-type]


def exchange_shapes(weights: Listing, one: str, other: str) -> None:
    """Exchange what lies at two paths."""
    arrays = weights.arrays
    arrays[one], arrays[other] = replace(arrays[other], path=one), replace(arrays[one], path=other)

"""What is joined to what: the chain of channels, and every way one layer can break it."""
from __future__ import annotations

import pytest

from mgdet_plugin.weights.mapping.architecture import (
    ConvBlock,
    Part,
    block_prefixes,
    blocks,
    predict_prefixes,
    predictions,
    shape_conflicts,
    topological_order,
)
from tests.support.keras_files import Tree, tiny, tree


def kernels(source: Tree) -> list[tuple[int, ...]]:
    """Kernels of a model's tree in order of creation, by the layers' names alone."""
    by_layer = {spec['layer']: tuple(spec['shape']) for spec in source['datasets'].values() if spec['kind'] == 'kernel'}
    names = ['conv2d', *(f'conv2d_{index}' for index in range(1, 66))]
    names += [f'predict_conv_{scale}' for scale in (1, 2, 3)]
    return [by_layer[name] for name in names if name in by_layer]


def conflicts(shapes: list[tuple[int, ...]], part: Part = 'model') -> list[str]:
    return list(shape_conflicts(part, shapes, [f'<{index}>' for index in range(len(shapes))]))


def test_blocks_in_order_of_creation():
    prefixes = block_prefixes('model')
    assert len(prefixes) == len(set(prefixes)) == 66 and prefixes[:52] == block_prefixes('backbone')
    assert prefixes[:4] == ['backbone.conv1', 'backbone.conv_res_block1.conv', 'backbone.conv_res_block1.res0.conv1',
                            'backbone.conv_res_block1.res0.conv2']
    assert prefixes[51] == 'backbone.conv_res_block5.res3.conv2'
    assert prefixes[52:58] == ['neck.blocks.0.conv1', 'neck.blocks.0.conv2', 'neck.blocks.0.conv3',
                               'bbox_head.bridges.0', 'neck.up_convs.0', 'neck.blocks.1.conv1']
    assert prefixes[65] == 'bbox_head.bridges.2'
    assert predict_prefixes('model')[2] == 'bbox_head.predict_convs.2' and predict_prefixes('backbone') == []


def test_topological_order_is_that_of_keras():
    assert topological_order('model')[52:] == [52, 53, 54, 56, 57, 58, 59, 61, 62, 63, 64, 55, 60, 65]
    assert topological_order('backbone') == list(range(52))


def test_blocks_know_where_their_channels_come_from():
    """Stages of Darknet53 end at the convolutions 3, 8, 25, 42 and 51."""
    chain = blocks('model')
    assert chain[0] == ConvBlock('backbone.conv1', 3, ())
    assert chain[2] == ConvBlock('backbone.conv_res_block1.res0.conv1', 1, (1,), halves=True)
    assert chain[3] == ConvBlock('backbone.conv_res_block1.res0.conv2', 3, (2,), added_to=1)
    assert chain[9].inputs == (8,) and chain[26].inputs == (25,) and chain[43].inputs == (42,)
    assert chain[55] == ConvBlock('bbox_head.bridges.0', 3, (54,))
    assert chain[56] == ConvBlock('neck.up_convs.0', 1, (54,))
    assert chain[57].inputs == (56, 42) and chain[62].inputs == (61, 25)
    assert [block.inputs for block in predictions('model')] == [(55,), (60,), (65,)]


@pytest.mark.parametrize('source', [tree, tiny])
def test_recorded_networks_fit_themselves(source):
    model = kernels(source('keras2_model5_legacy.h5'))
    assert conflicts(model) == []
    assert conflicts(kernels(source('keras2_darknet53.h5')), 'backbone') == conflicts(model[:52], 'backbone') == []


@pytest.mark.parametrize('axis', range(4))
def test_any_other_size_of_any_layer_is_a_conflict(axis):
    """Only the outputs of the prediction convolutions, 5 + A + C, depend on nothing before or after them."""
    model = kernels(tiny('keras2_model5_legacy.h5'))
    for index, kernel in enumerate(model):
        changed = [*model]
        changed[index] = (*kernel[:axis], kernel[axis] + 1, *kernel[axis + 1:])
        found = conflicts(changed)
        free = axis == 3 and index >= 66
        assert bool(found) is not free, (index, axis)
        assert free or f'<{index}>' in ' '.join(found)


def test_conflicts_name_the_layers_which_disagree():
    model = kernels(tiny('keras2_model5_legacy.h5'))
    model[56] = (1, 1, 16, 9)
    assert conflicts(model) == ['<57> takes 40 channels, <56> and <42> give 41']
    model[56], model[0] = (1, 1, 16, 8), (3, 3, 4, 2)
    assert conflicts(model) == ['<0> takes 4 channels, the image gives 3']
    model[0], model[3] = (3, 3, 3, 2), (1, 1, 2, 5)
    assert conflicts(model) == ['<3> is 1x1 where 3x3 belongs', '<3> gives 5 channels, <1>, to which they are added, 4',
                                '<4> takes 4 channels, <3> gives 5']
    model[2], model[3] = (1, 1, 4, 3), (3, 3, 3, 4)
    assert conflicts(model) == ['<2> takes 4 channels and gives 3, not half of them']

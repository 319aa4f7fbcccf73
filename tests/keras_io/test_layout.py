"""Which layer is which: by stored order, names and shapes together, or refused."""
from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from mgdet_plugin.errors import UserError
from mgdet_plugin.keras_io.archive import open_weights
from mgdet_plugin.keras_io.keras_layers import counted
from mgdet_plugin.keras_io.layout import (
    OTHER_PART,
    FileLayout,
    assign,
    block_prefixes,
    left_over,
    predict_prefixes,
    resolve,
    topological_order,
)
from tests.keras_files import (
    BACKBONE_TREES,
    MODEL_TREES,
    NAMED_TREES,
    Tree,
    numbers,
    renamed,
    root_of,
    shifted,
    swapped_names,
    tiny,
    with_optimizer,
    write,
)

LEGACY_TREES = tuple(name for name in NAMED_TREES if name.endswith(('legacy.h5', 'full.h5')))
VARS_TREES = tuple(name for name in MODEL_TREES if name not in LEGACY_TREES)
# Two residual blocks of equal shape: either order passes every check of shapes.
TWIN_CONVS = ('conv2d_10', 'conv2d_12')
TWIN_NORMS = ('batch_normalization_10', 'batch_normalization_12')


def resolved(source: Tree, path: Path, as_text: bool = False) -> FileLayout:
    with open_weights(write(source, path, as_text)) as weights:
        return resolve(weights)


def refusal(source: Tree, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolved(source, path)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def first_numbers(layout: FileLayout, path: Path) -> list[float]:
    """The first number of every convolution, normalisation mean and prediction bias, in resolved order."""
    arrays = [layer.arrays['kernel'] for layer in layout.convs]
    arrays += [layer.arrays['moving_mean'] for layer in layout.norms]
    arrays += [layer.arrays['bias'] for layer in layout.predictions]
    with open_weights(path) as weights:
        return [float(weights.read(array.path, array.shape).flat[0]) for array in arrays]


def expected_numbers(layout: FileLayout) -> list[float]:
    """The same, from the layers' creation numbers alone."""
    def first(name: str, kind: str, shape: tuple[int, ...]) -> float:
        return float(numbers(name, kind, shape).flat[0])

    def counter(base: str, index: int) -> str:
        return f'{base}_{index}' if index else base

    values = [first(counter('conv2d', i), 'kernel', layer.arrays['kernel'].shape)
              for i, layer in enumerate(layout.convs)]
    values += [first(counter('batch_normalization', i), 'moving_mean', layer.arrays['moving_mean'].shape)
               for i, layer in enumerate(layout.norms)]
    values += [first(f'predict_conv_{i}', 'bias', layer.arrays['bias'].shape)
               for i, layer in enumerate(layout.predictions, 1)]
    return values


def assert_exact(source: Tree, path: Path, named: bool = True) -> FileLayout:
    layout = resolved(source, path)
    assert layout.named is named
    assert first_numbers(layout, path) == expected_numbers(layout)
    return layout


def test_blocks_in_order_of_creation():
    blocks = block_prefixes('model')
    assert len(blocks) == len(set(blocks)) == 66 and blocks[:52] == block_prefixes('backbone')
    assert blocks[:4] == ['backbone.conv1', 'backbone.conv_res_block1.conv', 'backbone.conv_res_block1.res0.conv1',
                          'backbone.conv_res_block1.res0.conv2']
    assert blocks[51] == 'backbone.conv_res_block5.res3.conv2'
    assert blocks[52:58] == ['neck.blocks.0.conv1', 'neck.blocks.0.conv2', 'neck.blocks.0.conv3', 'bbox_head.bridges.0',
                             'neck.up_convs.0', 'neck.blocks.1.conv1']
    assert blocks[65] == 'bbox_head.bridges.2'
    assert predict_prefixes('model')[2] == 'bbox_head.predict_convs.2' and predict_prefixes('backbone') == []


def test_topological_order_is_that_of_keras():
    assert topological_order('model')[52:] == [52, 53, 54, 56, 57, 58, 59, 61, 62, 63, 64, 55, 60, 65]
    assert topological_order('backbone') == list(range(52))


@pytest.mark.parametrize('name, parts', [('conv2d', ('conv2d', 0)), ('conv2d_12', ('conv2d', 12)),
                                         ('predict_conv_1', ('predict_conv', 1)), ('a_b', ('a_b', 0)), ('_3', ('', 3))])
def test_counted_splits_keras_names(name, parts):
    assert counted(name) == parts


@pytest.mark.parametrize('name', MODEL_TREES)
def test_resolves_every_model_layout(tmp_path, name):
    layout = assert_exact(tiny(name), tmp_path / name, named=name in NAMED_TREES)
    assert layout.part == 'model' and layout.extras == {}
    assert layout.outputs == (12, 12, 12) and layout.bridge_channels == (44, 22, 11)
    version = dict(keras2='2.15.0', keras3='3.15.1')[name[:6]] if name in LEGACY_TREES else None
    assert layout.keras_version == version


@pytest.mark.parametrize('name', BACKBONE_TREES)
def test_resolves_every_backbone_layout(tmp_path, name):
    layout = assert_exact(tiny(name), tmp_path / name)
    assert layout.part == 'backbone' and layout.predictions == [] and layout.extras == {}


@pytest.mark.parametrize('name', NAMED_TREES)
def test_resolves_names_stored_as_text(tmp_path, name):
    assert resolved(tiny(name), tmp_path / name, as_text=True) == resolved(tiny(name), tmp_path / name)


@pytest.mark.parametrize('name, convs, norms', [
    ('keras2_model5_legacy.h5', 1, 1),  # standalone Keras 2 counted from one
    ('keras2_model5_full.h5', 66, 66),
    ('keras3_model5_full.h5', 198, 201),
    ('keras3_model5.weights.h5', 52, 0),
    ('keras3_model5.keras', 935, 2),
])
def test_resolves_shifted_counters(tmp_path, name, convs, norms):
    assert_exact(shifted(tiny(name), convs, norms), tmp_path / name)


@pytest.mark.parametrize('name', NAMED_TREES)
@pytest.mark.parametrize('twins', [TWIN_CONVS, TWIN_NORMS, ('predict_conv_1', 'predict_conv_2'),
                                   ('conv2d_55', 'conv2d_60')])
def test_refuses_names_exchanged_between_layers(tmp_path, name, twins):
    line = refusal(swapped_names(tiny(name), *twins), tmp_path / name)
    assert 'names and stored order disagree about 2 layers' in line
    assert all(repr(twin) in line for twin in twins)


@pytest.mark.parametrize('name', LEGACY_TREES)
@pytest.mark.parametrize('twins', [TWIN_CONVS, TWIN_NORMS])
def test_refuses_layer_names_reordered(tmp_path, name, twins):
    source = tiny(name)
    order = source['groups'][root_of(source) or '/']['layer_names']
    one, other = map(order.index, twins)
    order[one], order[other] = order[other], order[one]
    assert 'names and stored order disagree' in refusal(source, tmp_path / name)


@pytest.mark.parametrize('name', sorted(set(VARS_TREES) & set(NAMED_TREES)))
def test_refuses_vars_reordered_with_their_names(tmp_path, name):
    source = tiny(name)
    groups, arrays = source['groups'], source['datasets']
    for section, leaf in ((groups, 'vars'), (arrays, 'vars/0')):
        one, other = (f'/layers/{twin}/{leaf}' for twin in TWIN_CONVS)
        section[one], section[other] = section[other], section[one]
    assert 'names and stored order disagree' in refusal(source, tmp_path / name)


@pytest.mark.parametrize('name', LEGACY_TREES)
def test_refuses_weights_named_after_another_layer(tmp_path, name):
    source, renames = tiny(name), dict(zip(TWIN_CONVS, reversed(TWIN_CONVS), strict=True))
    root = root_of(source)
    for group in TWIN_CONVS:
        attrs = source['groups'][f'{root}/{group}']
        attrs['weight_names'] = [weight.replace(group, renames[group]) for weight in attrs['weight_names']]
        for path in [path for path in source['datasets'] if path.startswith(f'{root}/{group}/')]:
            moved = f'{root}/{group}/{renames[group]}/' + path.rpartition('/')[2]
            source['datasets'][moved] = source['datasets'].pop(path)
    assert "'conv2d_10' holds weights named after 'conv2d_12'" in refusal(source, tmp_path / name)


def test_resolves_one_scope_suffix_on_all_weights(tmp_path):
    """TensorFlow's mark of a model built a second time in one graph."""
    source = tiny('keras2_model5_legacy.h5')
    for attrs in source['groups'].values():
        if 'weight_names' in attrs:
            attrs['weight_names'] = [weight.replace('/', '_1/', 1) for weight in attrs['weight_names']]
    source['datasets'] = {re.sub(r'/([^/]+)/([^/]+)/', r'/\1/\2_1/', path): spec
                          for path, spec in source['datasets'].items()}
    assert_exact(source, tmp_path / 'a.h5')


def test_refuses_names_on_some_layers_only(tmp_path):
    source = tiny('keras3_model5.weights.h5')
    del source['groups']['/layers/conv2d_3/vars']['name']
    assert 'some layers have names and some have none' in refusal(source, tmp_path / 'a.h5')


def test_refuses_two_layers_of_one_number(tmp_path):
    source = renamed(tiny('keras3_model5.weights.h5'), lambda name: {'conv2d_5': 'conv2d_04'}.get(name, name))
    assert 'the same number' in refusal(source, tmp_path / 'a.h5')


def test_refuses_names_of_mixed_kinds(tmp_path):
    source = renamed(tiny('keras2_model5_full.h5'), lambda name: {'conv2d_5': 'stem'}.get(name, name))
    assert "'conv2d' and 'stem' do not count as layers of one kind" in refusal(source, tmp_path / 'a.h5')


def test_refuses_convolutions_counted_in_two_classes(tmp_path):
    source = tiny('keras2_model5.weights.h5')
    source['datasets']['/layers/custom_conv/vars/0'] = source['datasets'].pop('/layers/conv2d_64/vars/0')
    assert 'several groups or classes' in refusal(source, tmp_path / 'a.h5')


@pytest.mark.parametrize('name', MODEL_TREES)
def test_refuses_a_missing_normalisation(tmp_path, name):
    source = tiny(name)
    place = '/layers/batch_normalization_7' if name in VARS_TREES else f'{root_of(source)}/batch_normalization_7'
    source['datasets'] = {path: spec for path, spec in source['datasets'].items() if not path.startswith(f'{place}/')}
    source['groups'].get(place, {}).pop('weight_names', None)
    expected = '65 batch normalisations' if name in VARS_TREES else "'batch_normalization_7' of layer_names has no"
    assert expected in refusal(source, tmp_path / name)


@pytest.mark.parametrize('name', LEGACY_TREES)
def test_refuses_a_listed_weight_that_is_missing(tmp_path, name):
    source = tiny(name)
    del source['datasets'][next(path for path in source['datasets'] if 'batch_normalization_7/beta' in path)]
    line = refusal(source, tmp_path / name)
    assert "'batch_normalization_7' lists the weight 'batch_normalization_7/beta" in line and 'missing' in line


@pytest.mark.parametrize('name', VARS_TREES)
def test_refuses_a_gap_in_a_layers_arrays(tmp_path, name):
    source = tiny(name)
    del source['datasets']['/layers/batch_normalization_7/vars/1']
    assert 'lacks one of its arrays, it has [0, 2, 3]' in refusal(source, tmp_path / name)


@pytest.mark.parametrize('name', MODEL_TREES)
def test_lists_optimizer_state_as_extras(tmp_path, name):
    source = with_optimizer(tiny(name))
    layout = assert_exact(source, tmp_path / name, named=name in NAMED_TREES)
    assert len(layout.extras) == len(source['datasets']) // 2 + 1 and set(layout.extras.values()) == {'optimizer state'}


@pytest.mark.parametrize('name', VARS_TREES)
def test_optimizer_state_is_never_taken_for_a_layer(tmp_path, name):
    source = tiny(name)
    for index in range(4):  # the shape of a normalisation's arrays
        source['datasets'][f'/optimizer/vars/{index}'] = dict(shape=[8], layer='adam', kind='beta')
    assert len(assert_exact(source, tmp_path / name, named=name in NAMED_TREES).extras) == 4


@pytest.mark.parametrize('name', MODEL_TREES)
def test_refuses_arrays_of_unknown_use(tmp_path, name):
    source = tiny(name)
    source['datasets']['/somewhere/else'] = dict(shape=[3], layer='x', kind='bias')
    assert "1 arrays belong to no layer of the network ('/somewhere/else')" in refusal(source, tmp_path / name)


@pytest.mark.parametrize('name', BACKBONE_TREES)
@pytest.mark.parametrize('kernel', [[64, 10], [1, 1, 64, 10]])
def test_lists_a_classifier_on_top_of_a_backbone(tmp_path, name, kernel):
    source = tiny(name)
    root = root_of(source)
    source['groups'][root or '/']['layer_names'].append('top')
    source['groups'][f'{root}/top'] = dict(weight_names=['top/kernel:0', 'top/bias:0'])
    for kind, shape in (('kernel', kernel), ('bias', [10])):
        source['datasets'][f'{root}/top/top/{kind}:0'] = dict(shape=shape, layer='top', kind=kind)
    layout = assert_exact(source, tmp_path / name)
    assert layout.part == 'backbone' and list(layout.extras.values()) == ['classifier on top'] * 2


def test_resolves_a_model_nested_in_a_layer(tmp_path):
    """Keras lists the weights of a nested model trainable first, moving statistics last."""
    flat = tiny('keras2_model5_full.h5')
    weights = [weight for name in flat['groups']['/model_weights']['layer_names']
               for weight in flat['groups'][f'/model_weights/{name}']['weight_names']]
    weights.sort(key=lambda weight: 'moving' in weight)
    nested: Tree = dict(groups={'/model_weights': dict(layer_names=['input_1', 'detector']),
                                '/model_weights/input_1': dict(weight_names=[]),
                                '/model_weights/detector': dict(weight_names=weights)}, datasets={})
    for weight in weights:
        path = f'/model_weights/{weight.partition("/")[0]}/{weight}'
        nested['datasets'][f'/model_weights/detector/{weight}'] = flat['datasets'][path]
    assert_exact(nested, tmp_path / 'a.h5')


def test_resolves_names_split_over_attributes(tmp_path):
    source = tiny('keras2_model5_legacy.h5')
    names = source['groups']['/'].pop('layer_names')
    for index, start in enumerate(range(0, len(names), 50)):
        source['groups']['/'][f'layer_names{index}'] = names[start:start + 50]
    assert_exact(source, tmp_path / 'a.h5')


def test_refuses_another_network_saying_what_it_holds(tmp_path):
    vgg: Tree = dict(groups={'/': dict(layer_names=[f'block1_conv{i}' for i in range(13)])}, datasets={})
    for name in vgg['groups']['/']['layer_names']:
        vgg['groups'][f'/{name}'] = dict(weight_names=[f'{name}/kernel:0', f'{name}/bias:0'])
        for kind, shape in (('kernel', [3, 3, 4, 4]), ('bias', [4])):
            vgg['datasets'][f'/{name}/{name}/{kind}:0'] = dict(shape=shape, layer=name, kind=kind)
    assert 'it has 0 convolutions without bias, 0 batch normalisations and 13' in refusal(vgg, tmp_path / 'vgg.h5')


def test_refuses_hdf5_without_layers(tmp_path):
    foreign: Tree = dict(groups={'/': {}}, datasets={'/images': dict(shape=[4], layer='x', kind='bias')})
    assert 'no Keras layers among its 1 arrays' in refusal(foreign, tmp_path / 'a.h5')


def test_refuses_a_normalisation_of_other_width_than_its_convolution(tmp_path):
    source = tiny('keras3_model5_full.h5')
    for spec in source['datasets'].values():
        if spec['layer'] == 'batch_normalization_7':
            spec['shape'] = [9]
    assert "normalisation 'batch_normalization_7' 9" in refusal(source, tmp_path / 'a.h5')


def test_assigns_every_tensor_once_and_leaves_the_rest(tmp_path):
    source = with_optimizer(tiny('keras3_model5.weights.h5'))
    with open_weights(write(source, tmp_path / 'a.h5')) as weights:
        layout = resolve(weights)
        whole, backbone = assign(layout, 'model'), assign(layout, 'backbone')
        rest = left_over(weights, layout, backbone)
    assert len({item.key for item in whole}) == len({item.source.path for item in whole}) == len(whole) == 336
    assert [item.key for item in backbone] == [item.key for item in whole][:260]
    assert sum(reason == OTHER_PART for reason in rest.values()) == 336 - 260
    assert len(rest) + 260 == len(source['datasets'])
    assert whole[3].key == 'backbone.conv1.bn.running_mean'
    assert whole[3].source.path.endswith('batch_normalization/vars/2')


def test_an_exchange_no_file_can_show_is_resolved_by_order(tmp_path):
    """Without names two layers of equal shape can change places unseen; the report says so."""
    source = deepcopy(tiny('keras2_model5.weights.h5'))
    one, other = (f'/layers/{twin}/vars/0' for twin in TWIN_CONVS)
    arrays = source['datasets']
    arrays[one], arrays[other] = arrays[other], arrays[one]
    layout = resolved(source, tmp_path / 'a.h5')
    assert not layout.named
    got, expected = first_numbers(layout, tmp_path / 'a.h5'), expected_numbers(layout)
    assert np.flatnonzero(np.not_equal(got, expected)).tolist() == [10, 12]

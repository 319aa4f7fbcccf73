"""Which layer is which: by stored order, names and shapes together, or refused."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.mapping.keras_layers import counted
from mgdet_plugin.weights.mapping.layout import OTHER_PART, FileLayout, assign, left_over, resolve_layers
from tests.support.keras_files import (
    BACKBONE_TREES,
    MODEL_TREES,
    NAMED_TREES,
    Listing,
    Tree,
    renamed,
    root_of,
    shifted,
    stored_numbers,
    swapped_names,
    tiny,
    with_optimizer,
    write,
)
from tests.support.keras_resolving import LEGACY_TREES, NAMED_VARS_TREES, VARS_TREES, assert_exact, refusal, resolved

# Two residual blocks of equal shape: either order passes every check of shapes.
TWIN_CONVS = ('conv2d_10', 'conv2d_12')
TWIN_NORMS = ('batch_normalization_10', 'batch_normalization_12')


def from_file(source: Tree, path: Path, as_text: bool = False) -> FileLayout:
    """Resolve a tree written to a file, and hold the first number of every array it assigns against the layer's."""
    with open_weights(write(source, path, as_text)) as weights:
        layout = resolve_layers(weights)
        for item in assign(layout, layout.part):
            spec = source['datasets'][item.source.path]
            assert item.source.shape == tuple(spec['shape'])
            assert weights.read(item.source.path, item.source.shape).flat[0] == stored_numbers(spec).flat[0]
    return layout


@pytest.mark.parametrize('name, parts', [('conv2d', ('conv2d', 0)), ('conv2d_12', ('conv2d', 12)),
                                         ('predict_conv_1', ('predict_conv', 1)), ('a_b', ('a_b', 0)), ('_3', ('', 3)),
                                         ('net/conv2d_7', ('conv2d', 7))])
def test_counted_splits_keras_names(name, parts):
    assert counted(name) == parts


@pytest.mark.parametrize('name', MODEL_TREES)
def test_resolves_every_model_layout(tmp_path, name):
    layout = assert_exact(tiny(name))
    assert layout.part == 'model' and layout.extras == {} and layout.named is (name in NAMED_TREES)
    assert layout.outputs == (12, 12, 12) and layout.bridge_channels == (44, 22, 11)
    version = dict(keras2='2.15.0', keras3='3.15.1')[name[:6]] if name in LEGACY_TREES else None
    assert layout.keras_version == version
    for as_text in (False, True):
        written = from_file(tiny(name), tmp_path / name, as_text)
        assert written.layout == ('.keras with ' * name.endswith('.keras') + layout.layout)
        assert assign(written, 'model') == assign(layout, 'model')


@pytest.mark.parametrize('name', BACKBONE_TREES)
def test_resolves_every_backbone_layout(tmp_path, name):
    layout = assert_exact(tiny(name))
    assert layout.part == 'backbone' and layout.predictions == [] and layout.extras == {} and layout.named
    assert from_file(tiny(name), tmp_path / name) == layout


@pytest.mark.parametrize('name, convs, norms', [
    ('keras2_model5_legacy.h5', 1, 1),  # standalone Keras 2 counted from one
    ('keras2_model5_full.h5', 66, 66),
    ('keras3_model5_full.h5', 198, 201),
    ('keras3_model5.weights.h5', 52, 0),
    ('keras3_model5.keras', 935, 2),
])
def test_resolves_shifted_counters(name, convs, norms):
    assert_exact(shifted(tiny(name), convs, norms))


@pytest.mark.parametrize('name', NAMED_TREES)
@pytest.mark.parametrize('twins', [TWIN_CONVS, TWIN_NORMS, ('predict_conv_1', 'predict_conv_2'),
                                   ('conv2d_55', 'conv2d_60')])
def test_refuses_names_exchanged_between_layers(name, twins):
    line = refusal(swapped_names(tiny(name), *twins))
    assert 'names and stored order disagree about 2 layers' in line
    assert all(repr(twin) in line for twin in twins)


@pytest.mark.parametrize('name', LEGACY_TREES)
@pytest.mark.parametrize('twins', [TWIN_CONVS, TWIN_NORMS])
def test_refuses_layer_names_reordered(name, twins):
    source = tiny(name)
    order = source['groups'][root_of(source) or '/']['layer_names']
    one, other = map(order.index, twins)
    order[one], order[other] = order[other], order[one]
    assert 'names and stored order disagree' in refusal(source)


@pytest.mark.parametrize('name', NAMED_VARS_TREES)
def test_refuses_vars_reordered_with_their_names(name):
    source = tiny(name)
    groups, arrays = source['groups'], source['datasets']
    for section, leaf in ((groups, 'vars'), (arrays, 'vars/0')):
        one, other = (f'/layers/{twin}/{leaf}' for twin in TWIN_CONVS)
        section[one], section[other] = section[other], section[one]
    assert 'names and stored order disagree' in refusal(source)


@pytest.mark.parametrize('name', LEGACY_TREES)
def test_refuses_weights_named_after_another_layer(name):
    source, renames = tiny(name), dict(zip(TWIN_CONVS, reversed(TWIN_CONVS), strict=True))
    root = root_of(source)
    for group in TWIN_CONVS:
        attrs = source['groups'][f'{root}/{group}']
        attrs['weight_names'] = [weight.replace(group, renames[group]) for weight in attrs['weight_names']]
        for path in [path for path in source['datasets'] if path.startswith(f'{root}/{group}/')]:
            moved = f'{root}/{group}/{renames[group]}/' + path.rpartition('/')[2]
            source['datasets'][moved] = source['datasets'].pop(path)
    assert "'conv2d_10' holds weights named after 'conv2d_12'" in refusal(source)


def test_resolves_one_scope_suffix_on_all_weights():
    """TensorFlow's mark of a model built a second time in one graph."""
    source = tiny('keras2_model5_legacy.h5')
    for attrs in source['groups'].values():
        if 'weight_names' in attrs:
            attrs['weight_names'] = [weight.replace('/', '_1/', 1) for weight in attrs['weight_names']]
    source['datasets'] = {re.sub(r'/([^/]+)/([^/]+)/', r'/\1/\2_1/', path): spec
                          for path, spec in source['datasets'].items()}
    assert_exact(source)


def test_refuses_names_on_some_layers_only():
    source = tiny('keras3_model5.weights.h5')
    del source['groups']['/layers/conv2d_3/vars']['name']
    assert 'some layers have names and some have none' in refusal(source)


def test_refuses_two_layers_of_one_number():
    source = renamed(tiny('keras3_model5.weights.h5'), lambda name: {'conv2d_5': 'conv2d_04'}.get(name, name))
    assert 'the same number' in refusal(source)


def test_refuses_names_of_mixed_kinds():
    source = renamed(tiny('keras2_model5_full.h5'), lambda name: {'conv2d_5': 'stem'}.get(name, name))
    assert "'conv2d' and 'stem' do not count as layers of one kind" in refusal(source)


def test_refuses_convolutions_counted_in_two_classes():
    source = tiny('keras2_model5.weights.h5')
    source['datasets']['/layers/custom_conv/vars/0'] = source['datasets'].pop('/layers/conv2d_64/vars/0')
    assert 'several groups or classes' in refusal(source)


@pytest.mark.parametrize('name', MODEL_TREES)
def test_refuses_a_missing_normalisation(name):
    source = tiny(name)
    place = '/layers/batch_normalization_7' if name in VARS_TREES else f'{root_of(source)}/batch_normalization_7'
    source['datasets'] = {path: spec for path, spec in source['datasets'].items() if not path.startswith(f'{place}/')}
    source['groups'].get(place, {}).pop('weight_names', None)
    expected = '65 batch normalisations' if name in VARS_TREES else "'batch_normalization_7' of layer_names has no"
    assert expected in refusal(source)


@pytest.mark.parametrize('name', LEGACY_TREES)
def test_refuses_a_listed_weight_that_is_missing(name):
    source = tiny(name)
    del source['datasets'][next(path for path in source['datasets'] if 'batch_normalization_7/beta' in path)]
    line = refusal(source)
    assert "'batch_normalization_7' lists the weight 'batch_normalization_7/beta" in line and 'missing' in line


@pytest.mark.parametrize('name', VARS_TREES)
def test_refuses_a_gap_in_a_layers_arrays(name):
    source = tiny(name)
    del source['datasets']['/layers/batch_normalization_7/vars/1']
    assert 'lacks one of its arrays, it has [0, 2, 3]' in refusal(source)


@pytest.mark.parametrize('name', MODEL_TREES)
def test_refuses_arrays_of_unknown_use(name):
    source = tiny(name)
    source['datasets']['/somewhere/else'] = dict(shape=[3], layer='x', kind='bias')
    assert "1 arrays belong to no layer of the network ('/somewhere/else')" in refusal(source)


def test_refuses_another_network_saying_what_it_holds():
    vgg: Tree = dict(groups={'/': dict(layer_names=[f'block1_conv{i}' for i in range(13)])}, datasets={})
    for name in vgg['groups']['/']['layer_names']:
        vgg['groups'][f'/{name}'] = dict(weight_names=[f'{name}/kernel:0', f'{name}/bias:0'])
        for kind, shape in (('kernel', [3, 3, 4, 4]), ('bias', [4])):
            vgg['datasets'][f'/{name}/{name}/{kind}:0'] = dict(shape=shape, layer=name, kind=kind)
    assert 'it has 0 convolutions without bias, 0 batch normalisations and 13' in refusal(vgg)


def test_refuses_hdf5_without_layers():
    foreign: Tree = dict(groups={'/': {}}, datasets={'/images': dict(shape=[4], layer='x', kind='bias')})
    assert 'no Keras layers among its 1 arrays' in refusal(foreign)


def test_refuses_a_normalisation_of_other_width_than_its_convolution():
    source = tiny('keras3_model5_full.h5')
    for spec in source['datasets'].values():
        if spec['layer'] == 'batch_normalization_7':
            spec['shape'] = [9]
    assert "'conv2d_7' gives 4 channels, its normalisation 'batch_normalization_7' has 9" \
        in refusal(source)


def test_assigns_every_tensor_once_and_leaves_the_rest():
    weights = Listing(with_optimizer(tiny('keras3_model5.weights.h5')))
    layout = resolve_layers(weights)  # type: ignore[arg-type]
    whole, backbone = assign(layout, 'model'), assign(layout, 'backbone')
    rest = left_over(weights, layout, backbone)  # type: ignore[arg-type]
    assert len({item.key for item in whole}) == len({item.source.path for item in whole}) == len(whole) == 336
    assert [item.key for item in backbone] == [item.key for item in whole][:260]
    assert sum(reason == OTHER_PART for reason in rest.values()) == 336 - 260
    assert len(rest) + 260 == len(weights.arrays)
    assert whole[3].key == 'backbone.conv1.bn.running_mean'
    assert whole[3].source.path.endswith('batch_normalization/vars/2')


def test_an_exchange_no_file_can_show_is_resolved_by_order():
    """Without names two layers of equal shape can change places unseen; the report says so."""
    source = tiny('keras2_model5.weights.h5')
    one, other = (f'/layers/{twin}/vars/0' for twin in TWIN_CONVS)
    arrays = source['datasets']
    arrays[one], arrays[other] = arrays[other], arrays[one]
    layout = resolved(source)
    assert not layout.named
    layers = [arrays[layer.arrays['kernel'].path]['layer'] for layer in layout.convs]
    assert [(index, layer) for index, layer in enumerate(layers) if not layer.endswith(f'_{index}')] \
        == [(0, 'conv2d'), (10, 'conv2d_12'), (12, 'conv2d_10')]


@pytest.mark.parametrize('one, other, line', [
    ('conv2d_40', 'conv2d_80', "'/layers/conv2d_41' stands where '/layers/conv2d_40' belongs"),
    ('conv2d', 'conv2d_90', "'/layers/conv2d_1' stands where '/layers/conv2d' belongs"),
    ('batch_normalization_3', 'batch_normalization_03', 'several groups or classes'),
])
def test_refuses_gaps_in_the_numbers_of_layers_without_names(one, other, line):
    """A damaged group name would move a layer to another place, and nothing else tells its place."""
    source = tiny('keras2_model5.weights.h5')
    source['groups'] = {path.replace(f'/{one}/', f'/{other}/'): entry for path, entry in source['groups'].items()}
    source['datasets'] = {path.replace(f'/{one}/', f'/{other}/'): entry for path, entry in source['datasets'].items()}
    assert line in refusal(source)


@pytest.mark.parametrize('name', ['keras2_model5.weights.h5', 'keras2_model5.keras'])
def test_resolves_numbers_in_steps_of_two(name):
    """Keras 2.12 and 2.13 count every layer twice."""
    source = tiny(name)

    def doubled(path: str) -> str:
        return re.sub(r'/([a-z_]+\d?[a-z]*)_(\d+)/vars', lambda match: f'/{match[1]}_{2 * int(match[2])}/vars', path)

    source['groups'] = {doubled(path): entry for path, entry in source['groups'].items()}
    source['datasets'] = {doubled(path): entry for path, entry in source['datasets'].items()}
    assert '/layers/conv2d_136/vars/1' in source['datasets']
    assert_exact(source)

"""Files of training models, nested models, classifiers, other storage and other names, in every layout."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.mapping.keras_layers import STATE_GROUPS, counted
from mgdet_plugin.weights.mapping.layout import CLASSIFIER, SIDE_STATE, assign, resolve_layers
from tests.support.keras_files import (
    BACKBONE_TREES,
    BFLOAT16,
    MODEL_TREES,
    Listing,
    Tree,
    shifted,
    stored_numbers,
    swapped_names,
    tiny,
    with_optimizer,
    write,
)
from tests.support.keras_resolving import LEGACY_TREES, NAMED_VARS_TREES, VARS_TREES, assert_exact, refusal, resolved
from tests.support.keras_variants import (
    array,
    chunked_names,
    is_vars,
    moved_layers,
    nested,
    scoped,
    slashed,
    stored_as,
    training,
    unscoped,
    with_classifier,
    with_layer,
    without_names,
)


@pytest.mark.parametrize('name', MODEL_TREES)
def test_lists_the_extras_of_a_training_model(name):
    source = training(tiny(name))
    layout = assert_exact(source)
    reasons = list(layout.extras.values())
    assert reasons.count(SIDE_STATE) == 3
    assert reasons.count('optimizer state') == len(reasons) - 3 == (len(source['datasets']) - 1 + 3) // 2
    assert len(layout.extras) + 336 == len(source['datasets'])


@pytest.mark.parametrize('name', MODEL_TREES)
def test_entries_of_training_state_are_never_read(tmp_path, name):
    """Their types are none that is read as a weight."""
    path = write(training(tiny(name)), tmp_path / name)
    with open_weights(path) as weights:
        layout = resolve_layers(weights)
        kinds = {weights.arrays[extra].dtype for extra in layout.extras}
    assert 'integer' in kinds and {item.source.dtype for item in assign(layout, 'model')} == {'float32'}


@pytest.mark.parametrize('group', STATE_GROUPS)
@pytest.mark.parametrize('top', ['', '/layers/functional'])
def test_state_is_never_taken_for_a_layer(group, top):
    source = tiny('keras3_model5.weights.h5')
    for index in range(4):  # the shapes of a normalisation's arrays
        source['datasets'][f'{top}/{group}/inner/vars/{index}'] = array([8], 'state', 'beta')
    layout = assert_exact(source)
    assert list(layout.extras.values()) == [STATE_GROUPS[group]] * 4


@pytest.mark.parametrize('name', LEGACY_TREES)
def test_refuses_a_layer_with_weights_among_those_of_the_network(name):
    source = with_layer(tiny(name), 'scale', dict(scale=array([], 'scale')), at=30)
    assert "'scale', a layer with weights that the network does not have, lies among its layers" in refusal(source)
    counter = with_layer(tiny(name), 'augment', dict(seed=array([3], 'augment', 'step')), at=1)
    assert list(assert_exact(counter).extras.values()) == [SIDE_STATE]


@pytest.mark.parametrize('name', MODEL_TREES)
@pytest.mark.parametrize('weights', [dict(scale=array([44], 'scale')), dict(kernel=array([8, 8], 'scale', 'kernel'))])
def test_refuses_weights_of_layers_the_network_does_not_have(name, weights):
    assert '1 arrays belong to no layer of the network' in refusal(with_layer(tiny(name), 'scale', weights))


@pytest.mark.parametrize('name', MODEL_TREES)
def test_weights_of_the_model_itself_are_extras_only_if_scalar(name):
    source = tiny(name)
    place = '/vars/0' if is_vars(source) else '/top_level_model_weights/scale:0'
    source['datasets'][place] = array([], 'model')
    assert list(assert_exact(source).extras.values()) == [SIDE_STATE]
    source['datasets'][place] = array([4], 'model')
    assert '1 arrays belong to no layer of the network' in refusal(source)


@pytest.mark.parametrize('name', [*MODEL_TREES, *BACKBONE_TREES])
def test_resolves_a_model_nested_in_a_layer(name):
    assert_exact(nested(tiny(name)))
    assert_exact(with_optimizer(nested(tiny(name))))


@pytest.mark.parametrize('name', VARS_TREES)
def test_resolves_a_model_nested_twice(name):
    assert_exact(nested(nested(tiny(name))))


def in_backbone(layer: str) -> bool:
    """Whether a layer, by its name in the recorded files, is one of the 52 blocks of the backbone."""
    return not layer.startswith('predict') and counted(layer)[1] < 52


FROZEN: dict[str, Callable[[str], bool]] = {
    'backbone': in_backbone,
    'all but the predictions': lambda layer: not layer.startswith('predict'),
    'all': lambda layer: True,
    'normalisations': lambda layer: layer.startswith('batch'),
}


@pytest.mark.parametrize('kind', FROZEN)
@pytest.mark.parametrize('name', LEGACY_TREES)
def test_resolves_a_nested_model_partly_frozen(name, kind):
    """Keras lists the weights of a nested model trainable first, so frozen layers come after the ones behind them."""
    assert_exact(nested(tiny(name), FROZEN[kind]))


@pytest.mark.parametrize('kind', FROZEN)
@pytest.mark.parametrize('twins', [('conv2d_10', 'conv2d_12'), ('batch_normalization_10', 'batch_normalization_12'),
                                   ('conv2d_9', 'conv2d_62'), ('conv2d_10', 'conv2d_63')])
def test_refuses_exchanged_names_in_a_nested_model_partly_frozen(kind, twins):
    source = nested(tiny('keras2_model5_legacy.h5'), FROZEN[kind])
    line = refusal(swapped_names(source, *twins))
    assert 'disagree' in line and all(repr(twin) in line for twin in twins)


@pytest.mark.parametrize('name', NAMED_VARS_TREES)
def test_refuses_exchanged_names_in_a_nested_model(name):
    line = refusal(swapped_names(nested(tiny(name)), 'conv2d_10', 'conv2d_12'))
    assert 'names and stored order disagree about 2 layers' in line


@pytest.mark.parametrize('name', BACKBONE_TREES)
@pytest.mark.parametrize('kernel', [[64, 10], [1, 1, 64, 10]])
def test_lists_a_classifier_on_top_of_a_backbone(name, kernel):
    layout = assert_exact(with_optimizer(with_classifier(tiny(name), kernel)))
    assert layout.part == 'backbone' and list(layout.extras.values()).count(CLASSIFIER) == 2


def test_refuses_a_convolution_that_is_no_classifier():
    line = refusal(with_classifier(tiny('keras2_darknet53.h5'), [3, 3, 64, 10]))
    assert "'conv2d_52' with a kernel (3, 3, 64, 10) is no classifier on the 64 channels of 'conv2d_51'" in line


@pytest.mark.parametrize('name', [MODEL_TREES[0], MODEL_TREES[-2], MODEL_TREES[-1], BACKBONE_TREES[0]])
@pytest.mark.parametrize('dtypes', [('float16',), ('bfloat16',), ('float64',), ('>f4',),
                                    ('float32', 'float16', 'bfloat16', 'float64')])
def test_reads_every_storage_type(tmp_path: Path, name, dtypes):
    source = stored_as(tiny(name), dtypes)
    with open_weights(write(source, tmp_path / name)) as weights:
        layout = resolve_layers(weights)
        for item in assign(layout, layout.part):
            stored = stored_numbers(source['datasets'][item.source.path])
            if stored.dtype == BFLOAT16:
                stored = (stored.view('<u2').astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(weights.read(item.source.path, item.source.shape), stored.astype(np.float32))


@pytest.mark.parametrize('name', LEGACY_TREES)
def test_resolves_lists_of_names_cut_into_attributes(tmp_path: Path, name):
    """Of layers and, for a model in one layer, of weights."""
    for index, source in enumerate((chunked_names(tiny(name), 50), chunked_names(nested(tiny(name)), 100),
                                    chunked_names(tiny(name), 1))):
        with open_weights(write(source, tmp_path / f'{index}.h5')) as weights:
            layout = resolve_layers(weights)
        whole = resolved(nested(tiny(name)) if index == 1 else tiny(name))
        assert [item.source.path for item in assign(layout, 'model')] \
            == [item.source.path for item in assign(whole, 'model')]


RENAMINGS: dict[str, Callable[[Tree], Tree]] = {
    'scope': lambda source: scoped(source, 'net'),
    'two scopes': lambda source: scoped(source, 'net/darknet'),
    'slashes': slashed,
    'slashes in a scope': lambda source: scoped(slashed(source), 'tower'),
    'scope and shifted counters': lambda source: shifted(scoped(source, 'net'), 66, 3),
}


@pytest.mark.parametrize('kind', RENAMINGS)
@pytest.mark.parametrize('name', LEGACY_TREES)
def test_resolves_nested_scopes_and_names_with_slashes(name, kind):
    assert assert_exact(RENAMINGS[kind](tiny(name))).named
    exchanged = swapped_names(tiny(name), 'conv2d_10', 'conv2d_12')
    assert 'names and stored order disagree about 2 layers' in refusal(RENAMINGS[kind](exchanged))


@pytest.mark.parametrize('name', NAMED_VARS_TREES)
def test_resolves_the_vars_layout_without_names(name):
    assert not assert_exact(without_names(tiny(name))).named


@pytest.mark.parametrize('name', LEGACY_TREES)
def test_resolves_the_legacy_layout_of_early_keras_3(name):
    assert assert_exact(unscoped(tiny(name))).named
    exchanged = swapped_names(tiny(name), 'conv2d_10', 'conv2d_12')
    assert 'names and stored order disagree about 2 layers' in refusal(unscoped(exchanged))


@pytest.mark.parametrize('name', VARS_TREES)
@pytest.mark.parametrize('top', ['/_layer_checkpoint_dependencies/', '/_layer_checkpoint_dependencies\\', '/layers\\',
                                 '/layers\\functional\\layers\\'])
def test_resolves_other_beginnings_of_paths(name, top):
    """Those of Keras 2.12 and 2.13, and of Keras 2 on Windows."""
    source = moved_layers(tiny(name), top)
    for index in range(4):
        source['datasets'][f'{top}loss\\metrics/vars/{index}'] = array([8], 'state', 'beta')
    assert list(assert_exact(source).extras.values()) == ['state of a metric'] * 4


@pytest.mark.parametrize('name', VARS_TREES)
def test_refuses_a_network_in_two_groups(name):
    """Half of the layers each, as two models in one file would have it."""
    source = tiny(name)
    for section in source.values():
        for path in [path for path in section if path.startswith('/layers/conv2d_3')]:
            section[path.replace('/layers/', '/layers/other/layers/')] = section.pop(path)
    assert 'several groups or classes' in refusal(source)


def test_names_a_part_of_a_sharded_save():
    source = tiny('keras3_model5.weights.h5')
    source['datasets'] = {path: spec for path, spec in source['datasets'].items() if '_5' not in path}
    with pytest.raises(UserError, match='one part of a sharded save'):
        resolve_layers(Listing(source, 'model_00001.weights.h5'))  # type: ignore[arg-type]
    assert 'sharded' not in refusal(source)

"""What stands in place of weights is refused with one line that says what to do."""
import os
import pickle

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.checkpoint_check import check_weights
from tests.conftest import ROOT


@pytest.fixture
def cfg():
    return Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py')


@pytest.fixture
def state(cfg):
    init_default_scope('mmdet')
    return MODELS.build(cfg.model).state_dict()


def check(cfg, path, content=None):
    if content is not None:
        torch.save(content, path)
    cfg.load_from = str(path)
    check_weights(cfg)


def test_sound_weights_pass(cfg, state, tmp_path):
    check(cfg, tmp_path / 'a.pth', dict(state_dict=state, meta={}))
    check(cfg, tmp_path / 'b.pth', {f'module.{key}': value for key, value in state.items()})


def test_nothing_to_load_and_remote_addresses_pass(cfg):
    for value in (None, '', 'https://host/weights.pth'):
        cfg.load_from = value
        check_weights(cfg)


def test_missing_file_names_import_and_demo(cfg, tmp_path):
    with pytest.raises(UserError, match=r'are not there.*import_keras\.py.*--demo'):
        check(cfg, tmp_path / 'model5.pth')


@pytest.mark.parametrize('name', ['model5.h5', 'model5.weights.h5', 'model5.keras'])
def test_keras_file_names_the_import_command(cfg, tmp_path, name):
    with pytest.raises(UserError, match=rf'import_keras\.py \S*{name} \S*model5\.pth --config'):
        check(cfg, tmp_path / name)


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04 cut off'])
def test_no_checkpoint(cfg, tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(UserError, match='no checkpoint that torch can load safely'):
        check(cfg, tmp_path / 'a.pth')


class Evil:
    """Runs a command when unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}', )


def test_code_in_a_checkpoint_is_never_run(cfg, tmp_path):
    for save in (lambda: torch.save(Evil(tmp_path / 'ran'), tmp_path / 'a.pth'),
                 lambda: (tmp_path / 'a.pth').write_bytes(pickle.dumps(Evil(tmp_path / 'ran')))):
        save()
        with pytest.raises(UserError, match='no checkpoint'):
            check(cfg, tmp_path / 'a.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('content', [[1, 2], dict(state_dict=3), dict(state_dict=dict(a=1))])
def test_no_state_dict(cfg, tmp_path, content):
    with pytest.raises(UserError, match='no state_dict of tensors'):
        check(cfg, tmp_path / 'a.pth', content)


def test_missing_and_unexpected_keys_are_named(cfg, state, tmp_path):
    state['extra'] = state.pop('neck.up_convs.0.conv.weight')
    with pytest.raises(UserError, match=r'1 missing \(neck.up_convs.0.conv.weight\), 1 unexpected \(extra\)'):
        check(cfg, tmp_path / 'a.pth', state)


def test_backbone_alone_is_refused(cfg, state, tmp_path):
    part = {key: value for key, value in state.items() if key.startswith('backbone')}
    with pytest.raises(UserError, match=r'missing \(neck\.blocks.* and \d+ more\)'):
        check(cfg, tmp_path / 'a.pth', part)


def test_numbers_that_are_not_finite_are_refused(cfg, state, tmp_path):
    key = next(key for key in state if key.endswith('conv.weight'))
    with pytest.raises(UserError, match=rf'not finite in 1 of its tensors \({key}\).*give an earlier checkpoint'):
        check(cfg, tmp_path / 'a.pth', dict(state_dict={**state, key: state[key] * float('nan')}))


def test_mismatched_shapes_are_named(cfg, state, tmp_path):
    key = 'neck.up_convs.0.conv.weight'
    state[key] = state[key][:3]
    with pytest.raises(UserError, match=r'1 of another shape \(neck\.up_convs\.0\.conv\.weight \(3, 64, 1, 1\) in'):
        check(cfg, tmp_path / 'a.pth', state)


def test_another_class_count_says_both(cfg, state, tmp_path):
    for key in list(state):
        if 'predict_convs' in key:
            state[key] = torch.cat((state[key], state[key][:2]))
    with pytest.raises(UserError, match=r'trained on 12 classes, the config has 10.*--classes .*mgdet_nano_stage1'):
        check(cfg, tmp_path / 'a.pth', state)


def test_classes_in_another_order_are_refused(cfg, state, tmp_path):
    digits = list('0123456789')
    check(cfg, tmp_path / 'same.pth', dict(state_dict=state, meta=dict(dataset_meta=dict(classes=tuple(digits)))))
    swapped = dict(dataset_meta=dict(classes=['1', '0', *digits[2:]]))
    with pytest.raises(UserError, match=r"class 0 is '1' in .*the same classes in another order.*--classes"):
        check(cfg, tmp_path / 'swapped.pth', dict(state_dict=state, meta=swapped))


def test_other_class_names_are_said(cfg, state, tmp_path):
    meta = dict(dataset_meta=dict(classes=[*'012345678', 'nine']))
    torch.save(dict(state_dict=state, meta=meta), tmp_path / 'a.pth')
    cfg.load_from = str(tmp_path / 'a.pth')
    [line] = check_weights(cfg)
    assert "class 9 is 'nine' in" in line and 'taken over' in line


def test_anchors_other_than_imported_for_are_said(cfg, state, tmp_path):
    anchors = [[list(size) for size in scale] for scale in cfg.model.bbox_head.anchors]
    cfg.load_from = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=state, meta=dict(keras_import=dict(anchors=anchors))), cfg.load_from)
    assert check_weights(cfg) == []
    anchors[0][0][0] += 1
    torch.save(dict(state_dict=state, meta=dict(keras_import=dict(anchors=anchors))), cfg.load_from)
    [line] = check_weights(cfg)
    assert 'was imported for the anchors [[[37' in line

"""Weights on test sets: what is refused, and that one set's figures do not depend on another's."""
import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.held_out import HeldOut
from tests.support.small_run import make_dataset, write_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('held_out')
    write_config(folder / 'config.py', make_dataset(folder / 'data'), 'mgdet_model5_stage1.py')
    return folder


def load(folder):
    cfg = Config.fromfile(folder / 'config.py')
    cfg.model.bbox_head.loss.class_weights = None
    return cfg


def test_sets_are_measured_apart_and_the_weights_given_count(folder):
    torch.manual_seed(0)
    tests = HeldOut.of_tests(dict(one=load(folder), two=load(folder)), device='cpu')
    first = {name: tensor.clone() for name, tensor in tests.model.state_dict().items()}
    other = {name: tensor + 0.05 if 'predict_convs' in name else tensor for name, tensor in first.items()}
    found = tests.measure(first)
    assert list(found) == list(tests.domains) == ['one', 'two'] and found['one'] == found['two']
    assert found['one']['loss'] > 0 and tests.measure(other)['one']['loss'] != found['one']['loss']
    assert tests.measure(first) == found


def test_what_is_missing_or_does_not_fit(folder):
    tests = HeldOut.of_tests(dict(one=load(folder)), device='cpu')
    with pytest.raises(UserError, match=r'absent\.pth'):
        tests.read(str(folder / 'absent.pth'))
    torch.save(dict(state_dict={'other': torch.zeros(1)}), folder / 'foreign.pth')
    with pytest.raises(UserError, match=r'foreign\.pth'):
        tests.read(str(folder / 'foreign.pth'))
    cfg = load(folder)
    cfg.test_dataloader.dataset.ann_file = 'nowhere.json'
    with pytest.raises(UserError, match=r'nowhere\.json'):
        HeldOut.of_tests(dict(one=cfg))

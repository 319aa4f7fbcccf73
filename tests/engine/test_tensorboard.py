"""What TensorBoard shows: the names of the pictures, with the values of the run's record."""
import json

import numpy as np
import pytest
from mmdet.registry import VISBACKENDS
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgdet_plugin.common.resources import CONFIGS
from mgdet_plugin.engine import tensorboard_backend
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, run, staged_config


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def test_scalars_have_the_names_and_values_of_the_record(data, tmp_path):
    cfg = staged_config(tmp_path, data, [dict(HEAD, epochs=1), dict(FULL, epochs=1)])
    cfg.plan = dict(start='full', allow=['skipped-level'])
    cfg.visualizer.vis_backends = [dict(type='OptionalTensorboardVisBackend')]
    cfg.default_hooks.logger.interval = 1
    runner = run(cfg, tmp_path / 'run')
    runner.visualizer.close()
    record = json.loads((tmp_path / 'run/guard.json').read_text())
    events = EventAccumulator(str(next((tmp_path / 'run').glob('*/vis_data'))))
    events.Reload()
    tags = set(events.Tags()['scalars'])
    assert {'loss', 'loss_obj', 'backbone_lr', 'neck_lr', 'bbox_head_lr', 'val/loss', 'val/loss_obj', 'drift/loss_obj',
            'weights/backbone', 'table/value'} <= tags

    def values(tag):
        return {each.step: each.value for each in events.Scalars(tag)}

    seen = values('val/loss_obj')
    assert seen[0] == pytest.approx(record['baseline']['pretrained']['val/loss_obj'])
    for entry in record['validations']:
        assert seen[entry['epoch']] == pytest.approx(entry['metrics']['val/loss_obj'])
        assert values('drift/loss_obj')[entry['epoch']] == pytest.approx(entry['ratios']['loss_obj'])
        assert values('weights/backbone')[entry['epoch']] == pytest.approx(entry['weights']['backbone'])
    assert record['validations'][0]['weights']['backbone'] == 0 < record['validations'][1]['weights']['backbone']


def test_a_config_that_names_it_runs_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_backend, 'find_spec', lambda name: None)
    backend = VISBACKENDS.build(dict(type='OptionalTensorboardVisBackend', save_dir=str(tmp_path / 'vis_data')))
    backend.add_config(Config(dict(a=1)))
    backend.add_image('seen', np.zeros((4, 4, 3), np.uint8))
    backend.add_scalars(dict(loss=1.0), step=1)
    backend.close()
    assert not (tmp_path / 'vis_data').exists()


def test_our_configs_name_it():
    cfg = Config.fromfile(CONFIGS / 'mgdet_model5_staged.py')
    assert [each['type'] for each in cfg.vis_backends] == ['LocalVisBackend', 'OptionalTensorboardVisBackend']
    assert cfg.visualizer.vis_backends == cfg.vis_backends

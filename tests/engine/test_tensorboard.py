"""What TensorBoard shows: the names of the pictures, with the values of the run's record."""
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, run, staged_config


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def test_scalars_have_the_names_and_values_of_the_record(data, tmp_path):
    cfg = staged_config(tmp_path, data, [dict(HEAD, epochs=1), dict(FULL, epochs=1)])
    cfg.plan = dict(start='full', allow=['skipped-level'])
    cfg.visualizer.vis_backends = [dict(type='TensorboardVisBackend')]
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

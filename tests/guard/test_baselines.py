"""What is said and kept while baselines are measured, without a run."""
import logging
from types import SimpleNamespace

import pytest
from torch import nn

from mgdet_plugin.common.guard_record import GuardRecord
from mgdet_plugin.guard import baselines
from mgdet_plugin.guard.baselines import FULL, guarded_terms, pipelines, told


class Preprocessor(nn.Module):
    def forward(self, batch, training):
        return dict(inputs=batch)


@pytest.fixture
def runner():
    model = nn.Module()
    model.data_preprocessor = Preprocessor()
    lines = []
    return SimpleNamespace(model=model, logger=logging.getLogger('mgdet baselines'), timestamp='now', lines=lines,
                           visualizer=SimpleNamespace(add_scalars=lambda *_, **__: None))


def loop_of(images, others=None):
    dataloader = SimpleNamespace(dataset=range(images))
    return SimpleNamespace(dataloader=dataloader, others={name: loop_of(each) for name, each in (others or {}).items()})


def test_progress_is_told_and_what_metrics_print_is_not(runner, monkeypatch, caplog, capsys):
    """Of all sets together, every ten seconds; other warnings stay."""
    seconds = iter(range(0, 100, 4))
    monkeypatch.setattr(baselines.time, 'perf_counter', lambda: float(next(seconds)))
    caplog.set_level(logging.INFO)
    with told(runner, loop_of(20, dict(old=12)), 'a random start'):
        for _ in range(8):
            runner.model.data_preprocessor([0] * 4, False)
        print('Evaluating bbox...')
        runner.logger.info('a table')
        runner.logger.error('The testing results of the whole dataset is empty.')
        runner.logger.warning('something else')
    assert [each.getMessage() for each in caplog.records] == [
        'guard: measuring a random start: 12 of 32 images, about 20 s left',
        'guard: measuring a random start: 24 of 32 images, about 8 s left', 'something else']
    assert capsys.readouterr().out == ''
    runner.logger.error('The testing results of the whole dataset is empty.')
    runner.model.data_preprocessor([0], False)
    assert len(caplog.records) == 4  # afterwards all is as before


@pytest.mark.parametrize(('start', 'loaded', 'warned'), [
    (FULL, 1014.0, True), (FULL, 151.0, False), ('backbone', 1014.0, False), (FULL, float('nan'), False)])
def test_weights_that_are_worse_than_none_are_told_at_the_start(runner, caplog, start, loaded, warned):
    record = GuardRecord(start=start, pretrained={'val/loss': loaded}, random={'val/loss': 152.0})
    baselines._warn_of_worse(runner, record, all_new=False)
    assert ('worse than a random start' in caplog.text and 'val/loss 1014 against 152' in caplog.text) == warned
    assert all('\n' not in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize(('others', 'said'), [
    (40.0, ''), (60.0, 'val/loss without that of the classes, which are all new, 60 against 50')])
def test_the_loss_of_classes_that_are_all_new_is_no_fault_of_the_weights(runner, caplog, others, said):
    record = GuardRecord(start=FULL, pretrained={'val/loss': others + 30, 'val/loss_obj': others, 'val/loss_cls': 30.0},
                         random={'val/loss': 60.0, 'val/loss_obj': 50.0, 'val/loss_cls': 10.0})
    baselines._warn_of_worse(runner, record, all_new=True)
    assert said in caplog.text and bool(caplog.text) == bool(said)


def test_a_loss_that_is_always_0_is_not_guarded_and_said_once(runner, caplog):
    """That of the class, where there is one."""
    caplog.set_level(logging.INFO)
    terms = {'val/loss': 3.0, 'val/loss_obj': 3.0, 'val/loss_cls': 0.0}
    record = GuardRecord(pretrained=terms, random=dict(terms), metric='coco/bbox_mAP')
    record.guarded = guarded_terms(record, None)
    assert record.guarded == ['loss_obj'] and guarded_terms(record, ['loss_cls']) == ['loss_cls']
    assert list(record.ratios(terms)) == ['loss', 'loss_obj']
    assert guarded_terms(GuardRecord(pretrained=terms, random={**terms, 'val/loss_cls': 0.1}), None) == [
        'loss_obj', 'loss_cls']
    baselines._say(runner, record, 1.0)
    assert caplog.text.count('loss_cls is 0 whatever the weights') == 1
    assert 'the loaded weights: val/loss 3, val/loss_obj 3, val/loss_cls 0, no coco/bbox_mAP: nothing is' in caplog.text


def test_the_pipelines_in_wrappers_count():
    leaves = [SimpleNamespace(pipeline=name) for name in 'ab']
    whole = SimpleNamespace(datasets=[leaves[0], SimpleNamespace(dataset=leaves[1], times=2)])
    assert list(pipelines(whole)) == ['a', 'b']

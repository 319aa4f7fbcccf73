"""A guarded run with ``keep``: what it forgets is seen, acted on, and kept out of the best checkpoint."""
import copy

import pytest
import torch
from mmdet.registry import HOOKS, METRICS
from mmengine.hooks import Hook

from mgdet_plugin.engine.hooks.keep_hook import KeepHook
from mgdet_plugin.runs.run import read_run
from mgdet_plugin.runs.run_checks import check_run, kept
from tests.support.guarded_run import events, guard_json, guarded_config
from tests.support.small_run import make_dataset
from tests.support.staged_run import HEAD, SnapshotHook, TableMetric, differences, newest, run, state_of

SUMMARY = dict(images=50, held_out=12, by='labels', at_least=0.9, share=0.5, weight=1.0, form='maps', source='old/')
NEW, OLD = (0.5, 0.9, 0.6), (0.6, 0.3, 0.57)  # after each epoch; the loaded weights have the first
STAGE = dict(HEAD, epochs=3, warmup_epochs=0)


@METRICS.register_module(force=True)
class OldMetric(TableMetric):
    """The old domain's mean AP as a table says."""
    default_prefix = 'coco'

    def compute_metrics(self, results):
        return dict(bbox_mAP=super().compute_metrics(results)['value'])


@HOOKS.register_module(force=True)
class ToldKeepHook(KeepHook):
    """Says what holds the run, and holds nothing."""

    def __init__(self):
        self.summary = SUMMARY

    after_load_checkpoint, before_save_checkpoint = Hook.after_load_checkpoint, Hook.before_save_checkpoint
    before_train, before_train_epoch, after_train = Hook.before_train, Hook.before_train_epoch, Hook.after_train


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def config(folder, data, held=True, **guard):
    """A run in which the best by the new images alone, epoch 2, has forgotten most."""
    cfg = guarded_config(folder, data, [STAGE], dict(guard, random_start=False, images=1))
    cfg.default_hooks.checkpoint.update(save_best='table/value', rule='greater')
    cfg.train_dataloader.dataset.indices = 4  # an iteration an epoch
    cfg.val_evaluator = dict(type='TableMetric', values=NEW)
    cfg.val_cfg.others = dict(old=dict(dataloader=copy.deepcopy(cfg.val_dataloader),
                                       evaluator=dict(type='OldMetric', values=OLD)))
    cfg.custom_hooks = [dict(type='ToldKeepHook')] if held else []
    return cfg


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """Config, folder and snapshots of a run that only warns."""
    folder = tmp_path_factory.mktemp('whole')
    cfg = config(folder, data)
    stopped = SnapshotHook(folder, [('val', 1), ('epoch', 2)])
    run(cfg, folder / 'run', hooks=[stopped])
    return cfg, folder / 'run', stopped


def best_of(folder):
    name, = (path.name for path in folder.glob('best_*'))
    return int(name.removesuffix('.pth').rpartition('_')[2])


def good_of(folder):
    return torch.load(folder / 'last_good.pth', weights_only=True)['meta']['epoch']


def test_it_is_seen_and_no_such_checkpoint_is_the_best(whole):
    _, folder, _ = whole
    assert events(folder) == [('forgetting', 'validation', 2, ['warn'])]
    event, = guard_json(folder)['events']
    assert event['values'] == {'old/coco/bbox_mAP': 0.5}
    assert event['text'].endswith("50.0% of the loaded weights' old/coco/bbox_mAP is left (at least 90%)")
    record = read_run(folder)
    assert record.keep == SUMMARY and best_of(folder) == kept(record).epoch == 3
    check = check_run(record)[-1]
    assert check.passed and check.figures['share'] == pytest.approx(0.95)
    assert 'by labels on 12 held-out images' in check.line


@pytest.mark.parametrize('kill', [('val', 1), ('epoch', 2)])
def test_resumed_equals_uninterrupted(whole, tmp_path, kill):
    cfg, folder, stopped = whole
    run(cfg, stopped.copy(*kill, tmp_path / 'run'), resume=True)
    assert differences(state_of(newest(tmp_path / 'run')), state_of(newest(folder))) == []
    assert differences(guard_json(tmp_path / 'run'), guard_json(folder)) == []
    infos = [newest(each)['message_hub']['runtime_info'] for each in (tmp_path / 'run', folder)]
    assert infos[0]['best_kept'] == infos[1]['best_kept'] == pytest.approx(0.95)
    assert best_of(tmp_path / 'run') == 3


def test_what_was_forgotten_can_be_gone_back_from(data, tmp_path):
    run(config(tmp_path, data, forgetting='rollback'), tmp_path / 'run')
    record = guard_json(tmp_path / 'run')
    assert [each['rolled_back'] for each in record['validations']] == [False, True, False]
    assert [each['actions'] for each in record['events']] == [['rollback']]
    assert 'went back to the weights of epoch 1' in record['events'][0]['text']
    assert good_of(tmp_path / 'run') == best_of(tmp_path / 'run') == 3


def test_without_keep_the_old_domain_is_followed_and_no_more(data, tmp_path):
    run(config(tmp_path, data, held=False, forgetting='stop'), tmp_path / 'run')
    record = guard_json(tmp_path / 'run')
    assert record['events'] == [] and record['ended'] == 'plan' and 'keep' not in record
    assert best_of(tmp_path / 'run') == 2 and kept(read_run(tmp_path / 'run')).epoch == 2
    assert 'best_kept' not in newest(tmp_path / 'run')['message_hub']['runtime_info']

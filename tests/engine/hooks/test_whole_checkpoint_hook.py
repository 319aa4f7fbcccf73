"""Checkpoints of a run: the new one before the old one goes, and the best under a stable name, also after a kill."""
from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import HOOKS, METRICS
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import Validation
from mgdet_plugin.engine import WholeCheckpointHook
from mgdet_plugin.engine.hooks import whole_checkpoint_hook as module
from mgdet_plugin.engine.staged_run import StagedRun
from mgdet_plugin.runs.run import Run
from mgdet_plugin.runs.run_checks import kept
from tests.support.toy_run import make_runner


@pytest.fixture
def runner(tmp_path) -> SimpleNamespace:
    """A runner that knows nothing yet."""
    return SimpleNamespace(_train_loop=None, val_loop=None, work_dir=str(tmp_path), logger=logging.getLogger('best'),
                           message_hub=MessageHub(f'best {tmp_path}'))


def set_best(runner: SimpleNamespace, name: str, content: str | None = None) -> Path:
    """Make a file the best checkpoint, or name one that is not there."""
    path = Path(runner.work_dir, name)
    if content is not None:
        path.write_text(content)
    runner.message_hub.update_info('best_ckpt', str(path))
    runner.message_hub.update_info('best_score', 0.5)
    return path


def best(runner: SimpleNamespace) -> Path:
    return Path(runner.work_dir, 'best.pth')


def test_the_best_is_copied_when_it_is_new(runner):
    hook = WholeCheckpointHook(save_best='mAP')
    hook.before_train(runner)
    hook.after_val_epoch(runner, {})
    assert not best(runner).exists()
    for name in ('best_mAP_1.pth', 'best_mAP_2.pth'):
        set_best(runner, name, name)
        hook.after_val_epoch(runner, {})
        assert best(runner).read_text() == name
    assert sorted(path.name for path in best(runner).parent.iterdir()) == [
        'best.pth', 'best_mAP_1.pth', 'best_mAP_2.pth']


def test_a_resumed_run_copies_what_a_kill_left_out(runner):
    best(runner).write_text('older')
    set_best(runner, 'best_mAP_2.pth', 'newer')
    WholeCheckpointHook(save_best='mAP').before_train(runner)
    assert best(runner).read_text() == 'newer'


def test_a_best_file_that_is_gone_leaves_the_copy(runner, caplog):
    best(runner).write_text('copy')
    set_best(runner, 'best_mAP_1.pth')
    WholeCheckpointHook(save_best='mAP').before_train(runner)
    assert best(runner).read_text() == 'copy' and not caplog.records
    best(runner).unlink()
    WholeCheckpointHook(save_best='mAP').before_train(runner)
    assert "best_mAP_1.pth' as its best, and there is no such checkpoint" in caplog.text and not best(runner).exists()


def test_a_folder_that_moved_still_has_its_best(runner):
    set_best(runner, 'best_mAP_1.pth', 'moved')
    runner.message_hub.update_info('best_ckpt', '/somewhere/else/best_mAP_1.pth')
    WholeCheckpointHook(save_best='mAP').before_train(runner)
    assert best(runner).read_text() == 'moved'


def test_a_failed_copy_leaves_the_one_before(runner, monkeypatch):
    hook = WholeCheckpointHook(save_best='mAP')
    set_best(runner, 'best_mAP_1.pth', 'first')
    hook.after_val_epoch(runner, {})

    def fail(source, stream):
        stream.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.shutil, 'copyfileobj', fail)
    set_best(runner, 'best_mAP_2.pth', 'second')
    with pytest.raises(UserError, match=r'best\.pth: No space left on device'):
        hook.after_val_epoch(runner, {})
    assert best(runner).read_text() == 'first'


def test_a_training_run_whose_save_fails_ends_with_that_line(tmp_path, monkeypatch):
    save = torch.save

    def fail_at_epoch_2(content, stream):
        save(content, stream)
        if content['meta']['epoch'] == 2:
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fail_at_epoch_2)
    with pytest.raises(UserError, match=r'cannot write \S+epoch_2\.pth: No space left on device'):
        make_runner(tmp_path, default_hooks=dict(checkpoint=dict(type='mmdet.WholeCheckpointHook', interval=1))).train()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')
    assert torch.load(tmp_path / 'epoch_1.pth')['meta']['epoch'] == 1
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_1.pth'] and not list(tmp_path.glob('.epoch*'))


def make_hook_and_runner(folder: Path, info: dict | None = None, val_loop: object = None, **fields) -> tuple[
        WholeCheckpointHook, SimpleNamespace]:
    """Return the hook in a training that resumed ``info``, and a runner that saves empty files or fails if ``full``."""
    runner = SimpleNamespace(_train_loop=None, val_loop=val_loop, work_dir=str(folder), logger=logging.getLogger(),
                             epoch=0, iter=0, full=False,
                             message_hub=MessageHub(f'hook {folder}'))

    def save(out_dir: str, filename: str, *_args, **_kwargs) -> None:
        if runner.full:
            raise UserError('cannot write')
        Path(out_dir, filename).write_text(str(runner.epoch))

    runner.save_checkpoint = save
    for key, value in (info or {}).items():
        runner.message_hub.update_info(key, value)
    hook = WholeCheckpointHook(interval=1, **fields)
    hook.before_train(runner)
    return hook, runner


def test_last_checkpoint_is_written_whole(tmp_path, monkeypatch):
    def fail(file: int) -> None:
        raise OSError(28, 'No space left on device')

    hook, runner = make_hook_and_runner(tmp_path)
    path = tmp_path / 'last_checkpoint'
    path.write_text('before')
    with pytest.raises(UserError), monkeypatch.context() as patch:
        patch.setattr('os.fsync', fail)
        hook._save_checkpoint(runner)
    assert path.read_text() == 'before'
    hook._save_checkpoint(runner)
    assert path.read_text() == str(tmp_path / 'epoch_1.pth')


@pytest.mark.parametrize('keep', [1, 2])
def test_a_failed_save_removes_no_older_checkpoint(keep, tmp_path):
    hook, runner = make_hook_and_runner(tmp_path, max_keep_ckpts=keep)
    for runner.epoch in range(keep):
        hook._save_checkpoint(runner)
    kept = sorted(path.name for path in tmp_path.iterdir())
    runner.epoch, runner.full = keep, True
    with pytest.raises(UserError):
        hook._save_checkpoint(runner)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept == [
        *(f'epoch_{epoch + 1}.pth' for epoch in range(keep)), 'last_checkpoint']
    assert Path((tmp_path / 'last_checkpoint').read_text()).is_file()


def test_older_checkpoints_are_removed_in_the_end(tmp_path):
    hook, runner = make_hook_and_runner(tmp_path, max_keep_ckpts=1)
    for runner.epoch in range(3):
        hook._save_checkpoint(runner)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['epoch_3.pth', 'last_checkpoint']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')


def test_a_failed_save_keeps_the_best_checkpoint(tmp_path):
    hook, runner = make_hook_and_runner(tmp_path, save_best='mAP')
    runner.epoch = 1
    hook.after_val_epoch(runner, {'mAP': 0.5})
    runner.epoch, runner.full = 2, True
    with pytest.raises(UserError):
        hook.after_val_epoch(runner, {'mAP': 0.6})
    assert (tmp_path / 'best_mAP_epoch_1.pth').is_file()
    runner.full = False
    hook.after_val_epoch(runner, {'mAP': 0.7})  # the same name as the last, which is not to be removed
    hook.after_val_epoch(runner, {'mAP': 0.8})
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_mAP_epoch_1.pth', 'best_mAP_epoch_2.pth']
    runner.epoch = 3
    hook.after_val_epoch(runner, {'mAP': 0.9})
    assert (tmp_path / 'best_mAP_epoch_3.pth').is_file() and not (tmp_path / 'best_mAP_epoch_2.pth').exists()


def test_of_several_figures_each_keeps_its_best(tmp_path):
    hook, runner = make_hook_and_runner(tmp_path, save_best=['mAP', 'loss'])
    for runner.epoch, metrics in enumerate([dict(mAP=0.5, loss=2.0), dict(mAP=0.6, loss=3.0), dict(mAP=0.4, loss=1.0)]):
        hook.after_val_epoch(runner, metrics)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['best_loss_epoch_2.pth', 'best_mAP_epoch_1.pth']


def loop_of(*metrics, others=None) -> SimpleNamespace:
    """A validation loop whose evaluator has metrics (built without their files), and those of further sets."""
    return SimpleNamespace(evaluator=SimpleNamespace(metrics=[metric(**each) for each in metrics]),
                           others={name: loop_of(each) for name, each in (others or {}).items()})


def metric(name: str = 'CocoMetric', **fields) -> object:
    """A metric of mmdet that has read no annotations."""
    kind = METRICS.get(name)
    built = object.__new__(kind)
    built.__dict__.update(dict(prefix=kind.default_prefix), **fields)
    return built


COCO, VOC = dict(metrics=['bbox']), dict(name='VOCMetric', metric='mAP')
OF_VOC = {'pascal_voc/mAP': 0.3, 'pascal_voc/AP50': 0.5, 'val/loss': 2.0}


@pytest.mark.parametrize(('metrics', 'figures', 'expected'), [
    ([COCO], {'coco/bbox_mAP': 0.5, 'val/loss': 2.0}, 'coco/bbox_mAP'),
    ([COCO], {'val/loss': 2.0, 'old/coco/bbox_mAP': 0.7}, None),  # nothing is detected
    ([VOC], OF_VOC, 'pascal_voc/mAP'),
    ([dict(VOC, prefix='mine')], {'mine/mAP': 0.3, 'mine/AP50': 0.5}, 'mine/mAP'),
    ([dict(COCO, classwise=True)], {'coco/red_precision': 0.1, 'coco/bbox_mAP': 0.5}, 'coco/bbox_mAP'),
    ([dict(metrics=['segm', 'bbox'])], {'coco/segm_mAP': 0.5, 'coco/bbox_mAP': 0.4}, 'coco/segm_mAP'),
    ([dict(metrics=['proposal'])], {'coco/AR@100': 0.5, 'val/loss': 2.0}, 'coco/AR@100'),
    ([COCO, VOC], {'val/loss': 2.0, 'pascal_voc/mAP': 0.0}, None),  # COCO's comes first, and found nothing
    ([dict(name='CrowdHumanMetric', metrics=['AP'])], {'crowd_human/mMR': 0.2, 'crowd_human/mAP': 0.3},
     'crowd_human/mAP'),
    ([dict(name='LVISMetric', metrics=['bbox'])], {'lvis/bbox_AP': 0.2, 'lvis/bbox_AP50': 0.3}, 'lvis/bbox_AP')])
def test_the_best_follows_what_the_evaluator_gives(metrics, figures, expected, tmp_path, caplog):
    loop = loop_of(*metrics, others=dict(old=COCO))
    hook, runner = make_hook_and_runner(tmp_path, save_best='auto', val_loop=loop)
    hook.after_val_epoch(runner, figures)
    name = f"best_{(expected or '').replace('/', '_')}_epoch_0.pth"
    assert [path.name for path in tmp_path.glob('best_*')] == ([name] if expected else [])
    assert runner.message_hub.get_info('best_score') == figures.get(expected)
    assert ('as when nothing is detected' in caplog.text) == (expected is None)


def test_a_validation_without_the_figure_has_no_best(tmp_path, caplog):
    hook, runner = make_hook_and_runner(tmp_path, save_best='coco/bbox_mAP', val_loop=loop_of(COCO))
    hook.after_val_epoch(runner, {'val/loss': 1.0})
    assert 'the validation gives no coco/bbox_mAP' in caplog.text and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"goes by coco/bbox_mAP .* it gives coco/bbox_mAP_50; set save_best='auto'"):
        hook.after_val_epoch(runner, {'coco/bbox_mAP_50': 1.0})  # misspelt
    hook, runner = make_hook_and_runner(tmp_path, save_best='coco/bbox_mAP', val_loop=loop_of(VOC))
    with pytest.raises(UserError, match=r'coco/bbox_mAP .* it gives pascal_voc/mAP'):  # of an evaluator it has not
        hook.after_val_epoch(runner, OF_VOC)
    followed = loop_of(VOC, others=dict(old=COCO))
    hook, runner = make_hook_and_runner(tmp_path, save_best='old/coco/bbox_mAP', val_loop=followed)
    hook.after_val_epoch(runner, OF_VOC)
    assert 'the validation gives no old/coco/bbox_mAP' in caplog.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize('score', [0.1, float('nan'), 'high'])
@pytest.mark.parametrize('place', ['elsewhere/best_mAP_epoch_1.pth', 'run/../elsewhere/best_mAP_epoch_1.pth', 'run/..',
                                   'run/own.pth', 'elsewhere', 'run/best_mAP_folder', 'elsewhere/secret.txt'])
def test_a_resumed_checkpoint_cannot_name_what_is_read_or_removed(place, score, tmp_path, caplog):
    for name in ('elsewhere/best_mAP_epoch_1.pth', 'elsewhere/secret.txt', 'run/own.pth', 'run/3.pth', '4.pth',
                 'run/best_mAP_folder/kept'):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    before = set(tmp_path.rglob('*'))
    hook, runner = make_hook_and_runner(tmp_path / 'run', save_best='mAP', max_keep_ckpts=1, filename_tmpl='{}.pth',
                                        info=dict(best_ckpt=f'{tmp_path}/{place}', best_score=score,
                                                  keep_ckpt_ids=['../4', 'own', 3]))
    assert 'there is no such checkpoint of this run' in caplog.text and not best(runner).exists()
    hook.after_val_epoch(runner, {'mAP': 0.5})
    assert best(runner).read_text() == '0'  # this run's own
    runner.epoch = 4
    hook._save_checkpoint(runner)
    hook.after_val_epoch(runner, {'mAP': 0.6})
    assert before - set(tmp_path.rglob('*')) == {tmp_path / 'run/3.pth'}


def test_a_run_that_goes_on_in_another_folder_leaves_the_first_alone(tmp_path):
    """Into a copy, in which its best lies too, and into an empty folder, which has its own from then on."""
    hook, runner = make_hook_and_runner(tmp_path / 'first', save_best='mAP')
    (tmp_path / 'first').mkdir()
    runner.epoch = 1
    hook.after_val_epoch(runner, {'mAP': 0.5})
    info = dict(runner.message_hub.runtime_info)
    left = {path: path.read_text() for path in (tmp_path / 'first').iterdir()}
    shutil.copytree(tmp_path / 'first', tmp_path / 'copy')
    (tmp_path / 'empty').mkdir()
    for name, value, expected in (('copy', 0.4, '1'), ('empty', 0.4, '2'), ('copy', 0.6, '2'), ('empty', 0.6, '2')):
        hook, runner = make_hook_and_runner(tmp_path / name, save_best='mAP', info=info)
        runner.epoch = 2
        hook.after_val_epoch(runner, {'mAP': value})
        assert best(runner).read_text() == expected
    assert [path.name for path in (tmp_path / 'copy').glob('best_*')] == ['best_mAP_epoch_2.pth']
    assert left == {path: path.read_text() for path in (tmp_path / 'first').iterdir()}


def test_a_best_by_another_figure_is_not_compared(tmp_path):
    """The run before went by COCO's figure; this one's evaluator gives VOC's."""
    hook, runner = make_hook_and_runner(tmp_path, save_best='coco/bbox_mAP')
    hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.9})
    hook, runner = make_hook_and_runner(tmp_path, save_best='auto', val_loop=loop_of(VOC),
                                        info=dict(runner.message_hub.runtime_info))
    runner.epoch = 1
    hook.after_val_epoch(runner, OF_VOC)
    assert best(runner).read_text() == '1' and runner.message_hub.get_info('best_score') == 0.3


def validated(folder: Path, seen: list[tuple], info: dict | None = None, first: int = 1, **fields) -> tuple[
        WholeCheckpointHook, SimpleNamespace]:
    """The hook after validations, each of new mAP and the share of the old domain that is left (None without keep)."""
    hook, runner = make_hook_and_runner(folder, info, **{'save_best': 'mAP', 'rule': 'greater', **fields})
    run = object.__new__(StagedRun)
    run.rolled_back, run.plan = False, SimpleNamespace()
    runner._train_loop = SimpleNamespace(staged=run)
    for runner.epoch, (figure, share) in enumerate(seen, first):
        run.kept = None if share is None else (share, 0.95)
        hook.after_val_epoch(runner, {'val/loss': 1.0} if figure is None else {'mAP': figure})
    return hook, runner


@pytest.mark.parametrize(('seen', 'bests'), [
    ([(0.5, 0.97), (0.6, 0.94), (0.55, 0.95), (0.9, 0.1), (0.55, 0.99)], '11333'),  # those that keep less never are
    ([(0.5, 0.5), (0.4, 0.6), (0.9, 0.55), (0.1, 0.96), (0.2, 0.95), (0.9, 0.9)], '122455'),  # until one keeps enough
    ([(0.5, 0.5), (0.6, 0.5), (0.4, 0.5)], '122'),  # as much kept: the better on the new images
    ([(0.5, None), (0.6, None), (0.55, None)], '122')])
def test_the_best_is_the_best_that_keeps_enough(seen, bests, tmp_path, caplog):
    """Also where the run is stopped after any validation and resumed: all it knows then is what a checkpoint holds."""
    caplog.set_level(logging.INFO)
    for stop in range(1, len(seen) + 1):
        folder = tmp_path / f'{stop}'
        folder.mkdir()
        _, runner = validated(folder, seen[:stop])
        assert best(runner).read_text() == bests[stop - 1]
        assert len(list(folder.glob('best_*'))) == 1
        hub = MessageHub(f'resumed {folder}')
        hub.load_state_dict(runner.message_hub.state_dict())
        _, runner = validated(folder, seen[stop:], dict(hub.runtime_info), stop + 1)
        assert best(runner).read_text() == bests[-1]
    too_little = [share for _, share in seen if share is not None and share < 0.95]
    assert all(f'{share:.1%} of the old domain is left, at least 95% is asked: ' in caplog.text for share in too_little)
    assert ('best until one keeps enough' in caplog.text) == (seen[0][1] == 0.5)


def test_the_hook_and_the_verdict_mean_the_same_checkpoint(tmp_path):
    """Whatever comes, also by a figure that must be low."""
    draw = random.Random(0)
    for trial in range(40):
        rule = draw.choice(['greater', 'less'])
        seen = [(draw.choice([0.1, 0.2, 0.3, 0.4]), draw.choice([0.5, 0.7, 0.9, *[0.96] * (trial % 3)]))
                for _ in range(6)]
        (tmp_path / f'{trial}').mkdir()
        _, runner = validated(tmp_path / f'{trial}', seen, rule=rule)
        record = Run(metric='mAP', best=['mAP', rule], keep=dict(images=1), pretrained={'old/coco/bbox_mAP': 1.0},
                     validations=[Validation(epoch=epoch, iter=epoch, stage='', metrics={
                         'mAP': figure, 'old/coco/bbox_mAP': share}) for epoch, (figure, share) in enumerate(seen, 1)])
        assert best(runner).read_text() == f'{kept(record).epoch}', seen


@pytest.mark.parametrize(('share', 'expected'), [(0.97, '1'), ('much', '2'), (float('nan'), '2'), (None, '2')])
def test_a_share_no_run_can_have_kept_is_none(share, expected, tmp_path):
    """What a resumed checkpoint says of its best; one of a run without ``keep`` says nothing, and is replaced."""
    _, runner = validated(tmp_path, [(0.9, 0.97)])
    info = {**runner.message_hub.runtime_info, 'best_kept': share}
    _, runner = validated(tmp_path, [(0.5, 0.2)], info, 2)
    assert best(runner).read_text() == expected


def test_a_run_that_goes_on_without_keep_forgets_what_its_best_keeps(tmp_path):
    _, runner = validated(tmp_path, [(0.5, 0.97)])
    _, runner = validated(tmp_path, [(0.6, None)], dict(runner.message_hub.runtime_info), 2)
    assert best(runner).read_text() == '2' and 'best_kept' not in runner.message_hub.runtime_info


def test_a_validation_that_finds_nothing_is_no_best_by_what_it_keeps(tmp_path):
    _, runner = validated(tmp_path, [(None, 1.0), (float('nan'), 0.9), (0.2, 0.5)])
    assert best(runner).read_text() == '3' and runner.message_hub.get_info('best_kept') == 0.5


def test_keep_without_a_measure_of_it_is_said(tmp_path, caplog):
    hook, runner = validated(tmp_path, [])
    runner._train_loop.staged.plan.keep, runner._train_loop.staged.kept = object(), None
    hook.after_val_epoch(runner, {'mAP': 0.5})
    assert 'the best checkpoint goes by the new images alone' in caplog.text and best(runner).is_file()


def test_configs_may_call_it_as_mmengine_does():
    hooks = Config.fromfile('configs/mgdet_nano_staged.py').default_hooks
    assert hooks.checkpoint.type == 'WholeCheckpointHook'
    for name in ('WholeCheckpointHook', 'CheckpointHook'):
        assert type(HOOKS.build(dict(hooks.checkpoint, type=name, _scope_='mmdet'))) is WholeCheckpointHook
    assert type(HOOKS.build(dict(type='mmengine.CheckpointHook', _scope_='mmdet'))) is CheckpointHook


def test_configs_of_earlier_runs_train(tmp_path):
    """They name two hooks."""
    runner = make_runner(tmp_path, default_scope='mmdet', default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', interval=1), best_checkpoint=dict(type='BestCheckpointHook')))
    assert any(type(hook) is WholeCheckpointHook for hook in runner.hooks)
    runner.train()
    assert (tmp_path / 'epoch_4.pth').is_file()

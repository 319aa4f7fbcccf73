"""A run that was stopped anywhere and resumed equals the run that was not, bit for bit."""
import csv
import json

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.checkpoint_check import check_weights
from mgdet_plugin.engine.resume_choice import Resumer
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, NECK, SnapshotHook, differences, newest, run, staged_config, state_of

EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.02)
BY_ITERATION = dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=-1)
UNTIL = dict(metric='table/value', patience=1, min_epochs=1)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


class Case:
    """One config, its uninterrupted run made once, and runs stopped at moments of it and resumed to compare with it."""

    def __init__(self, folder, cfg, moments):
        self.folder, self.cfg = folder, cfg
        self.stopped = SnapshotHook(folder, moments)
        run(cfg, folder / 'whole', hooks=[self.stopped])
        self.whole = state_of(newest(folder / 'whole'))
        self.results = (folder / 'whole' / 'results.csv').read_text()

    def resumed(self, *kill, **kwargs):
        """Where the final states and results of a stopped and resumed run and of the whole one differ."""
        work_dir = self.stopped.copy(*kill, self.folder / '-'.join(map(str, (
            'resumed', *kill, len(list(self.folder.iterdir()))))))
        before = newest(work_dir)['meta']['iter']
        resumed = run(self.cfg, work_dir, resume=True, **kwargs)
        assert before < resumed.iter or kill[0] != 'iter'
        return differences([state_of(newest(work_dir)), (work_dir / 'results.csv').read_text()],
                           [self.whole, self.results])


BY_EPOCH = [
    ('iter', 1),  # in the first epoch
    ('iter', 2), ('iter', 3), ('iter', 7), ('iter', 11),  # at the end of an epoch, within stages 1, 2 and 3
    ('epoch', 1), ('epoch', 2), ('epoch', 4),  # trained, not validated: within a stage and on both edges
    ('val', 1), ('val', 2), ('val', 3), ('val', 4), ('val', 5),
]
BY_METRIC = [('epoch', 1), ('val', 1), ('epoch', 2), ('val', 2), ('epoch', 3), ('val', 3), ('epoch', 4), ('val', 4)]
BY_PLATEAU = [('iter', 7), ('epoch', 3), ('val', 3), ('epoch', 4)]
ACCUMULATED = [('iter', 2), ('iter', 3), ('epoch', 2)]


@pytest.fixture(scope='module')
def by_epoch(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('by_epoch')
    return Case(folder, staged_config(folder, data, [HEAD, dict(NECK, restart_ema=True), FULL],
                                      custom_hooks=[EMA, BY_ITERATION]), BY_EPOCH)


@pytest.fixture(scope='module')
def by_metric(tmp_path_factory, data):
    """Stage 1 ends by its metric after 2 of 4 epochs and goes back to its best, stage 2 after 2 of 3."""
    folder = tmp_path_factory.mktemp('by_metric')
    stages = [dict(HEAD, epochs=4, until=UNTIL, restore_best=True), dict(NECK, epochs=3, until=UNTIL),
              dict(FULL, epochs=1)]
    cfg = staged_config(folder, data, stages, custom_hooks=[EMA])
    cfg.val_evaluator = dict(type='TableMetric', values=(0.5, 0.4, 0.2, 0.1, 0.3))
    case = Case(folder, cfg, BY_METRIC)
    assert case.whole['epoch'] == 5  # 2 + 2 + 1
    assert [entry['epochs'] for entry in case.whole['mgdet']['history']] == [2, 2]
    return case


@pytest.fixture(scope='module')
def by_plateau(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('by_plateau')
    stage = dict(HEAD, epochs=6, schedule='plateau', warmup_epochs=0, plateau=dict(
        metric='table/value', factor=0.5, patience=2))
    cfg = staged_config(folder, data, [stage], custom_hooks=[EMA, BY_ITERATION])
    cfg.val_evaluator = dict(type='TableMetric', values=(0.5, 0.4, 0.5, 0.2, 0.1, 0.3))
    return Case(folder, cfg, BY_PLATEAU)


@pytest.fixture(scope='module')
def accumulated(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('accumulated')
    return Case(folder, staged_config(folder, data, [HEAD, NECK], custom_hooks=[BY_ITERATION], **{
        'optim_wrapper.accumulative_counts': 2, 'train_dataloader.batch_size': 3}), ACCUMULATED)


@pytest.mark.parametrize('kill', BY_EPOCH)
def test_resumed_equals_uninterrupted(by_epoch, kill):
    assert by_epoch.resumed(*kill) == []


@pytest.mark.parametrize('kill', BY_METRIC)
def test_resumed_equals_uninterrupted_around_edges_by_metric(by_metric, kill):
    assert by_metric.resumed(*kill) == []


def test_leaving_the_random_state_out_is_noticed(by_epoch):
    """The control: without the random state the comparison must fail."""
    def without(cfg):
        cfg.default_hooks.pop('random_state')
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='ForgetfulHook')]

    assert any('state_dict' in each for each in by_epoch.resumed('val', 3, change=without))


def test_the_resumed_run_takes_the_seed_of_its_checkpoint(by_epoch):
    """Order of the images and augmentation follow the seed: another one in the config would change both."""
    def other_seed(cfg):
        cfg.randomness = dict(seed=77)

    assert by_epoch.resumed('iter', 7, change=other_seed) == []


def test_workers_do_not_matter(by_epoch, data, tmp_path):
    """With two persistent workers, and stopped: the same run as with none."""
    def workers(cfg):
        for split in ('train', 'val'):
            cfg[f'{split}_dataloader'].update(num_workers=2, persistent_workers=True)

    run(by_epoch.cfg, tmp_path / 'workers', kill=('iter', 7), change=workers)
    run(by_epoch.cfg, tmp_path / 'workers', resume=True, change=workers)
    assert differences(state_of(newest(tmp_path / 'workers')), by_epoch.whole) == []


@pytest.mark.parametrize('kill', BY_PLATEAU)
def test_a_rate_that_fell_stays_where_it_was(by_plateau, kill):
    """The metric is best at once; the rate falls after the third and the fifth validation, of six."""
    assert by_plateau.whole['mgdet']['fallen'] == pytest.approx(0.25)
    rates = [float(row['bbox_head_lr']) for row in csv.DictReader(by_plateau.results.splitlines())]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5])
    assert by_plateau.resumed(*kill) == []


@pytest.mark.parametrize('kill', ACCUMULATED)
def test_gradient_accumulation(accumulated, kill):
    """Three iterations an epoch, two a step: the rest steps at the epoch's end; gradients that wait are saved."""
    assert accumulated.whole['iter'] == 12
    assert accumulated.resumed(*kill) == []


def test_finished_stage_goes_on_to_the_next(data, tmp_path):
    """--resume on a finished stage of a one-run config: the next one begins."""
    cfg = staged_config(tmp_path, data, [HEAD, NECK])
    first = run(cfg, tmp_path / 'run', change=lambda cfg: cfg.train_cfg.update(max_epochs=2))
    assert first.epoch == 2
    second = run(cfg, tmp_path / 'run', resume=True)
    assert second.epoch == 4
    assert newest(tmp_path / 'run')['mgdet']['stage'] == 1


def test_checkpoint_without_a_record_is_resumed_by_the_plan(data, tmp_path):
    """A checkpoint from before there were records: the stage follows from its epoch."""
    cfg = staged_config(tmp_path, data, [HEAD, NECK])
    run(cfg, tmp_path / 'run', kill=('val', 3))
    path = tmp_path / 'run' / 'epoch_3.pth'
    checkpoint = torch.load(path)
    for key in ('mgdet', 'random_state'):
        del checkpoint[key]
    torch.save(checkpoint, path)
    runner = run(cfg, tmp_path / 'run', resume=True)
    assert runner.epoch == 4
    record = newest(tmp_path / 'run')['mgdet']
    assert (record['stage'], record['first_epoch'], record['first_iter']) == (1, 2, 4)


def test_another_batch_size_trains_every_epoch_and_keeps_the_schedule(data, tmp_path):
    """Eight images in batches of 8, then of 2: no epoch is skipped, and the last rate is the cosine's end."""
    cfg = staged_config(tmp_path, data, [HEAD, NECK], custom_hooks=[BY_ITERATION],
                        **{'train_dataloader.batch_size': 2, 'train_cfg.val_begin': 100})
    run(cfg, tmp_path / 'run', kill=('epoch', 3))
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'epoch_3.pth'))

    def larger(cfg):
        cfg.train_dataloader.batch_size = 8

    runner = run(cfg, tmp_path / 'run', resume=True, change=larger)
    assert (runner.epoch, runner.iter) == (4, 3 * 4 + 1)
    [scheduler] = runner.param_schedulers
    assert scheduler.rates(runner.iter)[1] == pytest.approx(1e-7)
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'iter_11.pth'))
    with pytest.raises(UserError, match='made after 3 of 4 iterations of an epoch, and an epoch has 1 now'):
        run(cfg, tmp_path / 'run', resume=True, change=larger)


def test_a_run_that_ended_early_is_over(data, tmp_path):
    """The last stage ends by its metric between two checkpoints: the end is saved, and resuming trains nothing."""
    cfg = staged_config(tmp_path, data, [dict(HEAD, epochs=6, until=UNTIL)])
    cfg.val_evaluator = dict(type='TableMetric', values=(0.5, 0.4))
    cfg.default_hooks.checkpoint.interval = 5
    assert run(cfg, tmp_path / 'run').epoch == 2
    saved = newest(tmp_path / 'run')
    assert saved['meta']['epoch'] == 2 and saved['mgdet']['ended'] and 'optimizer' in saved
    runner = run(cfg, tmp_path / 'run', resume=True)
    assert (runner.epoch, runner.iter) == (2, 4)


def test_a_cap_counts_for_iterations_too(data, tmp_path):
    """CheckpointHook saves the last iteration by max_iters."""
    cfg = staged_config(tmp_path, data, [HEAD, NECK], **{'train_cfg.val_begin': 100})
    cfg.train_cfg.max_epochs = 1
    cfg.custom_hooks = [dict(type='CheckpointHook', by_epoch=False, interval=100)]
    runner = run(cfg, tmp_path / 'run')
    assert runner.max_iters == 2 and (tmp_path / 'run' / 'iter_2.pth').is_file()


def test_another_stages_run_is_not_resumed(data, tmp_path):
    """One work folder for all stage configs, and --resume: the next stage is another run."""
    run(staged_config(tmp_path, data, [HEAD]), tmp_path / 'run')
    with pytest.raises(UserError, match=r"made in stage 'head', and stage 1 of the plan is 'neck'.*load_from"):
        run(staged_config(tmp_path, data, [NECK]), tmp_path / 'run', resume=True)


def test_other_groups_are_refused(data, tmp_path):
    run(staged_config(tmp_path, data, [HEAD]), tmp_path / 'run', kill=('val', 1))
    with pytest.raises(UserError, match='has 3 groups of parameters and the plan makes 4'):
        run(staged_config(tmp_path, data, [dict(HEAD, lr_mult={'backbone.conv1': 0.5})]), tmp_path / 'run', resume=True)


def test_a_plan_that_ends_with_the_head_can_be_resumed(data, tmp_path):
    """The run's own stages are no history of its weights: everything first, the head last, is no skipped level."""
    cfg = staged_config(tmp_path, data, [FULL, HEAD], **{'train_cfg.val_begin': 100})
    cfg.plan = dict(start='full', allow=['mixing-while-frozen'])
    run(cfg, tmp_path / 'run', kill=('epoch', 3))
    cfg.load_from, cfg.resume = str(tmp_path / 'run' / 'epoch_3.pth'), True
    check_weights(cfg)
    cfg.resume = False
    with pytest.raises(UserError, match='skipped-level'):
        check_weights(cfg)


def test_the_files_of_an_older_run_in_the_folder_are_passed_over(data, tmp_path):
    """Started anew in a used folder and stopped: the newest of *this* run, not the old one's later epochs."""
    cfg = staged_config(tmp_path, data, [HEAD, NECK], **{'train_cfg.val_begin': 100})
    run(cfg, tmp_path / 'run')
    run(cfg, tmp_path / 'run', kill=('epoch', 1))
    assert len(list((tmp_path / 'run').glob('epoch_*.pth'))) == 4
    chosen, problems = Resumer(Config(json.loads(json.dumps(cfg.to_dict())))).newest(tmp_path / 'run')
    assert chosen == tmp_path / 'run' / 'epoch_1.pth' and problems == []
    assert torch.load(chosen)['mgdet']['run'] != torch.load(tmp_path / 'run' / 'epoch_4.pth')['mgdet']['run']

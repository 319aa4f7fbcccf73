"""What people reported of other trainers that fine-tune in stages, one thread a test; each test shows its failure, too.

Two kinds of runs: a detector at a sixteenth of its width through the guide's three stages, made once, and a toy of
three parts whose runs take a fraction of a second.
"""
from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import CosineAnnealingLR, DefaultOptimWrapperConstructor
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine import StagedLR, StagedOptimWrapperConstructor, StagedUnfreezeHook
from mgdet_plugin.engine.staged_run import StagedRun
from mgdet_plugin.plan.freezing import freeze, hold
from mgdet_plugin.plan.plan import Stage, build_plan
from mgdet_plugin.plan.progress import Progress
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, NECK, STEPS, run, staged_config

State = dict[str, Tensor]
_NUMBERS = itertools.count()

TOY_HEAD = dict(name='head', epochs=2, train=['bbox_head'], lr=1e-2)
TOY_NECK = dict(name='neck', epochs=2, freeze_level=1, lr=1e-2)
TOY_FULL = dict(name='full', epochs=2, freeze_level=0, lr=1e-2)
TOY_STAGES = (TOY_HEAD, TOY_NECK, TOY_FULL)


class Toy(BaseModel):
    """Three parts as a detector has; the loss is the mean square of what comes out."""

    def __init__(self, backbone: nn.Module | None = None, channels: int = 4) -> None:
        super().__init__()
        self.backbone = block(3, channels) if backbone is None else backbone
        self.neck = block(channels, 4)
        self.bbox_head = nn.Conv2d(4, 2, 1)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        features = self.backbone(inputs)
        out = self.bbox_head(self.neck(features[-1] if isinstance(features, tuple) else features))
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """A convolution with a normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def resnet(**fields: Any) -> ResNet:
    """Two stages of mmdet's ResNet-18, eight channels out."""
    return ResNet(18, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1, ),
                  norm_eval=False, **fields)


@dataclass
class Step:
    """What an iteration began and ended with: name -> tensor, buffers included, 'steps' the counter of the average."""
    stage: int
    trains: frozenset[str]
    held: frozenset[str]
    rates: dict[str, float]
    before: State
    average_before: State
    after: State = field(default_factory=dict)
    average_after: State = field(default_factory=dict)


class Recorder(Hook):
    """Look at a run before and after every iteration, after every other hook."""
    priority = 100

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        model = getattr(runner.model, 'module', runner.model)
        staged = next(hook for hook in runner.hooks if isinstance(hook, StagedUnfreezeHook))
        self.steps.append(Step(
            staged.progress.stage, trained(model),
            frozenset(name for name, module in model.named_modules()
                      if isinstance(module, _NormBase) and not module.training),
            {group['name']: group['lr'] for group in runner.optim_wrapper.param_groups if 'name' in group},
            state_of(model), average_of(runner)))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.steps[-1].after = state_of(getattr(runner.model, 'module', runner.model))
        self.steps[-1].average_after = average_of(runner)


def trained(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that train."""
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def state_of(model: nn.Module) -> State:
    """A copy of a state dict."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def average_of(runner: Runner) -> State:
    """A copy of the moving average with its counter; empty without one."""
    averages = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
    return {key.removeprefix('module.'): value for each in averages for key, value in state_of(each).items()}


def changed(one: State, other: State) -> set[str]:
    """Names of tensors that are not bit-equal."""
    assert one.keys() == other.keys()
    return {key for key in one if not torch.equal(one[key], other[key])}


def norm_parts(state: State, part: str) -> set[str]:
    """Names of the normalisation layers of a part."""
    return {key.removesuffix('.running_var') for key in state
            if key.startswith(f'{part}.') and key.endswith('.running_var')}


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether tensors are bit-equal."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


@dataclass
class Run:
    """A run, what was seen of it and the lines of its log."""
    runner: Runner
    recorder: Recorder
    lines: list[str]

    @property
    def steps(self) -> list[Step]:
        return self.recorder.steps


def toy_run(folder: Path, stages: Sequence[dict] = TOY_STAGES, model: nn.Module | None = None,
            hooks: Sequence[dict | Hook] = (), values: Sequence[float] = (), resume: Path | None = None,
            launcher: str = 'none', verify: bool = True, **cfg: Any) -> Run:
    """Build the runner of a toy, two iterations an epoch, without training it yet.

    Args:
        folder: Where it saves after every epoch.
        stages: The plan.
        model: The toy.
        hooks: More hooks.
        values: What its metric ``table/value`` says after each epoch.
        resume: A checkpoint to go on from.
        launcher: Of mmengine.
        verify: Of the hook.
        **cfg: More of the config.
    """
    if model is None:
        torch.manual_seed(0)
        model = Toy()
    draw = torch.Generator().manual_seed(0)
    images = [dict(inputs=torch.rand(3, 8, 8, generator=draw) + 1) for _ in range(4 * STEPS)]
    validation: dict[str, Any] = {} if not values else dict(
        val_cfg=dict(type='ValLoop'), val_dataloader=DataLoader(images[:2], batch_size=2),
        val_evaluator=dict(type='TableMetric', values=values))
    recorder, lines, listener = Recorder(), [], logging.Handler()
    listener.emit = lambda record: lines.append(record.getMessage())
    runner = Runner(
        model=model, work_dir=str(folder),
        train_cfg=dict(type='StagedTrainLoop'), train_dataloader=DataLoader(images, batch_size=4),
        optim_wrapper=dict(type='OptimWrapper', constructor='StagedOptimWrapperConstructor',
                           optimizer=dict(type='Adam')),
        param_scheduler=[dict(type='StagedLR')],
        default_hooks=dict(
            staged_unfreeze=dict(type='StagedUnfreezeHook', verify=verify), random_state=dict(type='RandomStateHook'),
            checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=-1)),
        custom_hooks=[*hooks, recorder], load_from=resume and str(resume), resume=resume is not None,
        launcher=launcher, default_scope='mmdet', randomness=dict(seed=0),
        experiment_name=f'toy{next(_NUMBERS)}', cfg=Config(dict(stages=list(map(dict, stages)), **cfg)), **validation)
    runner.logger.addHandler(listener)
    return Run(runner, recorder, lines)


def train_toy(folder: Path, *args: Any, **kwargs: Any) -> Run:
    """A run of :func:`toy_run`, trained."""
    done = toy_run(folder, *args, **kwargs)
    done.runner.train()
    return done


@dataclass
class DetectorRun:
    """The three stages of the guide, two epochs each."""
    cfg: Config
    runner: Runner
    steps: list[Step]

    def model(self, state: State) -> nn.Module:
        """The detector with a state, to be evaluated."""
        model = MODELS.build(self.cfg.model)
        model.load_state_dict(state)
        return model.eval()

    def stage(self, index: int) -> list[Step]:
        """The iterations of a stage."""
        return [step for step in self.steps if step.stage == index]


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> DetectorRun:
    """A detector's run with mmengine's Runner, whose loop calls ``model.train()`` in every epoch."""
    folder = tmp_path_factory.mktemp('reported')
    cfg = staged_config(folder, make_dataset(folder / 'data'), (HEAD, NECK, FULL),
                        **{'model.neck.type': 'MultiGridNeck'})
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    recorder = Recorder()
    runner = run(cfg, folder / 'run', hooks=[recorder])
    made = DetectorRun(cfg, runner, recorder.steps)
    assert [len(made.stage(index)) for index in range(3)] == [2 * STEPS] * 3
    return made


@pytest.fixture
def images() -> Tensor:
    """What outputs are compared on."""
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def without_holding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off what holds frozen statistics after the loop's ``model.train()``."""
    monkeypatch.setattr(StagedUnfreezeHook, 'before_train_iter', Hook.before_train_iter)


def test_lightning_15062_frozen_statistics_drift_over_epochs(detector, images, tmp_path, monkeypatch):
    """Seen: a backbone frozen with train_bn=False evaluates differently after training, its running statistics moved
    with every epoch's ``train()``. Must hold: bit-equal statistics and outputs after whole epochs of a real runner."""
    start, end = detector.stage(0)[0].before, detector.stage(1)[-1].after
    convolutions = sum(isinstance(each, nn.Conv2d) for each in detector.model(start).backbone.modules())
    assert len(norm_parts(start, 'backbone')) == convolutions > 0
    assert not {key for key in changed(start, end) if key.startswith('backbone.')}
    assert equal(detector.model(start).backbone(images), detector.model(end).backbone(images))
    for step in detector.stage(0) + detector.stage(1):
        assert norm_parts(start, 'backbone') <= step.held

    without_holding(monkeypatch)  # as Lightning: requires_grad alone, after the loop's model.train()
    drifted = train_toy(tmp_path / 'drifted', [TOY_NECK], verify=False)
    moved = {key for key in changed(drifted.steps[0].before, drifted.steps[-1].after) if key.startswith('backbone.')}
    assert moved == {'backbone.1.running_mean', 'backbone.1.running_var', 'backbone.1.num_batches_tracked'}
    with pytest.raises(UserError, match=r"stage 'neck': 3 of 6 frozen tensors changed \(backbone\.1\.running_mean"):
        train_toy(tmp_path / 'proven', [TOY_NECK])


def test_ultralytics_9391_frozen_layers_give_other_outputs(detector, images):
    """Seen: with ``freeze=22`` the backbone cut out of the trained model gives other outputs on the same image,
    running_mean and running_var of its BN differ. Must hold: while all later layers train, the first ones' statistics
    and their outputs in train mode stay bit-equal."""
    frozen_part = ('backbone.conv1', 'backbone.conv_res_block1', 'backbone.conv_res_block2')
    stage = Stage.build(dict(name='later', epochs=1, lr=1e-3, freeze=frozen_part))
    model = detector.model(detector.steps[0].before)
    first = nn.Sequential(*(model.get_submodule(name) for name in frozen_part))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    frozen = freeze(model, stage)
    before, outputs = state_of(model), first(images)
    for _ in range(3):
        model.train()
        hold(frozen.norms.values())
        optimizer.zero_grad()
        maps = model.bbox_head(model.extract_feat(images))
        sum(level.square().mean() for level in maps).backward()
        optimizer.step()
    moved = changed(before, state_of(model))
    assert not {key for key in moved if key.startswith(tuple(f'{name}.' for name in frozen_part))}
    assert equal([first(images)], [outputs]) and not any(norm.training for norm in frozen.norms.values())
    later = {key for key in before if not key.startswith(tuple(f'{name}.' for name in frozen_part))}
    assert {key for key in later if key.endswith(('running_mean', 'running_var', '.weight'))} <= moved

    model.train()  # as ultralytics: nothing is held
    assert not equal([first(images)], [outputs])
    assert {key for key in changed(before, state_of(model)) if 'conv_res_block2' in key and 'running' in key}


def test_fts_5_statistics_move_only_once_thawed(detector, tmp_path, monkeypatch):
    """Seen: phase 0 trained the BN of every part, scheduled or not (129 tensors where 23 were scheduled). Must hold:
    what trains is what the stage names, and a part's BN moves from the first iteration after its edge, not before,
    while that of parts still frozen rests."""
    start = detector.steps[0].before
    predict = {f'bbox_head.predict_convs.{level}.{kind}' for level in range(3) for kind in ('weight', 'bias')}
    assert detector.steps[0].trains == predict
    for part, first in (('bbox_head', 1), ('neck', 1), ('backbone', 2)):
        norms = norm_parts(start, part)
        assert norms
        for step in detector.steps:
            moved = {key.removesuffix('.running_var') for key in changed(step.before, step.after)
                     if key.startswith(f'{part}.') and key.endswith('.running_var')}
            rested = step.stage < first
            assert moved == (set() if rested else norms)
            assert norms & step.held == (norms if rested else set())
            assert {f'{norm}.weight' for norm in norms} & step.trains == (
                set() if rested else {f'{norm}.weight' for norm in norms})
    for before, after in itertools.pairwise(detector.steps):
        assert not changed(before.after, after.before)  # nor between iterations, at an edge or a train()

    without_holding(monkeypatch)
    early = train_toy(tmp_path, verify=False).steps[0]
    assert early.trains == {'bbox_head.weight', 'bbox_head.bias'}
    assert {'neck.1.running_var', 'backbone.1.running_var'} <= changed(early.before, early.after)


@pytest.fixture(scope='module')
def toy(tmp_path_factory) -> Run:
    """A toy's three stages, not interrupted."""
    return train_toy(tmp_path_factory.mktemp('toy'))


@pytest.mark.parametrize('epochs', [1, 2, 3, 4, 5])
def test_lightning_21901_resuming_freezes_thawed_modules(toy, tmp_path, epochs):
    """Seen: a run resumed after the backbone was thawed has it frozen again, with a rate in the log and no warning.
    Must hold: resumed within a stage or on its edge, exactly that stage's parameters train, and they do change."""
    resumed = train_toy(tmp_path, resume=Path(toy.runner.work_dir) / f'epoch_{epochs}.pth')
    whole = toy.steps[epochs * STEPS:]
    assert [step.trains for step in resumed.steps] == [step.trains for step in whole]
    assert [step.held for step in resumed.steps] == [step.held for step in whole]
    stage, first = epochs // 2, resumed.steps[0]
    parts = ('bbox_head', 'neck', 'backbone')[:stage + 1]
    assert {name.split('.')[0] for name in first.trains} == set(parts) and first.stage == stage
    assert first.trains <= changed(first.before, first.after)
    assert not changed(resumed.steps[-1].after, toy.steps[-1].after)


def test_lightning_21901_the_record_knows_a_stage_that_a_metric_began(tmp_path):
    """Seen: the state that says what is thawed was restored by half. Must hold: after an edge that came early, by
    metric, a resumed run is in stage 2; without the record, which is the control, it would be in stage 1 again."""
    until = dict(metric='table/value', patience=1)
    stages = [dict(TOY_HEAD, epochs=5, until=until), dict(TOY_NECK, epochs=2)]
    values = (.5, .4, .4, .4)
    whole = train_toy(tmp_path / 'whole', stages, values=values)
    assert [step.stage for step in whole.steps] == [0] * 2 * STEPS + [1] * 2 * STEPS
    path = tmp_path / 'whole' / 'epoch_3.pth'
    resumed = train_toy(tmp_path / 'resumed', stages, values=values, resume=path)
    assert [step.trains for step in resumed.steps] == [step.trains for step in whole.steps[3 * STEPS:]]
    assert {'neck.0.weight', 'bbox_head.weight'} <= resumed.steps[0].trains

    content = torch.load(path, weights_only=True)
    assert content.pop('mgdet')['stage'] == 1
    torch.save(content, tmp_path / 'forgotten.pth')
    forgetful = train_toy(tmp_path / 'forgetful', stages, values=values, resume=tmp_path / 'forgotten.pth')
    assert forgetful.steps[0].trains == {'bbox_head.weight', 'bbox_head.bias'}


def test_lightning_21901_a_backbone_that_freezes_itself_is_said_aloud(tmp_path):
    """Seen: parameters without a gradient behind a rate in the log, and no warning. Must hold: what mmdet's
    ``frozen_stages`` freezes again in every ``train()`` counts as frozen, and a line says so where a stage thaws it."""
    own = train_toy(tmp_path / 'own', [TOY_NECK, TOY_FULL], Toy(resnet(frozen_stages=1), 8))
    said = [line for line in own.lines if 'stay frozen by the model itself (frozen_stages' in line]
    assert len(said) == 1  # at the edge to the stage that trains everything, not in the one that freezes all of it
    first, last = own.steps[2 * STEPS], own.steps[-1]
    frozen = {name for name in first.before if name.startswith(('backbone.conv1.', 'backbone.bn1.',
                                                                'backbone.layer1.'))}
    assert not frozen & first.trains and not frozen & changed(first.before, last.after)
    assert {name for name in first.trains if name.startswith('backbone.layer2.')}
    weights = {name for name in frozen if name in dict(own.runner.model.named_parameters())}
    assert said[0].startswith(f'{len(weights)} parameters') and 'backbone.bn1.bias' in said[0]

    thawed = train_toy(tmp_path / 'thawed', [TOY_NECK, TOY_FULL], Toy(resnet(frozen_stages=-1), 8))
    assert not [line for line in thawed.lines if 'stay frozen' in line]
    assert weights <= thawed.steps[-1].trains


def test_fts_15_two_stages_tie_on_the_best_value(tmp_path, monkeypatch):
    """Seen: where two depths reach the same best value, the deeper one's number was put on the shallower one's
    checkpoint, and restoring it failed. Must hold: each stage has its own best value, epoch and file, and goes on
    from its own."""
    until = dict(metric='table/value', patience=2)
    stages = [dict(stage, epochs=3, until=until, restore_best=True) for stage in (TOY_HEAD, TOY_NECK, TOY_FULL)]
    done = train_toy(tmp_path, stages, values=(.3, .5, .4, .5, .5, .2, .1, .5, .5))
    files = [torch.load(tmp_path / f'stage{number}_best.pth', weights_only=True) for number in (1, 2, 3)]
    assert [file['mgdet']['stage'] for file in files] == [0, 1, 2]
    assert [file['mgdet']['best'] for file in files] == [.5, .5, .5]
    assert [file['mgdet']['best_epoch'] for file in files] == [2, 4, 8]  # of equals the first
    assert [file['meta']['epoch'] for file in files] == [2, 4, 8]
    assert [file['mgdet']['entry']['name'] for file in files] == ['head', 'neck', 'full']
    for file in files:
        assert not changed(file['state_dict'], done.steps[file['meta']['iter'] - 1].after)
    for number, edge in enumerate((3 * STEPS, 6 * STEPS)):  # the next stage goes on from this stage's best
        assert not changed(files[number]['state_dict'], done.steps[edge].before)
        assert changed(done.steps[edge - 1].after, done.steps[edge].before)

    advance = Progress.advance

    def carry_over(progress: Progress, *args: Any) -> None:
        best = progress.best
        advance(progress, *args)
        progress.best = best

    monkeypatch.setattr(Progress, 'advance', carry_over)  # one best value over all stages: the tie is no improvement
    control = train_toy(tmp_path / 'control', stages[:2], values=(.3, .5, .4, .5, .5, .2))
    assert not (tmp_path / 'control' / 'stage2_best.pth').exists() and len(control.steps) == 5 * STEPS


def test_fts_15_a_stage_without_a_best_of_its_own(tmp_path):
    """Seen: a depth that made no checkpoint went back to one of the depth before, and failed. Must hold: a stage whose
    metric was never a number says that its file is not there and goes on from its last weights."""
    until, nan = dict(metric='table/value', patience=2), math.nan
    stages = [dict(TOY_HEAD, until=until, restore_best=True), dict(TOY_NECK, until=until, restore_best=True), TOY_FULL]
    done = train_toy(tmp_path, stages, values=(.5, .4, nan, nan, .1, .1))
    edges = [line for line in done.lines if 'restored the best' in line or 'last weights' in line]
    assert len(edges) == 2 and edges[0].startswith('restored the best of the stage: epoch 1, 0.5 (stage1_best.pth)')
    assert edges[1].endswith("stage2_best.pth is not this stage's best checkpoint; the run goes on from its last "
                             'weights')
    assert not changed(done.steps[4 * STEPS - 1].after, done.steps[4 * STEPS].before)


def test_fts_15_the_best_of_another_run_in_the_folder(tmp_path):
    """Must hold, too: a stage without a best of its own does not go on from the best of a run before it."""
    until = dict(metric='table/value', patience=2)
    stages = [dict(TOY_HEAD, until=until, restore_best=True), TOY_NECK]
    train_toy(tmp_path, stages, values=(.5, .4, .4, .4))
    torch.manual_seed(1)
    again = train_toy(tmp_path, stages, Toy(), values=(math.nan, ) * 4)
    assert not changed(again.steps[2 * STEPS - 1].after, again.steps[2 * STEPS].before)


def test_mmdet3d_3059_eta_min_loses_the_multipliers(tmp_path):
    """Seen: with ``lr_mult=0.1`` for the backbone and an absolute ``eta_min`` its rate ends at that of the others.
    Must hold: the ratio of the groups is 0.1 from the first to the last iteration of every stage."""
    stages = [dict(TOY_FULL, name='all', lr_mult=dict(backbone=.1)),
              dict(TOY_FULL, lr_mult=dict(backbone=.2, neck=3.))]
    done = train_toy(tmp_path, stages)
    for step in done.steps:
        factors = stages[step.stage]['lr_mult']
        for part, rate in step.rates.items():
            assert rate / step.rates['bbox_head'] == pytest.approx(factors.get(part, 1.), rel=1e-12)
    scheduler, = done.runner.param_schedulers
    assert isinstance(scheduler, StagedLR)
    rates = dict(zip(done.steps[0].rates, scheduler.rates(4 * STEPS)))  # the end of the cosine
    assert rates == pytest.approx(dict(backbone=2e-8, neck=3e-7, bbox_head=1e-7), rel=1e-9)

    def ends(**eta_min: float) -> float:
        """The ratio of two groups at the end of mmengine's cosine."""
        slow, fast = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        optimizer = torch.optim.Adam([dict(params=[slow], lr=1e-3), dict(params=[fast], lr=1e-2)])
        cosine = CosineAnnealingLR(optimizer, T_max=8, by_epoch=False, **eta_min)
        for _ in range(8):
            optimizer.step()
            cosine.step()
        return optimizer.param_groups[0]['lr'] / optimizer.param_groups[1]['lr']

    assert ends(eta_min=1e-7) == pytest.approx(1.)  # lost
    assert ends(eta_min_ratio=1e-5) == pytest.approx(.1)


def test_mmengine_846_a_rate_key_overrides_norm_decay():
    """Seen: a custom key with ``lr_mult`` gives norms and biases below it the full weight decay again. Must hold: the
    rules for rate and for decay multiply, whichever key gives them."""
    rules = dict(norm_decay_mult=0., bias_decay_mult=.5, bias_lr_mult=2.,
                 custom_keys=dict(backbone=dict(lr_mult=.1), neck=dict(decay_mult=.25)))
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=.04))
    model = Toy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))  # a bias of its own

    def groups(constructor: Callable[..., Any]) -> dict[str, tuple[float, float]]:
        """Name of a parameter -> its rate and decay."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer = constructor(deepcopy(wrapper), deepcopy(rules))(model)
        return {names[id(parameter)]: (group['lr'], group['weight_decay'])
                for group in optimizer.param_groups for parameter in group['params'] if id(parameter) in names}

    ours, theirs = groups(StagedOptimWrapperConstructor), groups(DefaultOptimWrapperConstructor)
    assert ours == {name: pytest.approx(pair) for name, pair in {
        'backbone.0.weight': (1e-4, .04), 'backbone.0.bias': (2e-4, .02),
        'backbone.1.weight': (1e-4, 0.), 'backbone.1.bias': (1e-4, 0.),
        'neck.0.weight': (1e-3, .01), 'neck.1.weight': (1e-3, 0.), 'neck.1.bias': (1e-3, 0.),
        'bbox_head.weight': (1e-3, .04), 'bbox_head.bias': (2e-3, .02)}.items()}
    assert theirs['backbone.1.weight'] == pytest.approx((1e-4, .04))  # norm_decay_mult is gone
    assert theirs['backbone.0.bias'] == pytest.approx((1e-4, .04))  # so are the rules for biases


@pytest.fixture
def one_process_group(tmp_path, monkeypatch):
    """A process group of this process alone."""
    for key, value in dict(LOCAL_RANK='0', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1').items():
        monkeypatch.setenv(key, value)
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('one_process_group')
def test_mmdet_9899_ddp_waits_for_frozen_parameters(tmp_path, monkeypatch):
    """Seen: a frozen backbone under DDP ends in 'Expected to have finished reduction in the prior iteration'. Must
    hold: without find_unused_parameters=True the run is refused before its first iteration, in one line that names
    it; with it the plan trains, edges included."""
    refused = toy_run(tmp_path / 'refused', launcher='pytorch', find_unused_parameters=False)
    assert isinstance(refused.runner.model, MMDistributedDataParallel)
    with pytest.raises(UserError, match=r'^frozen .*set find_unused_parameters=True in the config$'):
        refused.runner.train()
    assert not refused.steps

    free = train_toy(tmp_path / 'free', [TOY_FULL], launcher='pytorch', find_unused_parameters=False)
    assert len(free.steps) == 2 * STEPS  # nothing frozen, nothing to refuse

    trains = train_toy(tmp_path / 'trains', launcher='pytorch', find_unused_parameters=True)
    for index in range(3):
        steps = [step for step in trains.steps if step.stage == index]
        moved = changed(steps[0].before, steps[-1].after)
        assert moved & dict(trains.runner.model.module.named_parameters()).keys() == steps[0].trains
        assert {name.split('.')[0] for name in moved} == {'bbox_head', 'neck', 'backbone'} - (
            {'backbone', 'neck'}, {'backbone'}, set())[index]

    monkeypatch.setattr(StagedRun, '_check_wrapper', lambda self: None)
    with pytest.raises(RuntimeError, match='Expected to have finished reduction in the prior iteration'):
        train_toy(tmp_path / 'waits', launcher='pytorch', find_unused_parameters=False)


def test_mmdet_8210_a_rate_of_zero_is_not_frozen():
    """Seen: ``lr_mult=0, decay_mult=0`` for the backbone and it is trained all the same. Must hold: a plan with such a
    rate is refused with a line that says to freeze, because statistics move without any rate."""
    with pytest.raises(UserError, match=r"stage 'full': lr_mult\['backbone'\].* got 0\.0; to hold a part .* freeze it"):
        build_plan([dict(TOY_FULL, lr_mult=dict(backbone=0.))])
    with pytest.raises(UserError, match="stage 'full': lr must be a positive number, got 0"):
        build_plan([dict(TOY_FULL, lr=0)])

    model, x = Toy(), torch.rand(4, 3, 8, 8) + 1
    optimizer = torch.optim.AdamW([dict(params=model.backbone.parameters(), lr=0., weight_decay=0.),
                                   dict(params=[*model.neck.parameters(), *model.bbox_head.parameters()])], lr=1e-2)
    before, outputs = state_of(model), model.eval().backbone(x)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(x, mode='loss')['loss'].backward()
        optimizer.step()
    moved = {key for key in changed(before, state_of(model)) if key.startswith('backbone.')}
    assert moved == {'backbone.1.running_mean', 'backbone.1.running_var', 'backbone.1.num_batches_tracked'}
    assert not equal([model.eval().backbone(x)], [outputs])


def test_mmdet_8210_a_rate_of_zero_in_the_optimizer():
    """Must hold where the thread's author wrote it, too: in ``paramwise_cfg``."""
    wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=.01))
    with pytest.raises(UserError, match='freeze'):
        StagedOptimWrapperConstructor(wrapper, dict(custom_keys=dict(backbone=dict(lr_mult=0, decay_mult=0.))))(Toy())


def test_lightning_21901_what_the_model_was_built_frozen_is_not_thawed_in_silence(tmp_path):
    """Must hold of thawing, too: mmdet's ``norm_cfg=dict(type='BN', requires_grad=False)`` freezes for good, once, when
    the model is built; a plan keeps that or says aloud that it does not."""
    model = Toy(resnet(frozen_stages=-1, norm_cfg=dict(type='BN', requires_grad=False)), 8)
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    assert 'backbone.bn1.weight' in frozen
    done = train_toy(tmp_path, [TOY_FULL], model)
    assert not frozen & done.steps[0].trains or [line for line in done.lines if 'backbone.bn1' in line]


def test_d_fine_331_restarting_the_average_has_an_effect(tmp_path):
    """Seen: the restart of the average only set a number that its decay, a closure made before, never read. Must hold:
    after the edge the average is the weights of that moment and its warmup begins anew; without the restart neither."""
    average = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=.02, gamma=10)
    edge = 2 * STEPS

    def trained_with(restart: bool) -> list[Step]:
        stages = [TOY_NECK, dict(TOY_FULL, restart_ema=restart)]
        return train_toy(tmp_path / str(restart), stages, hooks=[average]).steps

    def lag(step: Step) -> set[str]:
        """Where the average is not the weights."""
        return changed(step.before, {key: step.average_before[key] for key in step.before})

    anew, on = trained_with(True), trained_with(False)
    assert not changed(anew[edge].before, on[edge].before) and not changed(anew[edge - 1].average_after,
                                                                           on[edge - 1].average_after)
    weights = on[0].trains
    assert {name.split('.')[0] for name in weights} == {'neck', 'bbox_head'}
    assert lag(on[edge]) >= weights and not lag(anew[edge])
    assert [int(step.average_before['steps']) for step in on] == list(range(2 * edge))
    assert [int(step.average_before['steps']) for step in anew] == [*range(edge), *range(edge)]

    momentum = .98 * math.exp(-2 / 10) + .02  # of the first update that averages: large again
    for name in weights:
        expected = anew[edge].after[name].lerp(anew[edge + 1].after[name], momentum)
        torch.testing.assert_close(anew[edge + 1].average_after[name], expected)
    assert weights <= changed(anew[edge + 1].average_after, on[edge + 1].average_after)


def test_ultralytics_3138_the_average_of_frozen_weights_rests(tmp_path):
    """Must hold of the averaged weights, too, which are what checkpoints give out: frozen is bit-equal."""
    average = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=.02, gamma=10)
    done = train_toy(tmp_path, [dict(TOY_HEAD, epochs=5)], hooks=[average])
    saved = torch.load(tmp_path / 'epoch_5.pth', weights_only=True)['state_dict']
    assert changed(done.steps[0].before, saved) == {'bbox_head.weight', 'bbox_head.bias'}


def test_ultralytics_3138_forgetting_the_old_classes(detector, images):
    """Seen: after fine-tuning on 275 new images a class the model knew well is lost. Must hold: a head-only stage
    changes the six prediction tensors and nothing else, so with the old six put back the old detector is there again,
    bit for bit; after a stage that trains everything it is not."""
    old, new = detector.stage(0)[0].before, detector.stage(0)[-1].after
    predict = {key for key in old if key.startswith('bbox_head.predict_convs.')}
    assert changed(old, new) == predict and len(predict) == 6

    def outputs(state: State) -> list[Tensor]:
        """Raw maps, then boxes, scores and class probabilities."""
        model = detector.model(state)
        with torch.no_grad():
            maps = model.bbox_head(model.extract_feat(images))
            return [*maps, *model.bbox_head.decode(maps)]

    reference, put_back = outputs(old), {key: old[key] for key in predict}
    assert not equal(outputs(new), reference)
    assert equal(outputs({**new, **put_back}), reference)
    assert not equal(outputs({**detector.steps[-1].after, **put_back}), reference)

"""From the TensorFlow project's folder to a config that trains or measures, every key of its files accounted for."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mgdet_plugin.cli.prepare.init import init_command
from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import DEMO_WEIGHTS
from mgdet_plugin.engine.config_check import checked
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.report import plan_report
from mgdet_plugin.prepare.project import make_project
from mgdet_plugin.prepare.tensorflow.account import CARRIED, DIFFERS, NONE, UNKNOWN, account_lines
from mgdet_plugin.prepare.tensorflow.convert import convert
from tests.support.tensorflow_files import EVALUATION, INFERENCE, RECOMMENDED, TRAINING, write_project, write_yaml


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    root = write_project(tmp_path / 'project', DEMO_WEIGHTS)
    (root / 'configs/digits.txt').write_text('\n'.join(map(str, range(10))))
    monkeypatch.chdir(root)
    return root


def made(converted) -> Config:
    said: list[str] = []
    cfg = Config.fromfile(make_project(converted.wish, said.append, converted.recipe))
    init_default_scope('mmdet')
    return cfg


def outcomes(converted, name='train_config.yaml') -> dict[str, str]:
    account = next(entries for where, entries in converted.accounts.items() if where.endswith(name))
    return {each.key: each.outcome for each in account}


@pytest.mark.parametrize(('values', 'counts'), [
    (TRAINING, {CARRIED: 16, DIFFERS: 56}),  # from nothing, by a recipe of its own
    (TRAINING | {'resume.weights_path': 'weights/digits.h5'}, {CARRIED: 48, DIFFERS: 18, NONE: 6}),
    (RECOMMENDED, {CARRIED: 43, DIFFERS: 20}),
    (EVALUATION, {CARRIED: 14, DIFFERS: 10, NONE: 8}), (INFERENCE, {CARRIED: 7, DIFFERS: 7, NONE: 6})])
def test_every_key_is_accounted_for_and_said_once(project, values, counts):
    changes = dict(classes_path='configs/digits.txt') if values is EVALUATION else {}
    converted = convert(write_yaml(project / 'configs/train_config.yaml', values, **changes))
    found = outcomes(converted)
    assert set(found) == set(values) and {each: list(found.values()).count(each) for each in found.values()} == counts
    assert UNKNOWN not in outcomes(converted, 'darknet.yaml').values()
    text = '\n'.join(account_lines(next(iter(converted.accounts.values()))))
    assert all(len(re.findall(rf'(?<![.\w]){re.escape(key)}:\s', text)) == 1 for key in values)


def test_an_unknown_key_is_named_with_the_nearest(project):
    path = write_yaml(project / 'configs/train_config.yaml', TRAINING, **{'training.bath_size': 4, 'mine.own': 1})
    entries = {each.key: each for each in next(iter(convert(path).accounts.values()))}
    assert entries['training.bath_size'].outcome == entries['mine.own'].outcome == UNKNOWN
    assert entries['training.bath_size'].said.endswith('the nearest name is training.batch_size')


def test_the_recommended_file_becomes_three_stages_on_its_data(project, monkeypatch):
    path = write_yaml(project / 'configs/train_config.yaml', RECOMMENDED, class_weights_method='sqrt_inverse',
                      patience=4, rescale_interval=10, enhance_type='gridmask')
    cfg = made(convert(path))
    assert Path(cfg.filename).resolve() == project / 'train_config.py'
    monkeypatch.chdir('/')
    assert [len(DATASETS.build(cfg[f'{split}_dataloader'].dataset)) for split in ('train', 'val')] == [6, 6]
    assert cfg.train_dataloader.batch_size == 48 and cfg.img_scale == (416, 416) and cfg.train_cfg.val_interval == 1
    assert cfg.train_pipeline[-3] == dict(type='GridMask', prob=0.1)
    assert DATASETS.build(cfg.train_dataloader.dataset)[0]['inputs'].shape == (3, 416, 416)
    with checked(cfg):
        report, findings = plan_report(cfg)
    assert not findings and report['start'] == 'full'
    plan = Plan.from_cfg(cfg)
    assert [(each.name, each.epochs, each.freeze_level, each.lr) for each in plan.stages] == [
        ('head', 5, 2, 1e-4), ('neck', 5, 1, 1e-4), ('full', 90, 0, 1e-4)]
    assert plan.early_stopping.patience == 4 and plan.early_stopping.metric == 'val/loss'
    loss = MODELS.build(cfg.model).bbox_head.loss_module
    assert (loss.counted, loss.iou_aware_ratio, loss.iou_aware_power) == ('sqrt_inverse', 1.0, 1.5)
    assert (loss.soft_ignore_weight, loss.consensus_scale, loss.label_smoothing) == (0.5, 0.0, 0.01)
    assert cfg.model.data_preprocessor.batch_augments[0].type == 'BatchSyncRandomResize'


def test_the_example_without_weights_trains_the_full_model_from_nothing(project):
    cfg = made(convert(write_yaml(project / 'configs/train_config.yaml', TRAINING, epochs=30, initial_epoch=10)))
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].T_max == 20 and cfg.train_dataloader.batch_size == 4
    assert cfg.load_from is None and cfg.model.bbox_head.num_classes == 3
    assert cfg.model.bbox_head.in_channels == (512, 256, 128)  # the full one
    assert cfg.model.bbox_head.loss.iou_loss.type == 'DIoULoss'  # the recipe's


def map_of_the_truth(dataset, evaluator):
    """AP of a detector that finds what is there on each picture of a dataset."""
    metric = METRICS.build(evaluator)
    metric.dataset_meta = dataset.metainfo
    for each in dataset:
        sample = each['data_samples']
        found = InstanceData(bboxes=torch.tensor([one['bbox'] for one in sample.instances]).float(),
                             labels=torch.tensor([one['bbox_label'] for one in sample.instances]),
                             scores=torch.ones(len(sample.instances)))
        metric.process({}, [dict(sample.to_dict(), pred_instances=found.to_dict())])
    return metric.evaluate(len(dataset))['coco/bbox_mAP']


def test_an_evaluation_measures_what_the_weights_know(project):
    changes = dict(classes_path='configs/digits.txt', nms_method='soft', confidence_threshold=0.01, max_images=3,
                   iou_thresholds=[0.5])
    changes['evaluation.max_images'] = changes.pop('max_images')
    converted = convert(write_yaml(project / 'configs/eval_config.yaml', EVALUATION, **changes))
    cfg = made(converted)
    assert cfg.model.test_cfg.score_thr == 0.01 and cfg.model.test_cfg.nms.type == 'soft'
    assert MODELS.build(cfg.model).bbox_head.num_classes == 10
    assert cfg.test_evaluator.iou_thrs == [0.5] and cfg.test_dataloader.batch_size == 4
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    assert len(dataset) == 3 and cfg.img_scale == (608, 608)
    assert map_of_the_truth(dataset, cfg.test_evaluator) == 1  # of these three alone
    state, content = load_checkpoint(cfg.load_from)
    assert not content['meta'].get('new_classes') and all(torch.isfinite(each).all() for each in state.values())


def test_use_wbf_is_fusion_per_class(project):
    path = write_yaml(project / 'configs/eval_config.yaml', EVALUATION, classes_path='configs/digits.txt', use_wbf=True)
    assert convert(path).recipe.model['test_cfg']['nms'] == dict(
        type='wbf', iou_threshold=0.45, overlap='iou', class_agnostic=False)


def test_data_and_weights_that_are_given_count(project):
    path = write_yaml(project / 'configs/train_config.yaml', TRAINING, train_annotation='gone.txt',
                      val_annotation='gone.txt')
    wish = convert(path, data=project / 'data/a.txt', weights=DEMO_WEIGHTS, classes=Path('configs/names.txt')).wish
    assert (wish.data, wish.weights, wish.sets) == (project / 'data/a.txt', DEMO_WEIGHTS, {})
    assert wish.out == Path('train_config.py')


def test_weights_of_as_many_classes_as_are_named_keep_their_rows(project):
    assert convert(write_yaml(project / 'configs/a.yaml', RECOMMENDED)).wish.source_classes is None
    same = write_yaml(project / 'configs/a.yaml', RECOMMENDED, classes_path='configs/digits.txt')
    assert convert(same).wish.source_classes == 'configs/digits.txt'


def test_paths_are_seen_from_the_projects_root_wherever_one_is(project, tmp_path, monkeypatch):
    path = write_yaml(project / 'configs/train_config.yaml', RECOMMENDED)
    monkeypatch.chdir(tmp_path)
    converted = convert(path)
    assert converted.wish.images == project and converted.wish.weights == project / 'weights/digits.h5'
    cfg = made(converted)
    assert Path(cfg.filename).resolve() == tmp_path / 'train_config.py' and len(list(tmp_path.iterdir())) == 3
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 6


@pytest.mark.parametrize(('values', 'changes', 'cause'), [
    (TRAINING, dict(train_annotation='gone.txt'), r'data\.train_annotation is gone\.txt, which is not there'),
    (TRAINING, dict(train_annotation=None), 'names no annotation lines'),
    (TRAINING, dict(train_annotation='configs/names.txt'), 'holds no annotation lines'),
    (RECOMMENDED, dict(weights_path='gone.h5'), r'names the weights gone\.h5, which are not there'),
    (TRAINING, dict(batch_size='four'), r"training\.batch_size is 'four'; a number from 1 is needed"),
    (TRAINING, dict(batch_size=2.5), r'training\.batch_size is 2\.5; a whole number from 1'),
    (RECOMMENDED, dict(mosaic_prob=3), r'mosaic_prob is 3; a number from 0 to 1'),
    (RECOMMENDED, {'training.augmentation.enabled': 'yes'}, 'true or false is needed'),
    (RECOMMENDED, dict(enhance_type='cutmix'), 'enhance_type is .cutmix.; one of mosaic, gridmask, none'),
    (RECOMMENDED, dict(loss_normalization=['mean']), r"\['mean'\]; a list of batch, positives, grid"),
    (TRAINING, dict(class_weights='often'), 'null, auto or a list'),
    (RECOMMENDED, dict(type='rmsprop'), 'optimizer.type is .rmsprop.; one of adam, adamw, sgd'),
    (EVALUATION, dict(weights_path=None), 'weights_path names no weights of a whole model'),
    (EVALUATION, {}, r'has 10 classes, and .*names\.txt names 3'),
    (EVALUATION, dict(nms_method='matrix', classes_path='configs/digits.txt'), 'nms_method is .matrix.; one of diou'),
    (EVALUATION, dict(input_shape=[608, 416, 3], classes_path='configs/digits.txt'), 'a square with sides'),
])
def test_a_refusal_is_one_line_and_leaves_nothing(project, values, changes, cause, capsys):
    path = write_yaml(project / 'configs/my.yaml', values, **changes)
    with pytest.raises(UserError, match=cause) as raised:
        init_command(['--from-yaml', str(path)])
    assert '\n' not in str(raised.value)
    assert sorted(each.name for each in project.iterdir()) == ['configs', 'data', 'weights']


@pytest.mark.parametrize(('text', 'cause'), [
    ('a: [', 'is no valid YAML'), ('- 1', 'holds no settings'), ('a: 1', 'has no section of training'),
    ('training: {epochs: 1}\nevaluation: {batch_size: 1}', 'has several of')])
def test_a_file_of_another_kind_is_refused(tmp_path, text, cause):
    path = tmp_path / 'x.yaml'
    path.write_text(text)
    with pytest.raises(UserError, match=cause):
        convert(path)
    with pytest.raises(UserError, match='cannot be read as text'):
        convert(tmp_path / 'gone.yaml')


def test_an_inference_file_is_explained_and_nothing_is_written(project, capsys):
    assert init_command(['--from-yaml', str(write_yaml(project / 'configs/i.yaml', INFERENCE))]) == 0
    out = capsys.readouterr().out
    assert 'model = dict(' in out and 'score_thr=0.5' in out and 'draw.py CFG CKPT' in out
    assert not list(project.glob('*.py'))

"""From a folder to a config: its plan and its datasets build, from any folder; or one line and nothing written."""
from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS, DEMO_WEIGHTS
from mgdet_plugin.datasets import check_datasets
from mgdet_plugin.datasets.sources.annotated import Box, Picture
from mgdet_plugin.engine.config_check import checked
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.report import plan_report, report_without_stages
from mgdet_plugin.prepare.project import Wish, make_project
from mgdet_plugin.weights.importer import import_keras
from tests.support.annotated_sets import picture, write_lines, write_names, write_voc

COUNT = 24
DIGITS = ('7', 'owl', '3')


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A VOC set without lists of splits, whose classes are two digits and an owl."""
    folder = tmp_path_factory.mktemp('pets') / 'my set'
    pictures = [Picture(picture(folder / 'images' / f'{index}.png', (320, 240), index), tuple(
        Box(DIGITS[(index + each) % 3], (10 + index, 20, 60, 50)) for each in range(index % 3 + 1)))
        for index in range(COUNT)]
    write_voc(folder / 'annotations', pictures)
    return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> dict[str, Path]:
    """The demo's Keras file, names of its classes, a checkpoint imported from it, and its backbone alone."""
    folder = tmp_path_factory.mktemp('weights')
    names = folder / 'digits.txt'
    names.write_text('\n'.join(map(str, range(10))))
    config = CONFIGS / 'mgdet_nano_stage1.py'
    import_keras(DEMO_WEIGHTS, folder / 'all.pth', config=config, classes=names, source_classes=names)
    import_keras(DEMO_WEIGHTS, folder / 'backbone.pth', config=config, part='backbone')
    return dict(keras=DEMO_WEIGHTS, names=names, checkpoint=folder / 'all.pth', backbone=folder / 'backbone.pth')


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its content."""
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def made(data: Path, **wish: object) -> tuple[Config, list[str]]:
    said: list[str] = []
    before = tree(data)
    config = make_project(Wish(data, **wish), said.append)
    assert tree(data) == before
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    return cfg, said


def check_trains(cfg: Config, classes: tuple[str, ...]) -> None:
    """Its datasets hold every picture and box, each sample goes through its pipeline, and the preflight is content."""
    assert not [line for report in check_datasets(cfg) for line in report.lines() if 'of 3 classes' not in line]
    train, val, test = (DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val', 'test'))
    assert len(train) + len(val) + len(test) == COUNT and train.metainfo['classes'] == classes
    boxes = [each['bbox'] for dataset in (train, val, test) for info in map(dataset.get_data_info, range(len(dataset)))
             for each in info['instances']]
    assert len(boxes) == 2 * COUNT and all(box[2] - box[0] == 60 and box[1] == 20 for box in boxes)
    side = cfg.img_scale[0]
    assert train[0]['inputs'].shape[1:] == val[0]['inputs'].shape[1:] == (side, side)
    assert MODELS.build(cfg.model).bbox_head.num_classes == len(classes)


def test_whole_keras_weights_become_the_guides_stages(data, weights, here, monkeypatch):
    cfg, said = made(data, weights=weights['keras'], source_classes=str(weights['names']))
    assert Path(cfg.filename).resolve() == here / 'my_set.py'
    assert dict(cfg.val_dataloader.dataset.metainfo) == dict(classes=('3', '7', 'owl'))
    monkeypatch.chdir('/')
    check_trains(cfg, ('3', '7', 'owl'))
    with checked(cfg):
        report, findings = plan_report(cfg)
    assert not findings and [stage['name'] for stage in report['stages']] == ['head', 'neck', 'full']
    plan = Plan.from_cfg(cfg)
    assert plan.start == 'full' and [stage.epochs for stage in plan.stages] == [20, 20, 90]
    state, content = load_checkpoint(cfg.load_from)
    whole, _ = load_checkpoint(weights['checkpoint'])
    rows, known = (each['bbox_head.predict_convs.0.weight'] for each in (state, whole))
    assert torch.equal(rows[8:10], known[8:][[3, 7]]) and torch.equal(rows[:8], known[:8])
    assert content['meta']['new_classes'] == ['owl']
    text = '\n'.join(said)
    for part in ('found: Pascal VOC (24 .xml files)', '24 pictures, 48 boxes of 3 classes',
                 '15% val and 15% test taken',
                 'every box is there: my_set_data/train.json, val.json, test.json', '2 rows kept by name, 1 new'):
        assert part in text, part


def test_a_checkpoint_keeps_the_rows_of_classes_it_knows_and_old_pictures_hold_it(data, weights, here):
    picture(here / 'old' / 'a.png')
    cfg, _ = made(data, weights=weights['checkpoint'], old=Path('old'), out=Path('kept.py'))
    check_trains(cfg, ('3', '7', 'owl'))
    with checked(cfg):
        report, findings = plan_report(cfg)
    assert not findings and report['keep']['pictures'] == 1
    assert cfg.keep == dict(images=f'{here}/old/', images_used=None)
    assert cfg.load_from == f'{here}/kept_data/all.pth'
    assert load_checkpoint(cfg.load_from)[1]['meta']['new_classes'] == ['owl']
    again, _ = made(data, weights=Path(cfg.load_from), out=Path('again.py'))
    assert again.load_from == cfg.load_from  # the same classes: taken as it is
    assert sorted(tree(here / 'again_data')) == ['test.json', 'train.json', 'val.json']


def test_backbone_weights_become_the_backbone_scenario(data, weights, here):
    cfg, _ = made(data, weights=weights['backbone'])
    check_trains(cfg, ('3', '7', 'owl'))
    with checked(cfg):
        report, findings = plan_report(cfg)
    assert not findings and report['start'] == 'backbone' and cfg.load_from is None
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=str(weights['backbone']),
                                               prefix='backbone.')


def test_without_weights_the_small_model_is_trained_from_nothing(data, here):
    cfg, said = made(data)
    check_trains(cfg, ('3', '7', 'owl'))
    with checked(cfg):
        report = report_without_stages(cfg)
    assert report['start'] == 'nothing' and report['epochs'] == cfg.param_scheduler[1].T_max == 300
    assert any(line.startswith('weights: none, so the small model is trained from nothing') for line in said)


def test_the_same_data_is_split_alike_and_a_config_moves_with_its_folder(data, here):
    made(data, out=Path('one.py'))
    made(data, out=Path('two.py'))
    assert tree(here / 'one_data') == tree(here / 'two_data')
    (here / 'elsewhere').mkdir()
    for name in ('one.py', 'one_data'):
        (here / name).rename(here / 'elsewhere' / name)
    check_trains(Config.fromfile('elsewhere/one.py'), ('3', '7', 'owl'))


def test_a_single_file_and_given_splits(here):
    pictures = [Picture(picture(here / 'set' / f'{index}.png', shade=index), (Box('bee', (1, 2, 9, 8)), ))
                for index in range(8)]
    write_lines(here / 'set' / 'train.txt', pictures[:6])
    write_lines(here / 'set' / 'val.txt', pictures[6:])
    write_names(here / 'set' / 'classes.txt')
    cfg, said = made(here / 'set')
    assert len(json.loads(Path('set_data/train.json').read_text())['images']) == 6
    assert cfg.test_dataloader.dataset.ann_file == 'val.json' and cfg.train_dataloader.batch_size == 2
    assert 'note: 2 classes have no box: ant, sea cow' in said


@pytest.mark.parametrize(('wish', 'cause'), [
    (dict(data=Path('gone')), 'gone is not there'),
    (dict(out=Path('there.py')), r'there\.py is there already .* give another name by --out'),
    (dict(out=Path('taken.py')), r'taken_data is there already .* --out'),
    (dict(out=Path('my.conf.py')), r'--out my\.conf\.py: give the path of a config'),
    (dict(out=Path('no/my.py')), r'cannot write no/my\.py: there is no folder no'),
    (dict(out='inside'), r'would lie in the data'),
    (dict(old=Path('old')), r'no weights are given; give them by --weights'),
    (dict(old=Path('.'), weights='backbone'), r'--old \. holds no picture'),
    (dict(weights=Path('gone.h5')), r'gone\.h5 does not exist'),
    (dict(weights=Path('there.py')), r'there\.py is not a Keras weights file'),
    (dict(weights='scratch'), r'another neck \(128 channels.*trained from nothing'),
    (dict(classes=Path('names.txt')), r'--classes does not name 3, 7'),
    (dict(images=Path('gone')), r'--images gone is no folder'),
    (dict(form='coco'), r'Looked for coco: .*Seen: annotations/0\.xml'),
])
def test_a_refusal_is_one_line_and_leaves_nothing(wish, cause, data, weights, here):
    Path('there.py').write_text('pass')
    Path('taken_data').mkdir()
    Path('names.txt').write_text('owl\nant\n')
    wish = dict(data=data) | wish
    wish['out'] = data / 'my.py' if wish.get('out') == 'inside' else wish.get('out', Path('my.py'))
    if wish.get('weights') == 'scratch':
        torch.save(dict(state_dict=scratch_state()), here / 'scratch.pth')
        wish['weights'] = here / 'scratch.pth'
    wish['weights'] = weights.get(wish.get('weights'), wish.get('weights'))
    before, set_before = tree(here), tree(data)
    with pytest.raises(UserError, match=cause) as raised:
        make_project(Wish(**wish), str)
    assert '\n' not in str(raised.value) and (tree(here), tree(data)) == (before, set_before)


def scratch_state() -> dict[str, torch.Tensor]:
    """Weights of the small model as it is trained from nothing."""
    init_default_scope('mmdet')
    return MODELS.build(Config.fromfile(CONFIGS / 'scratch' / 'multigrid_nano_digits.py').model).state_dict()


def test_a_failure_amid_the_work_leaves_nothing(data, weights, here):
    """The annotations are written by then."""
    broken = here / 'broken.pth'
    state, _ = load_checkpoint(weights['checkpoint'])
    state = {**state, 'backbone.conv1.bn.bias': state['backbone.conv1.bn.bias'] * torch.nan}
    torch.save(dict(state_dict=state), broken)
    with pytest.raises(UserError, match='holds NaN'):
        make_project(Wish(data, weights=broken), str)
    assert [path.name for path in here.iterdir()] == ['broken.pth']


def test_classes_choose_the_order(data, here):
    Path('names.txt').write_text('owl\n7\n3\nant\n')
    cfg, _ = made(data, classes=Path('names.txt'))
    assert cfg.classes == ('owl', '7', '3', 'ant')

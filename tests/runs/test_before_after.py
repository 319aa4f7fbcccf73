"""Two checkpoints on two test sets; the shipped weights of the demo among them."""
import json
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from mgdet_plugin.cli.training.demo import SOURCE_CONFIG
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import DEMO_WEIGHTS
from mgdet_plugin.runs.evaluation import before_after, check_same_classes, rows_text
from mgdet_plugin.weights.importer import import_keras
from tests.conftest import ROOT
from tests.support.small_run import run_tool

TARGET_CONFIG = ROOT / 'configs' / 'mgdet_nano_staged.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with the imported weights of the demo and the same with a head that sees no object."""
    folder = tmp_path_factory.mktemp('before_after')
    import_keras(DEMO_WEIGHTS, folder / 'source.pth', config=TARGET_CONFIG, classes=TARGET_CONFIG,
                 source_classes=SOURCE_CONFIG)
    state = torch.load(folder / 'source.pth')['state_dict']
    for name in state:
        if 'predict_convs' in name:
            state[name] = torch.zeros_like(state[name]) - 5
    torch.save(dict(state_dict=state), folder / 'blind.pth')
    return folder


def test_the_shipped_weights_detect_what_their_page_says(folder):
    """A model without objects reaches nothing, and neither the domains nor the checkpoints are exchanged."""
    done = run_tool('compare', TARGET_CONFIG, 'source.pth', 'blind.pth', '--old', SOURCE_CONFIG, '--json', cwd=folder)
    assert done.returncode == 0, done.stderr
    new, old = json.loads(done.stdout)
    assert [(each['test_set'], each['images']) for each in (new, old)] == [('new domain', 100), ('old domain', 100)]
    page = (DEMO_WEIGHTS.parent / 'README.md').read_text()
    ap, ap50 = (old['before'][name] for name in ('coco/bbox_mAP', 'coco/bbox_mAP_50'))
    assert f'| test set, 100 images | AP {ap:.3f}, AP50 {ap50:.3f};' in page
    assert new['before']['coco/bbox_mAP'] < 0.05
    assert old['after'].get('coco/bbox_mAP', 0.0) < 0.01


def test_weights_that_do_not_fit_are_refused(folder):
    torch.save(dict(state_dict={'other': torch.zeros(1)}), folder / 'foreign.pth')
    with pytest.raises(UserError, match=r'foreign\.pth'):
        before_after({'new': str(TARGET_CONFIG)}, str(folder / 'source.pth'), str(folder / 'foreign.pth'))


def test_table():
    rows = [dict(test_set='new', images=100, before={},
                 after={'coco/bbox_mAP': 0.0644, 'coco/bbox_mAP_50': 0.148, 'val/loss': 3.0}),
            dict(test_set='old domain', images=7, before={'coco/bbox_mAP': 0.622},
                 after={'coco/bbox_mAP': 0.3354, 'coco/bbox_mAP_50': 0.9})]
    assert rows_text(rows).splitlines() == [
        'test set    images  AP              AP50',
        'new         100     0.000 -> 0.064  0.000 -> 0.148',
        'old domain  7       0.622 -> 0.335  0.000 -> 0.900', 'AP is coco/bbox_mAP']
    rows[0] = dict(test_set='new', images=100, metrics=['pascal_voc/mAP'], before={'pascal_voc/mAP': 0.05},
                   after={'pascal_voc/mAP': 0.2, 'pascal_voc/AP50': 0.2})
    assert rows_text(rows[:1]).splitlines() == [
        'test set  images  AP              AP50', 'new       100     0.050 -> 0.200  0.000 -> 0.200',
        'AP is pascal_voc/mAP']
    assert rows_text(rows).splitlines()[0].split()[3:] == [
        'pascal_voc/mAP', 'pascal_voc/AP50', 'coco/bbox_mAP', 'coco/bbox_mAP_50']
    assert rows_text(rows).splitlines()[1].split()[-2:] == ['-', '-']  # which that evaluator does not give
    nothing = dict(test_set='new', images=2, metrics=['coco/bbox_mAP'], before={'loss': 1.0}, after={'loss': 2.0})
    assert rows_text([nothing]).splitlines()[1] == 'new       2       0.000 -> 0.000'


def test_classes_of_both_checkpoints_are_held_against_the_configs(folder):
    """As ``test.py`` does: another order is refused, other names are said."""
    state = torch.load(folder / 'source.pth')['state_dict']
    digits = list('0123456789')
    for name, classes in (('order', digits[::-1]), ('names', [*digits[:9], 'nine'])):
        torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes))), folder / f'{name}.pth')
    configs = {'new': str(TARGET_CONFIG)}
    for pair in (('source', 'order'), ('order', 'source')):
        with pytest.raises(UserError, match=r"class 0 is '9' in .*order\.pth.*the same classes in another order"):
            before_after(configs, *(str(folder / f'{name}.pth') for name in pair))
    said = []
    with patch('mgdet_plugin.runs.held_out.HeldOut.measure', lambda self, state: dict(new={})):
        before_after(configs, *(str(folder / f'{name}.pth') for name in ('source', 'names')), say=said.append)
    assert len([line for line in said if "class 9 is 'nine' in" in line]) == 1


def test_sets_of_other_classes_are_not_compared():
    def dataset(*classes):
        return SimpleNamespace(metainfo=dict(classes=classes))

    check_same_classes(dict(a=dataset('x', 'y'), b=dataset('x', 'y'), c=dataset('x', 'why')))
    for others in (dataset('y', 'x'), dataset('x'), dataset('x', 'y', 'z')):
        with pytest.raises(UserError, match=r'the test set of b has the classes .*, that of a has x, y: '):
            check_same_classes(dict(a=dataset('x', 'y'), b=others))

"""mmdet's own tools on our configs: right figures, or one line."""
import ast
import json
import pickle
import re
import sys

import pytest
import torch

from mgdet_plugin.cli.results.mmdet_tool import mmdet_tool_command
from mgdet_plugin.cli.training.test import test_command as run_test
from mgdet_plugin.common.errors import SHOW_ALL, UserError
from mgdet_plugin.common.resources import mmdet_script
from mgdet_plugin.runs.mmdet_tools import INSTEAD, NEEDS, _adapted, fault, run_tool
from tests.conftest import ROOT
from tests.support.small_run import SIDE, make_dataset, write_config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A config whose validation set is not its test set, and predictions on the latter that are all right."""
    folder = tmp_path_factory.mktemp('tools')
    data = make_dataset(folder / 'data')
    truth = json.loads((data / 'all.json').read_text())
    truth['annotations'] = [dict(each, id=each['id'] + 1)  # a match with 0 is none to pycocotools
                            for each in truth['annotations'] if all(each['bbox'][2:])]
    for name, images in (('val', truth['images'][:4]), ('test', truth['images'])):
        (data / f'{name}.json').write_text(json.dumps(dict(truth, images=images)))
    config = write_config(folder / 'cfg.py', data, work_dir=str(folder), **{
        f'{split}_{part}.ann_file': f'{data}/{split}.json'
        for split in ('val', 'test') for part in ('dataloader.dataset', 'evaluator')})
    found = []
    for image in truth['images']:
        boxes = [each for each in truth['annotations'] if each['image_id'] == image['id']]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (each['bbox'] for each in boxes)]
        found.append(dict(img_id=image['id'], ori_shape=(60, 80), pred_instances=dict(
            bboxes=torch.tensor(corners).float(), scores=torch.ones(len(boxes)),
            labels=torch.tensor([each['category_id'] for each in boxes]))))
    (folder / 'found.pkl').write_bytes(pickle.dumps(found))
    return folder, config


def test_predictions_on_the_test_set_are_judged_by_the_test_set(run, capsys):
    """mmdet's ``eval_metric`` takes the validation set's annotations; half of the images are not in them."""
    folder, config = run
    run_tool('analysis_tools/eval_metric', [str(config), str(folder / 'found.pkl')])
    metrics = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert metrics['coco/bbox_mAP'] == pytest.approx(1.0)


def call(name, *words):
    run_tool(f'analysis_tools/{name}', [*map(str, words)])


def test_predictions_that_are_all_right_are_found_right(run, tmp_path, monkeypatch):
    """A matrix of 100% on its diagonal, pictures of AP 1, and a page of curves a class."""
    folder, config = run
    shown = []
    monkeypatch.setattr('matplotlib.axes.Axes.text', lambda self, x, y, text, **_: shown.append((x, y, text)))
    call('confusion_matrix', config, folder / 'found.pkl', tmp_path / 'matrix')
    assert (tmp_path / 'matrix/confusion_matrix.png').stat().st_size > 1000
    assert [text for x, y, text in shown if x == y][:3] == ['100%'] * 3
    monkeypatch.undo()
    call('analyze_results', config, folder / 'found.pkl', tmp_path / 'results', '--topk', 2)
    [*good] = (tmp_path / 'results/good').iterdir()
    assert len(good) == 2 and all(each.stem.endswith('_1.0') for each in good)
    boxes = [dict(image_id=image['img_id'], bbox=[x1, y1, x2 - x1, y2 - y1], score=1.0, category_id=label)
             for image in pickle.loads((folder / 'found.pkl').read_bytes())
             for (x1, y1, x2, y2), label in zip(image['pred_instances']['bboxes'].tolist(),
                                                image['pred_instances']['labels'].tolist())]
    (tmp_path / 'found.json').write_text(json.dumps(boxes))
    call('coco_error_analysis', tmp_path / 'found.json', tmp_path / 'errors', '--ann', folder / 'data/test.json')
    assert len(list((tmp_path / 'errors/bbox').glob('*-allarea.png'))) == 4  # three classes, and all


def test_training_pictures_are_drawn_and_operations_counted(run, tmp_path, capsys):
    call('browse_dataset', run[1], '--not-show', '--show-interval', 0, '--output-dir', tmp_path)
    assert len(list(tmp_path.glob('*.png'))) == 8
    call('get_flops', run[1], '--num-images', 1)
    assert f'Input shape: ({SIDE}, {SIDE})' in capsys.readouterr().out


@pytest.mark.parametrize(('name', 'module', 'package'), [(name, *needed) for name, needed in NEEDS.items()])
def test_a_package_that_a_tool_needs_is_named_before_it_runs(name, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"^mmdet's {name} needs the package {package}, .*: pip install {package}"):
        run_tool(name, ['mgdet_nano_stage1'])


def test_anchors_of_our_head_are_optimized(run, tmp_path):
    run_tool('analysis_tools/optimize_anchors', [
        str(run[1]), '--algorithm', 'k-means', '--device', 'cpu', '--input-shape', str(SIDE), str(SIDE), '--iters',
        '2', '--output-dir', str(tmp_path)])
    [made] = tmp_path.glob('*.json')
    assert len(json.loads(made.read_text())) == 9


def test_categories_without_a_supercategory_get_one(run, tmp_path):
    """``coco_error_analysis`` reads it, and counts a class without objects as never found; the file stays as it is."""
    path = tmp_path / 'four.json'
    content = json.loads((run[0] / 'data/all.json').read_text())
    path.write_text(json.dumps(dict(content, categories=[*content['categories'], dict(id=3, name='absent')])))
    before = path.read_bytes()
    *rest, made = _adapted('analysis_tools/coco_error_analysis', ['a.json', 'out', '--ann', str(path)], tmp_path)
    assert rest == ['a.json', 'out', '--ann'] and path.read_bytes() == before
    content = json.loads((tmp_path / 'annotations.json').read_text())
    assert made == str(tmp_path / 'annotations.json')
    assert [each['supercategory'] for each in content['categories']] == ['red', 'green', 'blue']
    assert content['annotations'] == json.loads(before)['annotations']


def test_configs_are_found_by_name(capsys):
    mmdet_tool_command(['misc/print_config', 'mgdet_nano_stage1'])
    assert 'MultiGridHead' in capsys.readouterr().out


@pytest.mark.parametrize(('words', 'line'), [
    (['dataset_converters/pascal_voc', 'nowhere'],
     r"^mmdet's dataset_converters/pascal_voc ended with OSError: The devkit path nowhere .* "
     r'\(pascal_voc\.py, line \d+\); MGDET_TRACEBACK=1 shows the traceback, --help'),
    (['misc/split_odvg', 'a', 'b', 'c', 'd'], r'split_odvg needs the package jsonlines, .*: pip install jsonlines;'),
    (['analysis_tools/fuse_results', 'a.json'], r'models_name.*; mmdet 3\.3\.0 never reads .* blend_weights averages')])
def test_what_a_tool_raises_is_one_line(words, line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # pascal_voc makes its folder first
    with pytest.raises(UserError, match=line) as caught:
        mmdet_tool_command(words)
    assert '\n' not in str(caught.value)
    monkeypatch.setenv(SHOW_ALL, '1')
    with pytest.raises((OSError, ModuleNotFoundError, AttributeError)):
        mmdet_tool_command(words)


def test_the_pages_name_tools_that_mmdet_ships():
    pages = [*ROOT.glob('*.md'), *ROOT.glob('*/*.md')]
    named = {name for page in pages for name in re.findall(r'mmdet_tool(?:\.py)? ([a-z]\w*[/\w]*)', page.read_text())}
    assert 'analysis_tools/confusion_matrix' in named
    for name in {*named, *NEEDS, *INSTEAD}:
        assert mmdet_script(name).is_file()


def test_a_loader_s_process_and_a_bare_assertion_are_told_by_what_they_say():
    def raised(raise_it):
        with pytest.raises((RuntimeError, AssertionError)) as caught:
            raise_it()
        return fault('misc/x', caught.value)

    def of_worker():
        raise RuntimeError('Caught OSError in DataLoader worker process 0.\nTraceback:\n  ...\nOSError: gone\n')

    def bare():
        assert 1 > 2

    assert 'RuntimeError: OSError: gone (test_mmdet_tools.py' in raised(of_worker)
    assert 'AssertionError: assert 1 > 2' in raised(bare)


def test_test_s_out_must_be_a_pickle():
    with pytest.raises(UserError, match=r"--out must name a \.pkl file .*outfile_prefix=NAME\), got 'x\.json'"):
        run_test(['mgdet_nano_stage1', 'no.pth', '--out', 'x.json'])

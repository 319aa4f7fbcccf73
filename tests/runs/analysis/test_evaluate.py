"""From a config and weights to page, figures and numbers; and at the end of a run."""
import csv
import json
import re
import shutil

import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.evaluator import Evaluator

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.old_pictures import HELD_OUT_RECORD
from mgdet_plugin.runs.analysis import evaluate as module
from mgdet_plugin.runs.analysis.analysis_plots import FIGURES
from mgdet_plugin.runs.analysis.collect import truth_of
from mgdet_plugin.runs.analysis.evaluate import evaluate, evaluate_run, evaluation_text
from mgdet_plugin.runs.analysis.evaluation_record import TABLES
from tests.support.doors import CLASSES, ORDERS, case_of, reference, settled, write_pictures
from tests.support.small_run import make_dataset, write_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with pictures of red and blue, a config, weights that see them and weights that see nothing."""
    folder = tmp_path_factory.mktemp('evaluate')
    write_pictures(folder)
    case_of(folder, 'COCO', ORDERS[0], 'ours').cfg.dump(folder / 'colours.py')
    content = torch.load(folder / 'weights.pth')
    for name in content['state_dict']:
        if 'predict_convs' in name:
            content['state_dict'][name] = content['state_dict'][name] * 0 - 5
    torch.save(content, folder / 'blind.pth')
    return folder


@pytest.fixture(scope='module')
def written(folder):
    """Return what was measured and written of both weights, the same set in the place of the old domain."""
    return evaluate(str(folder / 'colours.py'), str(folder / 'weights.pth'), str(folder / 'blind.pth'),
                    str(folder / 'colours.py'), str(folder / 'out'))


def test_the_figures_are_those_of_the_metrics(folder, written):
    record = json.loads((folder / 'out/evaluation.json').read_text())
    with settled():
        _, metrics, _ = reference(folder)
    rows = {(row['domain'], row['weights']): row for row in record['summary']}
    for domain in ('new domain', 'old domain'):
        after, before = rows[domain, 'after'], rows[domain, 'before']
        for ours, theirs in (('AP', 'mAP'), ('AP50', 'mAP_50'), ('AP75', 'mAP_75'), ('AP_small', 'mAP_s')):
            assert after[ours] == pytest.approx(metrics[f'coco/bbox_{theirs}'], abs=6e-4) and after[ours] > 0.02
        assert after['AP_large'] is None and before['AP'] == before['best_f1'] == 0 and before['threshold'] is None
        assert after['images'] == 3 and after['objects'] == 6  # one more is ignored
    assert 'AP 0.000 → ' in (folder / 'out/evaluation.html').read_text()
    text = evaluation_text(written[0]).splitlines()
    assert text[0].split() == ['set', 'weights', 'images', 'AP', 'AP50', 'AP75', 'best', 'F1', 'at', 'score']
    assert text[2].startswith('new domain  after    3') and len(text) > 5


def test_every_file_is_whole_and_needs_no_other(folder, written):
    names = {path.name for path in written[1]}
    assert names == {'evaluation.html', 'evaluation.json', *(f'{name}.csv' for name in TABLES),
                     *(f'{name}.{kind}' for name in FIGURES for kind in ('png', 'svg'))}
    assert {path.name for path in (folder / 'out').iterdir()} == names and written[1][-1].name == 'evaluation.html'
    page = written[1][-1].read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count('<img') == len(FIGURES) + page.count('image/jpeg') > len(FIGURES)
    for name in FIGURES:
        assert (folder / f'out/{name}.png').read_bytes()[:4] == b'\x89PNG'
        assert b'</svg>' in (folder / f'out/{name}.svg').read_bytes()


def test_csv_has_what_json_has(folder, written):
    record = json.loads((folder / 'out/evaluation.json').read_text())
    for name in TABLES:
        with open(folder / f'out/{name}.csv', newline='') as stream:
            rows = list(csv.DictReader(stream))
        assert rows == [{key: '' if value is None else str(value) for key, value in row.items()}
                        for row in record[name]] and rows
    assert sum(row['count'] for row in record['confusion'] if (row['domain'], row['weights'], row['object']) != (
        'new domain', 'after', 'nothing') and row['domain'] == 'new domain' and row['weights'] == 'after') == 6
    assert {row['class'] for row in record['classes']} == set(CLASSES)
    assert sum(row['objects'] for row in record['pictures']) == 4 * 6


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out all figures but an empty one: they take most of the time."""
    monkeypatch.setattr('mgdet_plugin.runs.analysis.analysis_plots.draw_analysis', lambda _: dict(errors=Figure()))


def test_one_set_and_one_checkpoint(folder, undrawn):
    shutil.copy(folder / 'weights.pth', folder / 'alone.pth')
    evaluation, paths = evaluate(str(folder / 'colours.py'), str(folder / 'alone.pth'))
    assert paths[-1] == folder / 'evaluation_test/evaluation.html' and list(evaluation.domains) == ['test set']
    page = paths[-1].read_text()
    assert 'before' not in page.replace('was found before', '') and '→' not in page


@pytest.mark.parametrize(('change', 'said'), [
    (dict(checkpoint='absent.pth'), r'absent\.pth are not there'), (dict(before='absent.pth'), r'absent\.pth'),
    (dict(config='absent.py'), r'the config .*absent\.py is not there'), (dict(old='absent.py'), r'absent\.py'),
    (dict(split='train'), 'the split must be test or val'),
    (dict(split='val'), 'no val_dataloader and no val_evaluator'),
    (dict(out='weights.pth'), 'cannot make the folder')])
def test_what_is_missing_is_told_and_nothing_is_written(change, said, folder, tmp_path):
    given = dict(config='colours.py', checkpoint='weights.pth', out=str(tmp_path / 'out')) | change
    given = {key: str(folder / value) if key != 'split' else value for key, value in given.items()}
    with pytest.raises(UserError, match=said):
        evaluate(**given)
    assert not list(tmp_path.glob('out/*'))


def test_a_set_without_labels_is_refused(folder, tmp_path):
    content = json.loads((folder / 'all.json').read_text())
    (folder / 'none.json').write_text(json.dumps(dict(content, annotations=[])))
    cfg = Config.fromfile(folder / 'colours.py')
    cfg.test_dataloader.dataset.ann_file, cfg.test_dataloader.dataset.filter_cfg = 'none.json', None
    cfg.test_evaluator = dict(type='CocoMetric', ann_file=str(folder / 'none.json'))
    cfg.dump(tmp_path / 'none.py')
    with pytest.raises(UserError, match=r'no box|no object labelled'):
        evaluate(str(tmp_path / 'none.py'), str(folder / 'weights.pth'), out=str(tmp_path / 'out'))
    assert not list(tmp_path.glob('out/*'))


def test_a_picture_that_cannot_be_read_again_is_named(folder, undrawn, monkeypatch, tmp_path):
    def refuse(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr('mgdet_plugin.runs.analysis.picture_errors.read_rgb', refuse)
    _, paths = evaluate(str(folder / 'colours.py'), str(folder / 'blind.pth'), out=str(tmp_path))
    page = paths[-1].read_text()
    assert page.count('0 of 2 found') == 3 and 'image/jpeg' not in page


def test_a_pipeline_that_packs_no_number_of_a_picture(folder, tmp_path):
    cfg = Config.fromfile(folder / 'colours.py')
    cfg.test_dataloader.dataset.pipeline[-1].meta_keys = ('img_path', 'ori_shape', 'img_shape', 'scale_factor')
    cfg.dump(tmp_path / 'keys.py')
    with pytest.raises(UserError, match="packs no img_id of its pictures, got None; add 'img_id' to the meta_keys"):
        evaluate(str(tmp_path / 'keys.py'), str(folder / 'weights.pth'), out=str(tmp_path / 'out'))


def test_truth_is_that_of_the_metric_or_of_the_set(folder):
    """The file's areas count, which need not be those of boxes; without a file the set's own boxes do."""
    content = json.loads((folder / 'all.json').read_text())
    for each in content['annotations']:
        each['area'] = 7
    (folder / 'areas.json').write_text(json.dumps(content))
    case = case_of(folder, 'COCO', ORDERS[1], 'ours')
    dataset = case.loader.dataset
    infos = {each['img_id']: each for each in map(dataset.get_data_info, range(len(dataset)))}
    known = truth_of(infos, CLASSES, Evaluator(dict(type='FasterCocoMetric', ann_file=str(folder / 'areas.json'))))
    own = truth_of(infos, CLASSES, Evaluator(dict(type='CocoMetric')))
    assert {each[3] for objects in known.values() for each in objects} == {7.0}
    for image, objects in own.items():
        assert [each[:3] for each in objects] == [each[:3] for each in known[image]]
        assert all(area == box[2] * box[3] for box, _, _, area in objects)
    assert sum(crowd for objects in own.values() for _, _, crowd, _ in objects) == 1


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    """Return the folder of a staged run that ended, small and without a glimpse of learning."""
    folder = tmp_path_factory.mktemp('run')
    data = make_dataset(folder / 'data')
    write_config(folder / 'config.py', data, 'mgdet_model5_staged.py', evaluate=True, load_from='start')
    cfg = Config.fromfile(folder / 'config.py')
    cfg.model.bbox_head.loss.class_weights = None
    cfg.train_cfg.pop('max_epochs', None)
    cfg.dump(folder / 'config.py')
    from mmdet.registry import MODELS
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    (folder / 'work/keep').mkdir(parents=True)
    for name in ('best.pth', 'start.pth'):
        torch.save(dict(state_dict=state), folder / 'work' / name)
    content = json.loads((data / 'all.json').read_text())
    for image in content['images']:
        image['file_name'] = str(data / 'images' / image['file_name'])
    (folder / 'work' / HELD_OUT_RECORD).write_text(json.dumps(content))
    return folder


def words(folder, *options):
    given = ['--cfg-options', *options] if options else []
    return [str(folder / 'config.py'), '--work-dir', str(folder / 'work'), *given]


def test_a_run_that_ended_has_a_page(run_folder, undrawn, capsys):
    """Of its validation set and of the old images that were held out."""
    said = []
    evaluate_run(words(run_folder, 'keep.images=nowhere'), said.append)
    page = run_folder / 'work/evaluation/evaluation.html'
    assert said[0].startswith(f'drawing what {run_folder}/work/best.pth gets right and wrong into ')
    assert said[1:] == [f'what {run_folder}/work/best.pth detects: {page}'] and page.is_file()
    assert not capsys.readouterr().err
    record = json.loads((page.parent / 'evaluation.json').read_text())
    assert [(row['domain'], row['weights'], row['images']) for row in record['summary']] == [
        (domain, weights, 8) for domain in ('new domain', 'old domain') for weights in ('before', 'after')]
    assert 'start weights saw' in record['sources']['old domain']


def test_a_run_that_asks_for_none_has_none(run_folder, monkeypatch):
    monkeypatch.setattr(module, 'measure', None)
    said = []
    for options in ('evaluate=False', 'stages=None', 'val_evaluator=None'):
        evaluate_run(words(run_folder, options), said.append)
    evaluate_run([*words(run_folder)[:2], str(run_folder / 'elsewhere')], said.append)
    assert not said


def test_what_goes_wrong_is_one_line_and_no_failure(run_folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('out of\nmemory')

    monkeypatch.setattr(module, 'measure', fail)
    said = []
    evaluate_run(words(run_folder), said.append)
    [_, line] = said
    assert line.startswith('warning: no evaluation was written: out of memory; ') and 'evaluate=False' in line
    assert f'{run_folder}/work/best.pth --split val tries again' in line and '\n' not in line

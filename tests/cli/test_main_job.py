"""The main job end to end, each tool in a process of its own: Keras weights in, stage 1, evaluation, inference."""
import json
import re
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.runner import Runner

from mgdet_plugin.engine import mmdet_scripts
from mgdet_plugin.engine.mmdet_scripts import _beside_the_log
from tests.support.keras_files import TINY_OPTIONS, tiny, write
from tests.support.small_run import CLASSES, make_dataset, run_tool, write_config


def options(entries):
    return [f'{key}="{value}"' if isinstance(value, tuple) else f'{key}={value}' for key, value in entries.items()]


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    """Import, train an epoch, test: the folder with all they wrote and what they printed."""
    folder = tmp_path_factory.mktemp('job')
    data = make_dataset(folder / 'data')
    write(tiny('keras3_model5.keras'), folder / 'model5.keras')
    (folder / 'names.txt').write_text('\n'.join(CLASSES))
    weights = folder / 'weights' / 'model5.pth'
    weights.parent.mkdir()
    config = write_config(folder / 'stage1.py', data, load_from=str(weights), evaluate=True)
    steps = {
        'import': run_tool('import_keras', folder / 'model5.keras', weights, '--classes', folder / 'names.txt',
                           '--cfg-options', *options(TINY_OPTIONS), cwd=folder),
        'train': run_tool('train', config, '--work-dir', folder / 'run', cwd=folder),
    }
    steps['test'] = run_tool('test', config, folder / 'run' / 'epoch_1.pth', '--work-dir', folder / 'test', '--out',
                             folder / 'found.pkl', cwd=folder)
    return folder, config, steps


def test_every_step_succeeds(job):
    _, _, steps = job
    for name, step in steps.items():
        assert step.returncode == 0, (name, step.stderr[-3000:])


def test_the_run_ends_with_a_page_about_its_best_weights(job):
    folder, _, steps = job
    [_, line] = [each for each in steps['train'].stderr.splitlines() if 'evaluation' in each]
    assert line == f'what {folder}/run/best.pth detects: {folder}/run/evaluation/evaluation.html'
    assert steps['train'].stderr.splitlines()[-1] == line
    [before, after] = json.loads((folder / 'run/evaluation/evaluation.json').read_text())['summary']
    assert (before['weights'], after['weights'], after['images']) == ('before', 'after', 8)


def test_only_the_predict_convs_changed(job):
    folder, _, _ = job
    before = torch.load(folder / 'weights' / 'model5.pth')['state_dict']
    after = torch.load(folder / 'run' / 'epoch_1.pth')['state_dict']
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f'bbox_head.predict_convs.{level}.{kind}' for level in range(3) for kind in ('weight', 'bias')}


def test_the_terminal_says_what_happens_and_the_log_has_all(job):
    folder, _, steps = job
    printed = steps['train'].stdout + steps['train'].stderr
    assert re.search(r"stage 1 of 1 'head', epoch 1: trains the last layers of the head, [\d,]+ of [\d,]+ weights; "
                     'rate 0.0001, ', printed)
    assert re.search(r'train: 1 of 17 boxes skipped', printed)
    assert re.search(r'\nepoch 1 of 1: (AP \S+ \(AP50 \S+\), )?loss \S+', printed)
    assert re.search(r'\nend: 1 epoch done, \d+ s\n', printed) and '\nnext: python tools/check_run.py run; ' in printed
    assert len(printed.splitlines()) < 20 and 'Epoch(train)' not in printed and 'Traceback' not in printed
    log, = folder.glob('run/*/*.log')
    assert f'full log: {log.relative_to(folder)}\n' in printed
    written = log.read_text()
    assert 'balanced class weights of 16 objects' in written
    losses = re.findall(r' loss\w*: (\S+)', written)
    assert len(losses) >= 10 and all(np.isfinite(float(value)) for value in losses)


def test_evaluation_is_mmdets(job):
    folder, _, steps = job
    said = steps['test'].stdout
    assert re.search(r'^\d+ images in \d+ s\n  \S', said, re.MULTILINE) and 'mmengine - INFO' not in said
    assert re.search(r'^  coco/bbox_mAP_50 +[\d.]+$', said, re.MULTILINE) or 'nothing was detected' in said
    assert (folder / 'found.pkl').is_file()


def test_a_config_written_before_the_guard_had_a_room_still_works(job):
    folder, _, _ = job
    text = (folder / 'run' / 'stage1.py').read_text()
    old = re.sub(r",\s*'mgdet_plugin\.guard',?", '', text)
    assert old != text and 'DriftGuardHook' in old
    (folder / 'old.py').write_text(old)
    step = run_tool('test', folder / 'old.py', folder / 'run' / 'epoch_1.pth', '--work-dir', folder / 'old',
                    cwd=folder)
    assert step.returncode == 0, step.stderr[-3000:]


def test_resume_goes_on_from_the_checkpoint(job):
    folder, config, _ = job
    step = run_tool('train', config, '--work-dir', folder / 'run', '--resume', '--cfg-options',
                    'train_cfg.max_epochs=2', cwd=folder)
    assert step.returncode == 0, step.stderr[-3000:]
    assert 'going on from run/epoch_1.pth, 1 epoch done' in step.stdout
    first, second = (torch.load(folder / 'run' / f'epoch_{epoch}.pth') for epoch in (1, 2))
    assert second['meta']['epoch'] == 2
    changed = {key.rsplit('.', 2)[0] for key in first['state_dict']
               if not torch.equal(first['state_dict'][key], second['state_dict'][key])}
    assert changed == {'bbox_head.predict_convs'}


def test_confusion_matrix(job):
    folder, config, _ = job
    step = run_tool('mmdet_tool', 'analysis_tools/confusion_matrix', config, folder / 'found.pkl', folder / 'matrix',
                    cwd=folder)
    assert step.returncode == 0, step.stderr[-3000:]
    assert (folder / 'matrix' / 'confusion_matrix.png').is_file()


def test_inferencer(job):
    folder, config, _ = job
    inferencer = DetInferencer(model=str(config), weights=str(folder / 'run' / 'epoch_1.pth'), device='cpu',
                               show_progress=False)
    assert inferencer.visualizer.dataset_meta['classes'] == CLASSES
    found = inferencer(str(folder / 'data' / 'images' / '0.png'), no_save_vis=True, pred_score_thr=0.0)
    prediction = found['predictions'][0]
    assert len(prediction['bboxes']) == len(prediction['scores']) == len(prediction['labels'])
    boxes = np.array(prediction['bboxes']).reshape(-1, 4)
    assert ((boxes >= 0) & (boxes <= [80, 60, 80, 60])).all()  # in pixels of the image, the letterbox undone


def test_best_checkpoint_has_a_stable_name(job):
    folder, _, _ = job
    best, first = (torch.load(folder / 'run' / name)['state_dict'] for name in ('best.pth', 'epoch_1.pth'))
    assert all(torch.equal(best[key], first[key]) for key in first)
    assert not list((folder / 'run').glob('*.part'))


def test_report_of_the_import_is_kept(job):
    folder, _, _ = job
    checkpoint = torch.load(folder / 'weights' / 'model5.pth')
    assert checkpoint['meta']['dataset_meta']['classes'] == list(CLASSES)
    json.dumps(checkpoint['meta'])


def test_a_test_leaves_the_config_of_the_run(tmp_path):
    """Of a test with --tta the model is another one, and blend_weights reads the run's."""
    log_dir = tmp_path / 'now'
    log_dir.mkdir()
    runner = Mock(cfg=Config(dict(model=1)), timestamp='my', work_dir=str(tmp_path), log_dir=str(log_dir))
    dump = _beside_the_log(lambda runner: runner.cfg.dump(tmp_path / 'my.py'))
    dump(runner)
    runner.cfg.model = 2
    dump(runner)
    assert 'model = 1' in (tmp_path / 'my.py').read_text() and 'model = 2' in (log_dir / 'my.py').read_text()


@pytest.mark.parametrize('name', ['train', 'test'])
def test_a_command_leaves_the_process_as_it_was(name, tmp_path, monkeypatch):
    """One after the other in one process they would each add their lines to what the next one prints."""
    script = tmp_path / 'script.py'
    script.write_text('import sys\nfrom mmengine.runner import Runner\nsys.seen = Runner.dump_config, sys.argv\n'
                      'raise SystemExit(int(sys.argv[1]))')
    monkeypatch.setattr(mmdet_scripts, 'mmdet_script', lambda name: script)
    monkeypatch.setattr(sys, 'seen', None, raising=False)
    before = [Runner.dump_config, Runner.register_hooks, sys.argv]
    for code in range(2):
        with pytest.raises(SystemExit, match=str(code)):
            mmdet_scripts.run_mmdet_script(name, [str(code)])
        assert sys.seen[0] is not before[0] and sys.seen[1] == [str(script), str(code)]
        assert [Runner.dump_config, Runner.register_hooks, sys.argv] == before

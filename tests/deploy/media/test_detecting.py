"""The command from weights to files, what it refuses, and how it is stopped."""
import json
import signal
import subprocess
import sys
import time

import cv2
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.media.detecting import Wish, detect_media
from mgdet_plugin.deploy.predictor import detect
from mgdet_plugin.deploy.thresholds import scores_of
from tests.conftest import ROOT
from tests.support.fork_server import environment
from tests.support.media import moving, served, squares
from tests.support.small_run import make_dataset, write_config


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Weights and config of a small model that finds something everywhere, with scores of about 0.5."""
    folder = tmp_path_factory.mktemp('model')
    config = write_config(folder / 'cfg.py', make_dataset(folder / 'data', 3))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    state = MODELS.build(Config.fromfile(config).model).state_dict()
    raised = {name: tensor + 5 * (torch.arange(len(tensor)) == 4) for name, tensor in state.items()
              if 'predict_convs' in name and name.endswith('bias')}
    torch.save(dict(state_dict={**state, **raised}), folder / 'w.pth')
    return folder / 'w.pth', config


@pytest.fixture
def picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('a.png', squares((4, 6, 20, 0)))
    return 'a.png'


def test_what_is_written_is_what_the_predictor_finds(model, picture, tmp_path):
    done = detect_media([picture], *model, {'red': 0.2})
    assert done.out.as_posix() == 'work_dirs/detect' and done.pictures == 1
    [sample] = detect(*model, score_thr={'red': 0.2, None: 0.3})(picture)
    boxes = [[round(side, 2) for side in box] for box in sample.pred_instances.bboxes.tolist()]
    written = json.loads((done.out / 'detections.json').read_text())['annotations']
    assert [each['bbox'][:2] for each in written] == [box[:2] for box in boxes] and len(boxes) > 3
    assert [each['score'] for each in written] == [round(each, 4) for each in sample.pred_instances.scores.tolist()]
    assert detect_media([picture], *model).out.as_posix() == 'work_dirs/detect_2'
    assert detect_media([picture], *model, 1.0, Wish('third', draw=False)).objects.total() == 0


def test_pictures_beside_a_followed_video_count_by_the_whole_score(model, picture, tmp_path):
    """The predictor is asked for half of it, where something is followed."""
    pytest.importorskip('trackers')
    alone = detect_media([picture], *model, 0.9, Wish('alone')).objects
    writer = cv2.VideoWriter('b.avi', cv2.VideoWriter.fourcc(*'MJPG'), 10, (96, 64))
    writer.write(squares((4, 6, 20, 0)))
    writer.release()
    done = detect_media([picture, 'b.avi'], *model, 0.9, Wish('both', track=True))
    of_picture = [each for each in json.loads((done.out / 'detections.json').read_text())['annotations']
                  if each['image_id'] == 1]
    assert len(of_picture) == alone.total() < detect_media([picture], *model, 0.45, Wish('half')).objects.total()


@pytest.mark.parametrize(('options', 'line'), [
    (dict(wish=Wish(batch=0)), 'the batch must be a whole number from 1, got 0'),
    (dict(wish=Wish(every=0)), 'N must be a whole number from 1, got 0'),
    (dict(wish=Wish(seconds=0.0)), r'the seconds of a video must be a number above 0, got 0\.0'),
    (dict(wish=Wish(side=(16, 16))), 'the side of a slice must be a whole number of pixels from 32, got 16'),
    (dict(wish=Wish(track=True)), '--track follows objects from frame to frame, and there are only pictures'),
    (dict(wish=Wish(out='full')), 'the folder full is not empty, and nothing in it shall be lost; give a new one'),
    (dict(wish=Wish(show=True)), 'there is no screen to show anything on'),
    (dict(score_thr={'rot': 0.5}), "the model knows no class 'rot'; "),
    (dict(score_thr=1.5), r'the lowest score must be a number from 0 to 1, got 1\.5'),
    (dict(weights='no.pth'), "the weights must be a file that is there, got 'no.pth'")])
def test_what_is_refused_writes_nothing(options, line, model, picture, tmp_path, monkeypatch):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/notes.txt').touch()
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    with pytest.raises(UserError, match=line):
        detect_media([picture], **{**dict(weights=model[0], config=model[1]), **options})
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'full']


def test_scores_of_the_command_line():
    assert scores_of('0.5') == {None: 0.5} and scores_of('person=0.6,traffic light=.4') == {
        'person': 0.6, 'traffic light': 0.4}
    assert scores_of('0.5,person=0.6') == {None: 0.5, 'person': 0.6}
    for text, what in (('0.5,0.7', 'all other classes two scores, 0.5 and 0.7'), ('a=0.5,a=0.7', 'a two scores')):
        with pytest.raises(UserError, match=what):
            scores_of(text)
    for wrong in ('a', 'person=', 'person=0.5,', '=x'):
        with pytest.raises(UserError, match=r'--score-thr takes 0\.5, person=0\.6,dog=0\.4 or both, got '):
            scores_of(wrong)


def test_a_stream_ends_when_it_is_told_to_with_everything_whole(model, tmp_path):
    pytest.importorskip('av')
    with served(moving(2000), pause=0.05) as address:
        process = subprocess.Popen(
            [sys.executable, ROOT / 'tools/detect.py', f'{address}/stream', '--weights', model[0], '--config', model[1],
             '--out', 'out'], cwd=tmp_path, env={**environment(), 'no_proxy': '*'}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        while not list(tmp_path.glob('out/.*.mp4.*')) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        said, wrong = process.communicate(timeout=60)
    assert (process.returncode, wrong) == (0, '') and said.startswith('stopped; ')
    capture = cv2.VideoCapture(str(tmp_path / 'out/127.0.0.1_stream.mp4'))
    frames = len(json.loads((tmp_path / 'out/detections.json').read_text())['images'])
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == frames > 0
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['127.0.0.1_stream.mp4', 'detections.json']

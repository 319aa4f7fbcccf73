"""What is found goes to every file, whole, whatever becomes of the sources."""
import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.sources.find import read_annotated
from mgdet_plugin.deploy.media.detecting import Wish
from mgdet_plugin.deploy.media.detection_files import Records
from mgdet_plugin.deploy.media.drawings import Screen, WindowClosed
from mgdet_plugin.deploy.media.find_media import find_media
from mgdet_plugin.deploy.media.looking import Looking
from tests.support.media import CLASSES, PALETTE, finder, moving, served, squares, write_video

FIRST, SECOND = (squares((4, 6, 20, 0), (50, 30, 16, 2))), squares((8, 8, 24, 1), size=(64, 48))

writes_video = pytest.mark.skipif(find_spec('av') is None, reason='PyAV, of the extra deploy, is not installed')


@pytest.fixture
def pictures(tmp_path):
    """Two pictures, one below another folder, and one that cannot be read."""
    (tmp_path / 'in/sub').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'in/a.png'), FIRST)
    cv2.imwrite(str(tmp_path / 'in/sub/b.bmp'), SECOND)
    (tmp_path / 'in/c.jpg').write_bytes(b'nothing')
    return tmp_path / 'in'


def look(out, *sources, predictor=None, scores=(0.3, 0.3, 0.3), **wish):
    predictor = predictor or finder()
    return Looking(predictor, scores, Wish(**wish), Path(out)).at(find_media(list(map(str, sources)), Path(out)))


def content(out):
    return json.loads((Path(out) / 'detections.json').read_text())


def frames_of(path):
    capture, found = cv2.VideoCapture(str(path)), []
    while True:
        stamp = capture.grab() and capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if stamp is False:
            return found
        found.append((stamp, capture.retrieve()[1]))


def rate_and_length(path):
    """Frames a second and seconds of a video, as players read them."""
    capture = cv2.VideoCapture(str(path))
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return round(fps, 3), round(count / fps, 3)


def test_pictures_records_labels_and_crops(pictures, tmp_path):
    done = look(tmp_path / 'out', pictures, txt=True, crops=True)
    assert (done.pictures, done.frames, dict(done.objects)) == (2, 0, dict(red=1, green=1, blue=1))
    assert done.failures == ['c.jpg: cannot be read (cut short or no picture, the decoder returns nothing)']
    assert done.line().startswith('2 pictures: 3 objects (') and done.line().endswith(f'written to {tmp_path / "out"}')
    found = sorted(path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.*'))
    assert found == ['a.png', 'crops/blue/a_2.jpg', 'crops/green/sub/b_1.jpg', 'crops/red/a_1.jpg', 'detections.json',
                     'labels/a.txt', 'labels/classes.txt', 'labels/sub/b.txt', 'sub/b.bmp']
    crop = np.asarray(Image.open(tmp_path / 'out/crops/red/a_1.jpg')).astype(int)
    assert crop.shape == (20, 20, 3) and crop[..., 0].min() > 200 > 60 > crop[..., 1:].max()
    assert (tmp_path / 'in/a.png').read_bytes() == cv2.imencode('.png', FIRST)[1].tobytes()


def test_the_records_are_coco_s(pictures, tmp_path):
    look(tmp_path / 'out', pictures)
    read = COCO(str(tmp_path / 'out/detections.json'))
    assert [(each['file_name'], each['width'], each['height']) for each in read.dataset['images']] == [
        ('a.png', 96, 64), ('sub/b.bmp', 64, 48)]
    boxes = [(each['image_id'], each['category_id'], each['bbox']) for each in read.dataset['annotations']]
    assert boxes == [(1, 1, [4, 6, 20, 20]), (1, 3, [50, 30, 16, 16]), (2, 2, [8, 8, 24, 24])]
    assert read.loadRes(read.dataset['annotations']).getImgIds() == [1, 2]
    assert [each['name'] for each in read.dataset['categories']] == list(CLASSES)


@pytest.mark.parametrize('form', ['coco', 'yolo'])
def test_what_was_found_is_a_set_that_init_reads(form, pictures, tmp_path):
    (pictures / 'c.jpg').unlink()
    look(tmp_path / 'out', pictures, txt=True, draw=False)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['detections.json', 'labels']
    (tmp_path / 'out/images').symlink_to(pictures)
    read = read_annotated(tmp_path / 'out', form)
    boxes = {(picture.path.name, box.name, *np.round(box.bbox, 2).tolist())
             for picture in read.pictures for box in picture.boxes}
    assert boxes == {('a.png', 'red', 4, 6, 20, 20), ('a.png', 'blue', 50, 30, 16, 16),
                     ('b.bmp', 'green', 8, 8, 24, 24)}


def test_each_class_has_its_score(pictures, tmp_path):
    assert look(tmp_path / 'out', pictures, scores=(0.95, 0.3, 0.3)).objects == dict(green=1, blue=1)


@writes_video
def test_a_video_is_written_with_its_times(tmp_path):
    path = write_video(tmp_path / 'a.avi', moving(12), fps=5)
    predictor = finder()
    done = look(tmp_path / 'out', path, predictor=predictor, every=2, batch=4, txt=True)
    assert (done.frames, done.failures, predictor._backend.batches) == (6, [], [4, 2])
    written = frames_of(tmp_path / 'out/a.mp4')
    assert rate_and_length(tmp_path / 'out/a.mp4') == (2.5, 2.4)  # the last frame lasts as long as the one before
    assert np.allclose([stamp for stamp, _ in written], np.arange(6) * 0.4, atol=0.002)
    assert written[0][1].shape == (256, 384, 3)  # enlarged until text is legible
    for index, (_, frame) in enumerate(written):  # the outline is the class's colour, red and blue not exchanged
        left = 4 * (4 + 2 * 2 * index)
        edge = frame[80, left - 3:left + 6].astype(int)
        assert np.abs(edge - PALETTE[0][::-1]).sum(-1).min() < 120, index
    images, boxes = (content(tmp_path / 'out')[key] for key in ('images', 'annotations'))
    assert [(each['frame'], each['time'], each['file_name']) for each in images[:2]] == [
        (0, 0, 'a.avi'), (2, 0.4, 'a.avi')]
    assert np.abs(np.array([each['bbox'][0] for each in boxes]) - (4 + 4 * np.arange(6))).max() <= 2
    assert (tmp_path / 'out/labels/a/000010.txt').read_text().startswith('0 0.')


@writes_video
def test_a_stream_becomes_a_video_and_an_address_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with served(moving(10)) as address:
        done = look(tmp_path / 'out', f'{address}/stream', f'{address}/picture')
    assert done.pictures == 1 and 1 < done.frames <= 10 and done.is_live
    assert done.failures == ['127.0.0.1_stream: ended after 10 frames']
    written = frames_of(tmp_path / 'out/127.0.0.1_stream.mp4')
    noted = [each['time'] for each in content(tmp_path / 'out')['images'] if 'time' in each]
    assert len(written) == done.frames
    assert np.allclose([stamp for stamp, _ in written], np.array(noted) - noted[0], atol=0.003)
    assert Image.open(tmp_path / 'out/127.0.0.1_picture.png').size == (384, 256)


class Interrupting:
    """A predictor during whose nth call a person presses Ctrl-C."""

    def __init__(self, after):
        self.found, self.after = finder(), after
        self.classes, self.palette, self.input_size = CLASSES, PALETTE, (32, 32)

    def __call__(self, images, batch=1):
        self.after -= 1
        if self.after < 0:
            os.kill(os.getpid(), signal.SIGINT)
        return self.found(images, batch)


@writes_video
def test_what_was_found_before_a_stop_is_whole(tmp_path):
    path = write_video(tmp_path / 'a.avi', moving(12))
    done = look(tmp_path / 'out', path, predictor=Interrupting(5), txt=True)
    assert done.is_stopped and done.frames == 5 and not done.is_live
    assert len(frames_of(tmp_path / 'out/a.mp4')) == len(content(tmp_path / 'out')['images']) == 5
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.mp4', 'detections.json', 'labels']


@writes_video
def test_a_stop_amid_a_frame_leaves_it_whole_everywhere(tmp_path, monkeypatch):
    take = Records.take

    def stopped(self, seen):
        take(self, seen)
        if seen.frame.number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Records, 'take', stopped)
    path, before = write_video(tmp_path / 'a.avi', moving(12)), signal.getsignal(signal.SIGTERM)
    done = look(tmp_path / 'out', path, txt=True)
    assert done.is_stopped and done.frames == 4 and signal.getsignal(signal.SIGTERM) is before
    assert len(frames_of(tmp_path / 'out/a.mp4')) == len(list((tmp_path / 'out/labels/a').iterdir())) == 4


@writes_video
def test_a_cut_video_is_written_as_far_as_it_goes_and_the_next_source_whole(tmp_path):
    whole = write_video(tmp_path / 'a.avi', moving(30)).read_bytes()
    (tmp_path / 'a.avi').write_bytes(whole[:len(whole) // 2])
    write_video(tmp_path / 'b.avi', moving(4))
    done = look(tmp_path / 'out', tmp_path / 'a.avi', tmp_path / 'b.avi', batch=4)
    [line] = done.failures
    cut = done.frames - 4
    assert line == f'a.avi: broke off after {cut} of 30 frames' and cut > 10
    assert [len(frames_of(tmp_path / f'out/{name}.mp4')) for name in 'ab'] == [cut, 4]


def test_where_nothing_can_be_read_nothing_is_written(pictures, tmp_path):
    with pytest.raises(UserError, match=r'nothing could be looked at: c\.jpg: cannot be read .*, camera63: there'):
        look(tmp_path / 'out', pictures / 'c.jpg', '63')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('library', 'wish'), [('av', {}), ('trackers', dict(track=True, draw=False))])
def test_a_library_that_is_missing_is_told_before_any_work(library, wish, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library} .*; install it with pip install 'mgdet\[deploy\]'"):
        look(tmp_path / 'out', write_video(tmp_path / 'a.avi', moving(2)), **wish)
    assert not (tmp_path / 'out').exists()
    assert look(tmp_path / 'out', tmp_path / 'a.avi', draw=False).frames == 2


def test_a_full_disk_is_one_line(pictures, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'mkdir', full)
    with pytest.raises(UserError, match='No space left on device'):
        look(tmp_path / 'out', pictures)


def test_pictures_of_every_kind_are_written(tmp_path):
    suffixes = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
    (tmp_path / 'in').mkdir()
    for suffix in suffixes:
        cv2.imwrite(str(tmp_path / f'in/a{suffix}'), FIRST[..., 0] if suffix == '.pgm' else FIRST)
    assert look(tmp_path / 'out', tmp_path / 'in').pictures == len(suffixes)
    for suffix in suffixes:
        with Image.open(tmp_path / f'out/a{suffix}') as picture:
            assert picture.size == (384, 256), suffix


def test_a_window_shows_what_is_drawn_until_it_is_closed(pictures, tmp_path, monkeypatch):
    shown, keys = [], [-1, -1, ord('x'), -1, ord('q')]
    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr(cv2, 'imshow', lambda name, pixels: shown.append(pixels))
    monkeypatch.setattr(cv2, 'waitKey', lambda wait: keys.pop(0))
    monkeypatch.setattr(cv2, 'getWindowProperty', lambda *_: 1.0)
    monkeypatch.setattr(cv2, 'destroyAllWindows', lambda: shown.append(None))
    cv2.imwrite(str(pictures / 'z.png'), FIRST)
    done = look(tmp_path / 'out', pictures, show=True)
    assert done.is_stopped and done.pictures == 2 and len(shown) == 3 and shown[-1] is None
    assert shown[0][20 * 4, 14 * 4].tolist() == [0, 0, 250]  # BGR, as OpenCV shows it
    monkeypatch.setattr(cv2, 'getWindowProperty', lambda *_: 0.0)
    keys.append(-1)
    with pytest.raises(WindowClosed):
        Screen().show(type('', (), dict(drawn=FIRST, frame=type('', (), dict(number=None))))())

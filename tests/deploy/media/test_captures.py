"""Pixels of pictures, and frames of videos and streams, whole and broken off."""
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgdet_plugin.deploy.media.captures import Capture, UnreadableError, fetch_picture, read_picture
from mgdet_plugin.deploy.media.find_media import find_media
from tests.support.media import moving, served, squares, write_video


def opened(source):
    [media] = find_media([str(source)], Path('out'))
    return closing(Capture(media))


def test_a_picture_is_turned_as_training_turns_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(squares((4, 6, 20, 0))[..., ::-1]).save(tmp_path / 'a.png', exif=exif)
    assert np.array_equal(read_picture(str(tmp_path / 'a.png')), np.rot90(squares((4, 6, 20, 0)), -1))


@pytest.mark.parametrize(('content', 'why'), [(b'', 'empty'), (b'no picture', 'cut short or no picture')])
def test_a_picture_that_cannot_be_read_says_why(content, why, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(content)
    with pytest.raises(UnreadableError, match=rf'cannot be read \({why}'):
        read_picture(str(tmp_path / 'a.jpg'))


def test_frames_of_a_video_have_numbers_and_times(tmp_path):
    path = write_video(tmp_path / 'a.avi', moving(10), fps=5)
    with opened(path) as capture:
        found = list(capture.frames())
        assert (capture.fps, capture.declared, capture.is_live, capture.fault) == (5, 10, False, '')
    assert [frame.number for frame in found] == list(range(10))
    assert np.allclose([frame.time for frame in found], np.arange(10) / 5)
    assert found[9].pixels.shape == (64, 96, 3) and found[9].pixels[20, 32, 2] > 200 > found[0].pixels[20, 32, 2]
    with opened(path) as capture:
        assert [frame.number for frame in capture.frames(every=3)] == [0, 3, 6, 9] and not capture.fault
    with opened(path) as capture:
        assert [frame.number for frame in capture.frames(seconds=0.5)] == [0, 1, 2] and not capture.fault


def test_a_video_that_was_cut_gives_what_it_has_and_says_so(tmp_path):
    whole = write_video(tmp_path / 'a.avi', moving(30)).read_bytes()
    (tmp_path / 'cut.avi').write_bytes(whole[:len(whole) // 2])
    with opened(tmp_path / 'cut.avi') as capture:
        count = len(list(capture.frames()))
        assert 10 < count < 20 and capture.fault == f'broke off after {count} of 30 frames'
    whole = write_video(tmp_path / 'a.mp4', moving(30), codec='mp4v').read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UnreadableError, match='no video that can be opened'):
        opened(tmp_path / 'cut.mp4')


def test_a_stream_gives_its_newest_frame_and_at_last_its_last(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with served(moving(20), pause=0.02) as address, opened(f'{address}/stream') as capture:
        frames = capture.frames()
        found = [next(frames)]
        while capture._read < 15:  # something takes long
            time.sleep(0.01)
        found += frames
        assert capture.is_live and capture.fault == 'ended after 20 frames'
    assert found[0].number < 15 <= found[1].number + 1 and found[-1].number == 19
    assert all(later.time > earlier.time for earlier, later in pairwise(found))
    red = found[-1].pixels[20, :, 2].astype(int) - found[-1].pixels[20, :, 1] > 100
    assert abs(red.nonzero()[0][0] - (4 + 2 * 19)) <= 2


def test_a_stream_can_be_left(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with served(moving(200), pause=0.02) as address, opened(f'{address}/stream') as capture:
        begun = time.monotonic()
        count = len(list(capture.frames(seconds=0.3)))
        assert 0 < count < 40 and not capture.fault and time.monotonic() - begun < 10


def test_a_picture_is_fetched_and_a_stream_is_not(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with served([squares((4, 6, 20, 0))]) as address:
        assert np.array_equal(fetch_picture(f'{address}/picture'), squares((4, 6, 20, 0)))
        assert np.array_equal(fetch_picture(f'{address.replace("//", "//me:word@")}/picture'), squares((4, 6, 20, 0)))
        assert fetch_picture(f'{address}/stream') is None and fetch_picture('rtsp://nowhere/') is None
        with pytest.raises(UnreadableError, match=r'cannot be fetched \(Not Found'):
            fetch_picture(f'{address}/nothing')
    with pytest.raises(UnreadableError, match='cannot be fetched'):
        fetch_picture(f'{address}/picture')


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(UnreadableError, match='there is no such camera'):
        opened('63')

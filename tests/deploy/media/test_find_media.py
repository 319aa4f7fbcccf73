"""What a person names as a source, and what is refused."""
from pathlib import Path

import pytest
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.media.captures import UnreadableError, read_picture
from mgdet_plugin.deploy.media.find_media import find_media


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with pictures, videos and other files; the working folder."""
    for name in ('a/1.jpg', 'a/2.PNG', 'a/b/1.jpg', 'a/b/c.mp4', 'a/.hidden/3.jpg', 'a/notes.txt', 'd/4.jpg',
                 'empty/x.md'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given, out='out'):
    return [media.name for media in find_media(given, Path(out))]


def test_folders_and_globs_at_any_depth(there):
    assert names('a') == ['1.jpg', '2.PNG', 'b/1.jpg', 'b/c.mp4']
    assert names('a/*') == ['1.jpg', '2.PNG']  # no text, no folder
    assert names('a/**/*.jpg') == ['1.jpg', 'b/1.jpg']
    assert names('a/b/c.mp4') == ['c.mp4'] and names(str(there / 'a/1.jpg')) == ['1.jpg']
    assert [media.kind for media in find_media(['a/b'], Path('out'))] == ['picture', 'video']


def test_a_gif_that_moves_is_a_video_and_one_that_stands_still_a_picture(there):
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')]
    frames[0].save(there / 'a/moves.gif', save_all=True, append_images=frames[1:])
    frames[0].save(there / 'a/stands.GIF')
    (there / 'a/broken.gif').write_bytes(b'GIF89a')
    assert [media.kind for media in find_media(['a/*.[gG]*'], Path('out'))] == ['picture', 'video', 'picture']
    assert read_picture('a/stands.GIF')[0, 0].tolist() == [0, 0, 255]
    with pytest.raises(UnreadableError, match='cannot be read'):
        read_picture('a/broken.gif')


def test_several_sources_are_named_from_what_they_have_in_common_and_each_is_taken_once(there):
    assert names('a/b', 'd', 'a/b/1.jpg') == ['a/b/1.jpg', 'a/b/c.mp4', 'd/4.jpg']
    assert names('a/1.jpg', 'a/b/1.jpg') == ['1.jpg', 'b/1.jpg']


def test_stems_are_apart(there):
    for name in ('a/1.png', 'a/b/c.avi'):
        (there / name).touch()
    assert [media.stem for media in find_media(['a'], Path('out'))] == ['1', '1.png', '2', 'b/1', 'b/c', 'b/c.mp4']


def test_cameras_and_addresses_give_no_password_away(there):
    found = find_media(['0', '/dev/video2', 'rtsp://me:secret@cam.local:554/live/1?key=secret', 'rtsp://cam.local/live/1',
                        'http://x/photo.jpg', 'a/1.jpg'], Path('out'))
    assert [media.name for media in found] == ['1.jpg', 'camera0', 'camera2', 'cam.local_live_1', 'cam.local_live_1_2',
                                               'x_photo.jpg']
    assert [media.kind for media in found[1:]] == ['camera', 'camera', 'address', 'address', 'address']
    assert found[2].place == '2' and found[3].place.startswith('rtsp://me:secret@')


def test_what_lies_in_the_folder_to_write_to_is_no_source(there):
    assert names('a', out='a/b') == ['1.jpg', '2.PNG']
    for source in ('a', 'a/1.jpg', 'a/*'):
        with pytest.raises(UserError, match=rf'the source {source[:2]}.* lies in a, the folder to write to'):
            names(source, out='a')


@pytest.mark.parametrize(('given', 'line'), [
    ('nowhere', r'the source nowhere is not there \(seen from .*\); give a picture, a folder, a glob, a video'),
    ('nowhere.jpg', r'the source nowhere\.jpg is not there'),
    ('a/notes.txt', r'a/notes\.txt is neither a picture nor a video by its ending \(\.jpg, '),
    ('empty', r'the folder empty holds no picture or video \(\.jpg, '),
    ('a/*.gif', r'no picture or video matches a/\*\.gif \(seen from '),
    ('empty/*', r'no picture or video matches empty/\*')])
def test_what_names_nothing_is_refused(given, line, there):
    with pytest.raises(UserError, match=line):
        names('a', given)

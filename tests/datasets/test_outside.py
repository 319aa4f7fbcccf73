"""A path in a file of annotations opens nothing outside the folders that a person gave."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmdet.registry import DATASETS

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import is_below
from mgdet_plugin.datasets import check_datasets
from mgdet_plugin.datasets.sources.annotated import Box, Hints, Picture
from mgdet_plugin.datasets.sources.find import read_annotated
from tests.support.annotated_sets import picture, write_coco, write_csv, write_lines, write_names, write_voc, write_yolo

BOXES = (Box('ant', (4, 6, 10, 12)), )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, the set's below it, and a picture of someone else's beside both."""
    (tmp_path / 'work' / 'set').mkdir(parents=True)
    picture(tmp_path / 'private' / 'a.png', shade=10)
    monkeypatch.chdir(tmp_path / 'work')
    return tmp_path / 'work' / 'set'


@pytest.mark.parametrize(('path', 'below'), [
    ('data/a.png', True), ('data', True), ('data/../data/a', True), ('data/../a.png', False), ('database/a', False),
    ('/etc/passwd', False), ('data/x/../../../a', False), ('data//a', True)])
def test_below_by_what_a_path_says(path, below):
    assert is_below(path, ['data/']) is below
    assert is_below(path, ['/']) is True


def relative(name: str, place: Path) -> dict[str, object]:
    return dict(absolute=str(place.parents[1] / 'private' / 'a.png'), climbing='../../private/a.png')[name]


def coco(place: Path, name: str) -> None:
    file = write_coco(place, [Picture(place / 'a.png', BOXES)])
    file.write_text(file.read_text().replace('"a.png"', json.dumps(name)))


def voc(place: Path, name: str) -> None:
    file = write_voc(place, [Picture(place / 'zzz.png', BOXES)])[0]
    file.write_text(file.read_text().replace('zzz.png', name))


def lines(place: Path, name: str) -> None:
    write_names(place / 'classes.txt')
    write_lines(place / 'train.txt', [Picture(Path(name), BOXES)])


def csv(place: Path, name: str) -> None:
    file = write_csv(place / 'train.csv', [Picture(place / 'a.png', BOXES)])
    file.write_text(file.read_text().replace('a.png', name))


def yolo(place: Path, name: str) -> None:
    write_names(place / 'classes.txt')
    (place / 'train.txt').write_text(f'{name}\n')
    write_yolo(place, [Picture(place / 'b.png', BOXES)])


def yolo_set(place: Path, name: str) -> None:
    (place / 'data.yaml').write_text(f'train: {Path(name).parent}\nnames: [ant]\n')


def yolo_base(place: Path, name: str) -> None:
    (place / 'data.yaml').write_text(f'path: {Path(name).parent}\ntrain: .\nnames: [ant]\n')


def yolo_set_list(place: Path, name: str) -> None:
    (place / 'list.txt').write_text(f'{name}\n')
    (place / 'data.yaml').write_text('train: list.txt\nnames: [ant]\n')


@pytest.mark.parametrize('name', ['absolute', 'climbing'])
@pytest.mark.parametrize('write', [coco, voc, lines, csv, yolo, yolo_set, yolo_base, yolo_set_list])
def test_a_picture_elsewhere_is_refused_and_read_where_its_folder_is_given(write, name, place):
    private = place.parents[1] / 'private'
    write_yolo(private, [Picture(private / 'a.png', BOXES)])
    write(place, relative(name, place))
    with pytest.raises(UserError, match=r'lies outside set; .* give its folder, by --images') as refused:
        read_annotated(Path('set'))
    assert '\n' not in str(refused.value)
    found = read_annotated(Path('set'), hints=Hints(images=private))
    assert [each.path.resolve() for each in found.pictures] == [private / 'a.png']


def test_what_lies_below_the_folder_is_read_however_it_is_named(place):
    picture(place / 'images' / 'a.png')
    write_names(place / 'classes.txt')
    for name in (place / 'images' / 'a.png', 'images/a.png', 'set/images/a.png', '../set/images/a.png'):
        write_lines(place / 'train.txt', [Picture(Path(name), BOXES)])
        assert len(read_annotated(Path('set')).pictures) == 1, name


def test_the_set_beside_is_not_taken_for_the_set(place):
    """``../train/images`` in a set's own ``data.yaml`` means the set's, as services write it."""
    picture(place.parent / 'train' / 'images' / 'other.png')
    picture(place / 'train' / 'images' / 'a.png')
    (place / 'data.yaml').write_text('train: ../train/images\nnames: [ant]\n')
    found = read_annotated(place / 'data.yaml')
    assert [each.path.name for each in found.pictures] == ['other.png']  # below the working folder, and that it says
    (place.parent / 'train').rename(place.parents[1] / 'train')
    (place / 'data.yaml').write_text('train: ../../train/images\nnames: [ant]\n')
    assert [each.path.name for each in read_annotated(place / 'data.yaml').pictures] == ['a.png']


def test_a_link_in_the_folder_is_followed(place):
    (place / 'a.png').symlink_to(place.parents[1] / 'private' / 'a.png')
    coco(place, 'a.png')
    assert len(read_annotated(Path('set')).pictures) == 1


@pytest.mark.parametrize('name', ['x' * 5000 + '.png', 'a\0b.png', 'x/' * 3000 + 'a.png'])
@pytest.mark.parametrize('write', [coco, voc, lines, csv, yolo, yolo_set, yolo_base, yolo_set_list])
def test_a_name_no_file_can_have_is_one_line(write, name, place):
    with pytest.raises(UserError):
        write(place, name)
        read_annotated(Path('set'))


@pytest.mark.parametrize('name', ['climbing', '{}/1.jpg'])
def test_a_dataset_of_a_config_opens_nothing_outside_its_folders(name, make_coco, tmp_path_factory):
    outside = picture(tmp_path_factory.mktemp('elsewhere') / '1.jpg', (80, 60)).parent
    name = name.format(outside)

    def edit(content):
        content['images'][0]['file_name'] = name

    cfg = make_coco()
    root = Path(cfg.train_dataloader.dataset.data_root)
    name = name if name.startswith('/') else '../' * 20 + f'{outside}/1.jpg'[1:]
    cfg = make_coco(edit)
    with pytest.raises(UserError, match=r'lies outside the folders of its dataset .*data_prefix=dict'):
        check_datasets(cfg, ['train'])
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[]))
    with pytest.raises(UserError, match='lies outside the folders of its dataset'):
        [dataset.get_data_info(index) for index in range(len(dataset))]
    cfg.train_dataloader.dataset.data_prefix['others'] = str(outside)
    assert check_datasets(cfg, ['train'])[0].images == 2
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[]))
    paths = [Path(dataset.get_data_info(index)['img_path']).resolve() for index in range(len(dataset))]
    assert outside / '1.jpg' in paths and any(path.is_relative_to(root.resolve()) for path in paths)


def test_annotations_that_would_run_are_not_read(tmp_path):
    mark = tmp_path / 'mark'
    (tmp_path / 'a.yaml').write_text(f'!!python/object/apply:os.system ["touch {mark}"]')
    (tmp_path / 'a.pkl').write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    for name in ('a.yaml', 'a.pkl'):
        with pytest.raises(UserError, match='runs code'):
            DATASETS.build(dict(type='BaseDetDataset', ann_file=str(tmp_path / name), pipeline=[]))
    assert not mark.exists()

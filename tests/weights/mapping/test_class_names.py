"""Which class of a file a new class is, by name; every expectation typed in or from mmdet's own class lists."""
from __future__ import annotations

import pytest
from mmdet.evaluation import get_classes
from mmdet.registry import DATASETS

from mgdet_plugin.weights.mapping.class_names import ALIASES, ClassRows, all_rows, match_classes, new_rows, normalised

COCO = DATASETS.get('CocoDataset').METAINFO['classes']
# Darknet's coco.names.
DARKNET_NAMES = ('person, bicycle, car, motorbike, aeroplane, bus, train, truck, boat, traffic light, fire hydrant, '
                 'stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, '
                 'backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, '
                 'baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, '
                 'knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, '
                 'chair, sofa, pottedplant, bed, diningtable, toilet, tvmonitor, laptop, mouse, remote, keyboard, '
                 'cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, '
                 'hair drier, toothbrush')
DARKNET = tuple(DARKNET_NAMES.split(', '))


def found(target: tuple[str, ...]) -> dict[str, str | None]:
    """Target name -> COCO's name for it."""
    rows = match_classes(target, COCO)
    return {entry['name']: entry['source'] for entry in rows.report() if entry['source'] is not None}


def test_voc_finds_all_its_classes_in_coco():
    voc = DATASETS.get('VOCDataset').METAINFO['classes']
    rows = match_classes(voc, COCO)
    assert rows.sources == (4, 1, 14, 8, 39, 5, 2, 15, 56, 19, 60, 16, 17, 3, 0, 58, 18, 57, 6, 62)
    assert rows.notes == ()


@pytest.mark.parametrize('target, source', [(COCO, DARKNET), (DARKNET, COCO), (COCO, COCO)])
def test_darknet_and_coco_are_one_list_either_way(target, source):
    assert match_classes(target, source).sources == tuple(range(80))


@pytest.mark.parametrize('name, known', [
    ('lvis', {'fireplug': 'fire hydrant', 'necktie': 'tie', 'ski': 'skis', 'sofa': 'couch', 'doughnut': 'donut',
              'television_set': 'tv', 'microwave_oven': 'microwave', 'mouse_(computer_equipment)': 'mouse',
              'bus_(vehicle)': 'bus', 'car_(automobile)': 'car', 'train_(railroad_vehicle)': 'train',
              'orange_(fruit)': 'orange', 'cellular_telephone': 'cell phone', 'remote_control': 'remote',
              'computer_keyboard': 'keyboard', 'laptop_computer': 'laptop', 'hair_dryer': 'hair drier',
              'wineglass': 'wine glass', 'dining_table': 'dining table', 'cow': 'cow'}),
    ('objects365v2', {'Dinning Table': 'dining table', 'Hair Dryer': 'hair drier', 'Moniter/TV': 'tv',
                      'Hot dog': 'hot dog', 'Wine Glass': 'wine glass', 'Orange/Tangerine': None, 'Bowl/Basin': None,
                      'Handbag/Satchel': None, 'Other Balls': None, 'Wild Bird': None, 'Luggage': None}),
    ('oid_v6', {'Mobile phone': 'cell phone', 'Television': 'tv', 'Doughnut': 'donut', 'Cattle': 'cow', 'Ski': 'skis',
                'Computer keyboard': 'keyboard', 'Microwave oven': 'microwave', 'Remote control': 'remote',
                'Hair dryer': 'hair drier', 'Person': 'person', 'Man': None, 'Human body': None, 'Van': None,
                'Kitchen & dining room table': None, 'Houseplant': None, 'Corded phone': None, 'Taxi': None}),
    ('imagenet_det', {'domestic_cat': 'cat', 'cattle': 'cow', 'tv_or_monitor': 'tv', 'computer_mouse': 'mouse',
                      'ski': 'skis', 'hotdog': 'hot dog', 'sofa': 'couch', 'watercraft': None, 'table': None,
                      'cup_or_mug': None, 'purse': None, 'wine_bottle': None}),
    ('cityscapes', {'person': 'person', 'rider': None, 'motorcycle': 'motorcycle'}),
])
def test_synonyms_of_other_datasets(name, known):
    classes = tuple(get_classes(name))
    assert set(known) <= set(classes)
    assert {key: found(classes).get(key) for key in known} == known


@pytest.mark.parametrize('target, sources', [
    (('Car', 'Van', 'Truck', 'Pedestrian', 'Person_sitting', 'Cyclist', 'Tram', 'Misc'), (2, None, 7, 0) + (None,) * 4),
    (('bike', 'bus', 'car', 'motor', 'person', 'rider', 'traffic light', 'traffic sign', 'train', 'truck'),
     (1, 5, 2, 3, 0, None, 9, None, 6, 7)),
    (('RBC', 'WBC', 'Platelets'), (None, None, None)),
])
def test_kitti_bdd_and_blood_cells(target, sources):
    assert match_classes(target, COCO).sources == sources


@pytest.mark.parametrize('name', ['Traffic-Light', 'TRAFFIC_LIGHT', 'trafficlight', ' traffic  light '])
def test_case_spaces_underscores_and_hyphens_do_not_matter(name):
    assert match_classes([name], COCO).sources == (9,)


def test_a_row_goes_to_the_better_match_then_to_the_earlier_class():
    """Equal beats normalised beats alias whatever the order of the classes."""
    rows = match_classes(['sofa', 'Couch', 'couch'], ['chair', 'couch'])
    assert rows.sources == (None, None, 1)
    assert rows.notes == (
        "'Couch' and 'couch' differ only in case, spaces, underscores or hyphens; if they are one class, list it once",
        "'sofa' and 'couch' are one class of the file; only 'couch' keeps its row",
        "'Couch' and 'couch' are one class of the file; only 'couch' keeps its row")
    assert match_classes(['sofa', 'COUCH'], ['couch']).sources == (None, 0)
    rows = match_classes(['television', 'tvmonitor'], ['tv'])
    assert rows.sources == (0, None)
    assert rows.notes == ("'tvmonitor' and 'television' are one class of the file; only 'television' keeps its row",)


def test_aliases_in_the_file_are_classes_of_their_own():
    assert match_classes(['sofa', 'couch'], ['couch', 'sofa']).sources == (1, 0)
    assert match_classes(['couch', 'settee', 'tv'], ['sofa', 'TV', 'tv']).sources == (0, None, 2)
    assert match_classes(['couch', 'Couch'], ['sofa', 'couch']).sources == (1, 0)


def test_collisions_are_noted_without_any_row():
    notes = match_classes(['Traffic Light', 'car', 'traffic-light'], ['cell']).notes
    assert notes == ("'Traffic Light' and 'traffic-light' differ only in case, spaces, underscores or hyphens; if they "
                     'are one class, list it once',)
    assert match_classes(['-', '_', '--'], ['_']).sources == (None, 0, None)


def test_no_alias_stands_in_two_groups():
    keys = [key for group in ALIASES for key in {normalised(name) for name in group}]
    assert len(keys) == len(set(keys))
    assert [group[0] for group in ALIASES if group[0] not in COCO] == []


def test_report_and_table_of_few_classes():
    rows = match_classes(('sofa', 'platelet', 'dog'), COCO)
    assert rows.kept == 2
    assert rows.report() == [dict(name='sofa', source='couch', source_row=57),
                             dict(name='platelet', source=None, source_row=None),
                             dict(name='dog', source='dog', source_row=16)]
    assert rows.table() == ['3 classes: 2 rows kept by name, 1 new', 'kept  sofa <- couch (57)',
                            'kept  dog <- dog (16)', 'new   platelet']


def test_table_of_many_classes_is_compact():
    rows = match_classes(('sofa', 'dog', *map(str, range(600))), COCO)
    lines = rows.table()
    assert lines[:3] == ['602 classes: 2 rows kept by name, 600 new', 'kept, same name: dog (16)',
                         'kept, other name: sofa <- couch (57)']
    assert len(lines) == 4 and lines[3].startswith('new: 0, 1, ') and lines[3].endswith('59 and 540 more')


def test_rows_without_names():
    rows = new_rows((None, None), 'why')
    assert rows == ClassRows((None, None), (None, None), None, ('why',))
    assert rows.table() == ['2 classes: 0 rows kept by name, 2 new']
    assert all_rows(None, 2).report() == [dict(name=None, source=None, source_row=0),
                                          dict(name=None, source=None, source_row=1)]
    assert all_rows(None, 2).table() == all_rows(('a', 'b'), 2).table() == ['2 classes: all rows kept in their places']
    assert match_classes(('b', 'a'), ('a', 'b')).table()[0] == '2 classes: 2 rows kept by name, 0 new'
    assert match_classes(('sofa',), ('couch',)).table()[1:] == ['kept  sofa <- couch (0)']
    assert all_rows(('a', 'b'), 2).report()[1] == dict(name='b', source='b', source_row=1)

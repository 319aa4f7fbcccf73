"""Other anchors: the forms they are given in, and what is said of a change."""
from __future__ import annotations

import math
from pathlib import Path

import pytest
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.mapping.anchors import describe_anchor_change, parse_anchors

MODEL5 = (((112, 74), (149, 190), (370, 328)), ((28, 17), (56, 112), (57, 35)), ((9, 10), (13, 28), (28, 55)))
DARKNET = '10,13,  16,30,  33,23,  30,61,  62,45,  59,119,  116,90,  156,198,  373,326'
DARKNET_SCALES = (((116, 90), (156, 198), (373, 326)), ((30, 61), (62, 45), (59, 119)), ((10, 13), (16, 30), (33, 23)))


@pytest.mark.parametrize('text', [DARKNET, f'anchors = {DARKNET}', DARKNET.replace(',', ' '), f'[{DARKNET}]',
                                  '# fine first\n' + DARKNET.replace('  ', '\n') + ',\n'])
def test_flat_lists_as_darknet_writes_them(tmp_path, text):
    path = tmp_path / 'anchors.txt'
    path.write_text(text)
    assert parse_anchors(text) == parse_anchors(path) == parse_anchors(str(path)) == DARKNET_SCALES


def test_flat_lists_keep_their_scales_whichever_comes_first():
    """The smallest anchor of model5's stride 16 is smaller than the largest of stride 8: sorting would move both."""
    coarse_first = [size for scale in MODEL5 for anchor in scale for size in anchor]
    fine_first = [size for scale in MODEL5[::-1] for anchor in scale for size in anchor]
    for sizes in (coarse_first, fine_first):
        assert parse_anchors(', '.join(map(str, sizes))) == MODEL5


def test_nested_lists_are_taken_as_they_are():
    assert parse_anchors(str(MODEL5)) == MODEL5
    assert parse_anchors('[[[300, 300.5]], [[60, 60]], [[12, 6]]]') == (((300, 300.5),), ((60, 60),), ((12, 6),))
    assert parse_anchors('[(9,9), (30, 30), (99, 99)]') == (((99, 99),), ((30, 30),), ((9, 9),))


@pytest.mark.parametrize('text, cause', [
    ('', 'neither a file nor anchors'),
    ('anchors.txt', 'neither a file nor anchors'),
    ('10,13,x', 'neither a file nor anchors'),
    ('[[10, 13]', 'neither a file nor anchors'),
    ('(3)', 'neither a file nor anchors'),
    ('[__import__("os")]', 'neither a file nor anchors'),
    ('[' * 5000, 'neither a file nor anchors'),
    ('[]', '0 numbers'),
    ('10,13,16,30', '4 numbers'),
    ('10,13,16,30,33,23,30,61', '8 numbers'),
    (str(MODEL5[:2]), r'got \[3, 3\]'),
    ('[[(9,9)], [(3,3)], [(2,2),(1,1)]]', r'got \[1, 1, 2\]'),
    ('[[(9,9,9)], [(3,3,3)], [(2,2,2)]]', '3 numbers'),
    ('9,9, 30,0, 99,99', "'0.0' is no width or height"),
    ('9,9, 30,-3, 99,99', "'-3.0' is no width or height"),
    ('9,9, 30,nan, 99,99', "'nan' is no width or height"),
    ('9,9, 30,inf, 99,99', "'inf' is no width or height"),
    ('9,9, 30,30, 99,10001', 'up to 10,000 pixels'),
    ('[["a", 9], [30, 30], [99, 99]]', "'a' is no width or height"),
    ('[[True, 9], [30, 30], [99, 99]]', "'True' is no width or height"),
    ('0.1,0.1, 0.3,0.3, 0.9,0.9', 'not as fractions'),
    ('9,9, 9,9, 30,30, 31,31, 98,98, 99,99', 'twice'),
    ('30,30, 9,9, 99,99', 'mean areas of 900, 81, 9801'),
    ('9,9, 9,9, 9,9', 'no order of sizes'),
    (str(MODEL5[::-1]), 'no order of sizes'),
])
def test_refuses_what_are_no_anchors(text, cause):
    with pytest.raises(UserError, match=cause) as caught:
        parse_anchors(text)
    assert '\n' not in str(caught.value)


def test_refuses_files_that_are_no_text(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UserError, match='cannot be read as text'):
        parse_anchors(path)
    path.write_bytes(b'1' * (2 ** 16 + 1))
    with pytest.raises(UserError, match='larger than 65,536'):
        parse_anchors(path)
    with pytest.raises(UserError, match='neither a file'):
        parse_anchors('x' * 5000)


def test_no_change_says_nothing():
    config = Config.fromfile(Path(__file__).resolve().parents[3] / 'configs' / 'mgdet_model5_stage1.py')
    assert config.model.bbox_head.anchors == [list(scale) for scale in MODEL5]
    assert describe_anchor_change([list(map(list, scale)) for scale in MODEL5], MODEL5) == []


def test_another_number_of_anchors_is_refused():
    with pytest.raises(UserError, match=r'\[1, 1, 1\] anchors a scale, the weights have rows for \[3, 3, 3\]'):
        describe_anchor_change(MODEL5, (((99, 99),), ((30, 30),), ((9, 9),)))


def counted(old, new):
    """Shares of box sizes with another best anchor and scale, one size at a time."""
    def best(anchors, width, height):
        overlaps = [min(width, w) * min(height, h) / max(width * height, w * h) for scale in anchors for w, h in scale]
        return overlaps.index(max(overlaps))

    pairs = [(best(old, width, height), best(new, width, height))
             for width in range(8, 601, 8) for height in range(8, 601, 8)]
    per_scale = len(old[0])
    return (sum(one != other for one, other in pairs) / len(pairs),
            sum(one // per_scale != other // per_scale for one, other in pairs) / len(pairs))


def test_a_change_is_described_by_its_factors_and_what_moves():
    new = (((112, 148), (149, 190), (370, 328)), *MODEL5[1:])
    moved, other_scale = counted(MODEL5, new)
    assert moved > other_scale > 0
    lines = describe_anchor_change(MODEL5, new)
    assert lines[0] == '1 of 9 anchors change: stride 32: 112x74 -> 112x148 (width x 1, height x 2)'
    assert 'anchor * exp(t)' in lines[1]
    assert f'{moved:.1%} have another best anchor, {other_scale:.1%} on another scale' in lines[2]
    assert 'cannot undo factors that differ within a scale' in lines[3] and 'change scale' in lines[3]
    assert len(lines) == 4


def test_one_factor_for_a_whole_scale_can_be_undone_by_biases():
    doubled = (tuple((2 * width, 3 * height) for width, height in MODEL5[0]), *MODEL5[1:])
    assert 'which is one factor a scale' in describe_anchor_change(MODEL5, doubled)[3]
    small = (((500, 500),), ((90, 90),), ((20, 20),))
    halved = (((500, 500),), ((90, 90),), ((19.99, 20),))
    assert 'change scale' not in describe_anchor_change(small, halved)[3]
    assert math.isclose(counted(small, halved)[1], 0)

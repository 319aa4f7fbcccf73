"""New classes: what --classes takes, and the rows it makes."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.conversion import replace_class_rows
from mgdet_plugin.weights.mapping.classes import (
    TargetClasses,
    class_rows,
    parse_classes,
    source_names,
)

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
LEAF = "dict(type='CocoDataset', metainfo=dict(classes=('red', 'white')))"
OTHER_LEAF = "dict(type='CocoDataset', metainfo=dict(classes=('red', 'blue')))"


def written(path: Path, content: str | dict[str, Any] | list[Any]) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_a_count_and_a_names_file(tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('\ufeffred cell\n\n  white cell \nplatelet\n', encoding='utf-8')
    assert parse_classes('3') == parse_classes(3) == TargetClasses(3)
    assert parse_classes(str(names)) == TargetClasses(3, ('red cell', 'white cell', 'platelet'))


@pytest.mark.parametrize('content, cause', [
    (b'', 'no class names'),
    (b'\n \n', 'no class names'),
    (b'cat\ndog\ncat\n', 'twice: cat'),
    (b'\xff\xfe\x00', 'cannot be read as text'),
    (b'x' * (2 ** 20 + 1), 'larger than'),
    ('\n'.join(map(str, range(10_001))).encode(), '10,001 names'),
])
def test_refuses_bad_names_files(tmp_path, content, cause):
    path = tmp_path / 'names.txt'
    path.write_bytes(content)
    with pytest.raises(UserError, match=cause):
        parse_classes(str(path))


def test_reads_the_categories_of_a_coco_file_in_its_order(tmp_path):
    content = dict(images='not looked at', categories=[dict(id=7, name='white cell'), dict(id=2, name='red cell')])
    path = written(tmp_path / 'train.json', content)
    assert parse_classes(path) == TargetClasses(2, ('white cell', 'red cell'))


@pytest.mark.parametrize('content, cause', [
    ('{"categories": [', 'cannot be read as JSON'),
    ('[' * 100_000, 'cannot be read as JSON'),
    ([dict(name='cell')], 'no COCO annotation file'),
    (dict(images=[]), 'no COCO annotation file'),
    (dict(categories={}), 'no COCO annotation file'),
    (dict(categories=[dict(id=1)]), 'no COCO annotation file'),
    (dict(categories=[]), '0 names'),
    (dict(categories=[dict(name=3)]), 'must be a list of texts'),
    (dict(categories=[dict(name='a'), dict(name='a')]), 'twice: a'),
    (dict(categories=[dict(name='a\nb')]), 'cannot be printed'),
    (dict(categories=[dict(name=' ')]), 'is empty or cannot be printed'),
])
def test_refuses_json_without_categories(tmp_path, content, cause):
    with pytest.raises(UserError, match=cause) as caught:
        parse_classes(written(tmp_path / 'a.json', content))
    assert '\n' not in str(caught.value)


def test_reads_registered_datasets():
    assert parse_classes('VOCDataset').names[:3] == ('aeroplane', 'bicycle', 'bird')
    assert parse_classes('mmdet.CocoDataset').count == 80


@pytest.mark.parametrize('dataset', [
    LEAF,
    f"dict(type='RepeatDataset', times=3, dataset={LEAF})",
    f"dict(type='MultiImageMixDataset', dataset=dict(type='ConcatDataset', datasets=[{LEAF}, {LEAF}]), pipeline=[])",
])
def test_reads_the_train_dataset_of_a_config_inside_wrappers(tmp_path, dataset):
    path = written(tmp_path / 'a.py', f"train_dataloader = dict(dataset={dataset})\nmetainfo = dict(classes=('no',))")
    assert parse_classes(path) == TargetClasses(2, ('red', 'white'))


def test_reads_configs_as_mmdet_does(tmp_path):
    """Without metainfo the dataset's own classes count, whatever a top-level metainfo says."""
    path = written(tmp_path / 'a.py', "train_dataloader = dict(dataset=dict(type='VOCDataset'))\n"
                   "metainfo = dict(classes=('a',))")
    assert parse_classes(path).count == 20
    assert parse_classes(written(tmp_path / 'b.py', "metainfo = dict(classes=('a', 'b'))")).names == ('a', 'b')
    names = written(tmp_path / 'names.txt', 'x\ny\n')
    path = written(tmp_path / 'c.py', f"train_dataloader = dict(dataset=dict(metainfo=dict(classes='{names}')))")
    assert parse_classes(path).names == ('x', 'y')
    path = written(tmp_path / 'd.py', 'from mmdet.datasets import VOCDataset\n'
                   'train_dataloader = dict(dataset=dict(type=VOCDataset))')
    assert parse_classes(path).count == 20
    assert parse_classes(CONFIGS / 'mgdet_model5_stage1.py').count == 80
    assert parse_classes(CONFIGS / 'mgdet_nano_source.py').names == tuple('0123456789')


@pytest.mark.parametrize('content, cause', [
    ('x = 1', 'names no classes'),
    ('1 / 0', 'cannot be read: ZeroDivisionError'),
    ('x = (', 'cannot be read: SyntaxError'),
    ('train_dataloader = 3', 'cannot be read: '),
    ("train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=3))", 'cannot be read: TypeError'),
    ("train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[]))", 'names no classes'),
    ("train_dataloader = dict(dataset=dict(type='NoSuchDataset'))", 'nor a registered dataset'),
    ("train_dataloader = dict(dataset=dict(type='BaseDetDataset'))", 'BaseDetDataset names no classes by itself'),
    ('train_dataloader = dict(dataset=dict(metainfo=3))', 'names no classes by itself'),
    ("train_dataloader = dict(dataset=dict(metainfo=dict(classes='cell')))", 'neither a file nor a tuple of names'),
    (f"train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[{LEAF}, {OTHER_LEAF}]))",
     'have different classes'),
])
def test_refuses_configs_without_one_list_of_classes(tmp_path, content, cause):
    with pytest.raises(UserError, match=cause) as caught:
        parse_classes(written(tmp_path / 'a.py', content))
    assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value).strip()


def test_source_names():
    names = source_names(None, 80)
    assert names is not None and len(names) == 80 and names[0] == 'person' and names[62] == 'tv'
    assert source_names(None, 20) is None
    assert source_names('VOCDataset', 20) == parse_classes('VOCDataset').names
    with pytest.raises(UserError, match='--source-classes VOCDataset: 20 names, but the file was trained on 80'):
        source_names('VOCDataset', 80)
    with pytest.raises(UserError, match='--source-classes 80: a number has no names'):
        source_names('80', 80)
    with pytest.raises(UserError, match='--source-classes names: neither'):
        source_names('names', 80)


def test_class_rows_by_what_is_known():
    voc = parse_classes('VOCDataset')
    assert class_rows(voc, source_names(None, 80), 80).kept == 20
    assert class_rows(TargetClasses(2, ('dog', 'cell')), ('cell', 'x'), 2).sources == (None, 0)
    rows = class_rows(TargetClasses(80), source_names(None, 80), 80)
    assert rows.names == rows.sources == (None,) * 80 and 'only the number of classes is known' in rows.notes[0]
    rows = class_rows(voc, None, 80)
    assert rows.names == voc.names and rows.kept == 0 and '--source-classes' in rows.notes[0]


@pytest.mark.parametrize('given, cause', [('0', '--classes 0'), ('-3', '--classes -3'), ('10001', 'from 1 to 10,000'),
                                          ('names.txt', 'neither a number'), ('NoDataset', 'registered dataset'),
                                          ('ConcatDataset', 'names no classes'), ('.', 'neither a number')])
def test_refuses_bad_counts_and_missing_files(given, cause):
    with pytest.raises(UserError, match=cause):
        parse_classes(given)


def test_replaces_class_rows_and_keeps_all_others():
    weight, bias = torch.arange(40.).reshape(10, 4, 1, 1), torch.arange(10.)
    new_weight, new_bias = replace_class_rows(weight, bias, 8, [None] * 5000, torch.Generator().manual_seed(0))
    assert new_weight.shape == (5008, 4, 1, 1) and new_bias.shape == (5008,)
    assert torch.equal(new_weight[:8], weight[:8]) and torch.equal(new_bias[:8], bias[:8])
    assert not new_bias[8:].any()
    assert abs(new_weight[8:].mean()) < 3e-4 and abs(new_weight[8:].std() - 0.01) < 3e-4
    again = replace_class_rows(weight, bias, 8, [None] * 5000, torch.Generator().manual_seed(0))[0]
    assert torch.equal(again, new_weight)


def test_takes_rows_of_known_classes():
    weight, bias = torch.arange(40.).reshape(10, 4, 1, 1), torch.arange(10.)
    new_weight, new_bias = replace_class_rows(weight, bias, 8, [1, None, 0], torch.Generator().manual_seed(0))
    assert torch.equal(new_weight[8], weight[9]) and torch.equal(new_weight[10], weight[8])
    assert new_bias.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 0, 8]
    assert 0 < new_weight[9].abs().max() < 0.05

"""The whole import on small files, and all the ways it refuses without leaving anything behind."""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS

from mgdet_plugin.common import files
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights import conversion
from mgdet_plugin.weights.import_report import BY_ORDER, summary, tensor_table
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.mapping.architecture import block_prefixes, predict_prefixes
from mgdet_plugin.weights.mapping.network import describe_network, load_config
from tests.support.keras_files import (
    BACKBONE_TREES,
    MODEL_TREES,
    NORM_KINDS,
    TINY_CLASSES,
    TINY_OPTIONS,
    numbers,
    shifted,
    tiny,
    tree,
    with_optimizer,
    write,
    write_tiny,
)

KEPT_ROWS = 5 + 3
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny('keras3_model5_full.h5', tmp_path / 'model.h5')


def run(src: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Import with the tiny model's config; ``cfg_options`` come on top of it."""
    cfg_options = {**TINY_OPTIONS, **options.pop('cfg_options', {})}
    return import_keras(src, out, cfg_options=cfg_options, **options)


def refusal(src: Path, out: Path, **options: Any) -> str:
    """The line with which an import is refused, having checked that it left nothing."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    with pytest.raises(UserError) as caught:
        run(src, out, **options)
    assert before == (sorted(out.parent.iterdir()) if out.parent.is_dir() else None)
    return ' '.join(str(caught.value).split())


def expected_state() -> dict[str, torch.Tensor]:
    """What every tiny tree must become, from the numbers of its layers."""
    state: dict[str, torch.Tensor] = {}
    shapes = describe_network(load_config(None, TINY_OPTIONS), 'model').shapes

    def kernel(layer: str, key: str) -> torch.Tensor:
        outputs, inputs, height, width = shapes[key]
        values = numbers(layer, 'kernel', (height, width, inputs, outputs))
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, (3, 2), (0, 1))))

    for index, prefix in enumerate(block_prefixes('model')):
        suffix = f'_{index}' if index else ''
        state[f'{prefix}.conv.weight'] = kernel(f'conv2d{suffix}', f'{prefix}.conv.weight')
        for name, kind in zip(('weight', 'bias', 'running_mean', 'running_var'), NORM_KINDS, strict=True):
            values = numbers(f'batch_normalization{suffix}', kind, shapes[f'{prefix}.bn.{name}'])
            state[f'{prefix}.bn.{name}'] = torch.from_numpy(values)
        state[f'{prefix}.bn.num_batches_tracked'] = torch.tensor(0)
    for index, prefix in enumerate(predict_prefixes('model'), 1):
        state[f'{prefix}.weight'] = kernel(f'predict_conv_{index}', f'{prefix}.weight')
        state[f'{prefix}.bias'] = torch.from_numpy(numbers(f'predict_conv_{index}', 'bias', shapes[f'{prefix}.bias']))
    return state


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [key for key in got if got[key].dtype != expected[key].dtype] == []
    assert [key for key in got if not torch.equal(got[key], expected[key])] == []


@pytest.mark.parametrize('name', MODEL_TREES)
def test_every_layout_becomes_the_same_exact_tensors(tmp_path, name):
    src = write(with_optimizer(shifted(tiny(name), 66, 67)), tmp_path / name)
    report = run(src, tmp_path / 'out.pth')
    checkpoint = torch.load(tmp_path / 'out.pth')
    assert_same(checkpoint['state_dict'], expected_state())
    assert checkpoint['meta']['keras_import'] == report
    assert all(tensor.is_contiguous() for tensor in checkpoint['state_dict'].values())


def test_the_model_of_the_config_loads_it_strictly(tmp_path, source):
    run(source, tmp_path / 'out.pth')
    model = MODELS.build(load_config(None, TINY_OPTIONS).model)
    model.load_state_dict(torch.load(tmp_path / 'out.pth')['state_dict'], strict=True)
    assert {parameter.device.type for parameter in model.parameters()} == {'cpu'}


@pytest.mark.parametrize('name', BACKBONE_TREES + MODEL_TREES[-1:])
def test_backbone_comes_out_of_backbone_and_model_files(tmp_path, name):
    src = write_tiny(name, tmp_path / name)
    report = run(src, tmp_path / 'out.pth', part='backbone')
    expected = {key: value for key, value in expected_state().items() if key.startswith('backbone.')}
    assert_same(torch.load(tmp_path / 'out.pth')['state_dict'], expected)
    assert report['classes'] is None
    assert [len(paths) for paths in report['not_used'].values()] == ([76] if 'model5' in name else [])


def test_backbone_initialises_a_detector_by_prefix(tmp_path):
    src = write_tiny(BACKBONE_TREES[0], tmp_path / 'darknet53.h5')
    run(src, tmp_path / 'out.pth', part='backbone')
    config = load_config(None, TINY_OPTIONS)
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'out.pth'), prefix='backbone.')
    model = MODELS.build(config.model)
    model.init_weights()
    expected = expected_state()
    assert all(torch.equal(value, expected[f'backbone.{key}']) for key, value in model.backbone.state_dict().items())


def test_report_accounts_for_every_tensor_and_array(tmp_path):
    source = with_optimizer(tiny('keras2_model5_full.h5'))
    report = run(write(source, tmp_path / 'a.h5'), tmp_path / 'out.pth', report=tmp_path / 'r.json')
    assert json.loads((tmp_path / 'r.json').read_text()) == report
    filled = {tensor['source'] for tensor in report['tensors']} - {None}
    assert filled | {path for paths in report['not_used'].values() for path in paths} == source['datasets'].keys()
    counters = [tensor['destination'] for tensor in report['tensors'] if tensor['source'] is None]
    assert len(counters) == 66 and all(key.endswith('num_batches_tracked') for key in counters)
    last = report['tensors'][-2]
    values = numbers('predict_conv_3', 'kernel', (1, 1, 11, 12))
    assert last == dict(destination='bbox_head.predict_convs.2.weight', layer='predict_conv_3', dtype='float32',
                        source='/model_weights/predict_conv_3/predict_conv_3/kernel:0', shape=[12, 11, 1, 1],
                        mean=pytest.approx(values.mean()), std=pytest.approx(values.std()), zeros=0.0)
    table = summary(report)
    for text in (report['source']['sha256'], 'Keras 2.15.0', '337 arrays: optimizer state', '66 convolutions',
                 'out.pth', 'the layer names agree', '4 in the file, 4 written', 'backbone  312 tensors'):
        assert text in table


def test_report_says_when_order_alone_decided(tmp_path):
    report = run(write_tiny('keras2_model5.weights.h5', tmp_path / 'a.h5'), tmp_path / 'out.pth')
    assert report['found']['order'] == BY_ORDER and 'swapped' in report['notes'][0]
    assert 'Keras version not stored' in summary(report)


def test_a_count_of_classes_redraws_class_rows_only(tmp_path, source):
    report = run(source, tmp_path / 'out.pth', classes='7')
    state, expected = torch.load(tmp_path / 'out.pth')['state_dict'], expected_state()
    for prefix in predict_prefixes('model'):
        for name in ('weight', 'bias'):
            got, old = state.pop(f'{prefix}.{name}'), expected.pop(f'{prefix}.{name}')
            assert len(got) == KEPT_ROWS + 7 and torch.equal(got[:KEPT_ROWS], old[:KEPT_ROWS])
            assert bool(got[KEPT_ROWS:].any()) is (name == 'weight') and got[KEPT_ROWS:].abs().max() < 0.05
    assert_same(state, expected)
    assert report['classes']['file'] == TINY_CLASSES and report['classes']['names'] is None
    assert report['classes']['rows'] == [dict(name=None, source=None, source_row=None)] * 7
    assert 'num_classes=7' in report['notes'][0] and 'bridge_channels=(44, 22, 11)' in report['notes'][0]
    run(source, tmp_path / 'again.pth', classes=7)
    again = torch.load(tmp_path / 'again.pth')['state_dict']
    assert torch.equal(again['bbox_head.predict_convs.1.weight'],
                       torch.load(tmp_path / 'out.pth')['state_dict']['bbox_head.predict_convs.1.weight'])


def test_a_names_file_gives_the_checkpoint_its_classes(tmp_path, source):
    (tmp_path / 'names.txt').write_text('red\nwhite\nplatelet\n')
    report = run(source, tmp_path / 'out.pth', classes=tmp_path / 'names.txt')
    meta = torch.load(tmp_path / 'out.pth')['meta']
    assert meta['dataset_meta'] == dict(classes=['red', 'white', 'platelet'])
    assert report['classes']['names'] == ['red', 'white', 'platelet']


def test_rows_of_classes_known_by_name_are_kept(tmp_path, source):
    (tmp_path / 'old.txt').write_text('person\ncat\nmotorcycle\ncar\n')
    (tmp_path / 'new.txt').write_text('Motorbike\nplatelet\ncat\n')
    report = run(source, tmp_path / 'out.pth', classes=tmp_path / 'new.txt', source_classes=tmp_path / 'old.txt')
    checkpoint, expected = torch.load(tmp_path / 'out.pth'), expected_state()
    for prefix in predict_prefixes('model'):
        for name in ('weight', 'bias'):
            got, old = checkpoint['state_dict'][f'{prefix}.{name}'], expected[f'{prefix}.{name}']
            assert torch.equal(got[:KEPT_ROWS], old[:KEPT_ROWS])
            assert torch.equal(got[KEPT_ROWS], old[KEPT_ROWS + 2])
            assert torch.equal(got[KEPT_ROWS + 2], old[KEPT_ROWS + 1])
            assert not torch.equal(got[KEPT_ROWS + 1], old[KEPT_ROWS])
        assert checkpoint['state_dict'][f'{prefix}.bias'][KEPT_ROWS + 1] == 0
    assert report['classes']['rows'] == [dict(name='Motorbike', source='motorcycle', source_row=2),
                                         dict(name='platelet', source=None, source_row=None),
                                         dict(name='cat', source='cat', source_row=1)]
    assert checkpoint['meta']['dataset_meta'] == dict(classes=['Motorbike', 'platelet', 'cat'])
    table = summary(report)
    assert 'kept  Motorbike <- motorcycle (2)' in table and 'new   platelet' in table


def test_source_classes_alone_name_the_checkpoints_classes(tmp_path, source):
    (tmp_path / 'old.txt').write_text('person\ncat\nmotorcycle\ncar\n')
    report = run(source, tmp_path / 'out.pth', source_classes=tmp_path / 'old.txt')
    assert torch.load(tmp_path / 'out.pth')['meta']['dataset_meta']['classes'] == ['person', 'cat', 'motorcycle', 'car']
    assert [row['source_row'] for row in report['classes']['rows']] == [0, 1, 2, 3]
    (tmp_path / 'old.txt').write_text('person\ncat\n')
    assert '2 names, but the file was trained on 4 classes' in refusal(
        source, tmp_path / 'other.pth', source_classes=tmp_path / 'old.txt')


def test_warns_of_layers_that_look_wrong(tmp_path, source):
    def change(h5: h5py.File) -> None:
        h5['model_weights/batch_normalization_9/batch_normalization_9/moving_variance'][-1] = 1e-9
        h5['model_weights/conv2d_9/conv2d_9/kernel'][...] = 0

    with h5py.File(source, 'r+') as h5:
        change(h5)
    report = run(source, tmp_path / 'out.pth')
    assert len(report['warnings']) == 2 and 'warning   ' in summary(report)
    zeros = {tensor['layer']: tensor['zeros'] for tensor in report['tensors'] if len(tensor['shape']) == 4}
    assert zeros['conv2d_9'] == 1 and zeros['conv2d_8'] == 0


def test_lists_every_tensor_for_a_person(tmp_path, source):
    lines = tensor_table(run(source, tmp_path / 'out.pth')).splitlines()
    assert len(lines) == 1 + 5 * 66 + 2 * 3
    assert lines[1].split()[0] == 'backbone.conv1.conv.weight' and lines[1].endswith('/conv2d/conv2d/kernel')


def test_classes_override_the_configs_count_and_take_the_files_bridges(tmp_path, source):
    other = {'model.bbox_head.num_classes': 20, 'model.bbox_head.bridge_channels': None}
    run(source, tmp_path / 'out.pth', classes=3, cfg_options=other)
    assert torch.load(tmp_path / 'out.pth')['state_dict']['bbox_head.bridges.0.conv.weight'].shape[0] == 44


def test_quarter_width_files_import_into_the_nano_config(tmp_path):
    small = tree('keras2_model5_legacy.h5')
    for spec in small['datasets'].values():
        *kernel, outputs = spec['shape']
        outputs = outputs // 4 if not spec['layer'].startswith('predict') else 5 + 3 + 10
        spec['shape'] = [*kernel[:2], *(size if size == 3 else size // 4 for size in kernel[2:]), outputs]
    src = write(small, tmp_path / 'nano.h5')
    report = import_keras(src, tmp_path / 'out.pth', config=CONFIGS / 'mgdet_nano_stage1.py',
                          cfg_options={'model.bbox_head.bridge_channels': (176, 88, 44)})
    assert 2.7e6 < sum(prod(tensor['shape']) for tensor in report['tensors']) < 3e6


def test_refuses_another_class_count_naming_both(tmp_path, source):
    line = refusal(source, tmp_path / 'out.pth', cfg_options={'model.bbox_head.num_classes': 20})
    assert 'trained on 4 classes, the config has 20' in line and '--classes NAMES_OR_COUNT' in line


def test_refuses_a_class_count_before_the_bridges_that_follow_from_it(tmp_path, source):
    other = {'model.bbox_head.num_classes': 20, 'model.bbox_head.bridge_channels': None}
    assert 'trained on 4 classes, the config has 20' in refusal(source, tmp_path / 'out.pth', cfg_options=other)


def test_refuses_other_widths_before_the_class_count(tmp_path, source):
    line = refusal(source, tmp_path / 'out.pth', cfg_options={'model.backbone.widen_factor': 0.25,
                                                              'model.bbox_head.num_classes': 20})
    assert "'conv2d' has the shape (3, 3, 3, 2)" in line and 'needs (8, 3, 3, 3)' in line and '--config' in line


def test_refuses_other_bridges(tmp_path, source):
    line = refusal(source, tmp_path / 'out.pth', cfg_options={'model.bbox_head.bridge_channels': (48, 22, 11)})
    assert "'conv2d_55' has the shape (3, 3, 16, 44)" in line and 'bridge_channels' in line


def test_refuses_a_backbone_as_a_model(tmp_path):
    src = write_tiny(BACKBONE_TREES[1], tmp_path / 'a.h5')
    assert 'is a backbone file' in refusal(src, tmp_path / 'out.pth')
    assert '--part backbone' in refusal(src, tmp_path / 'out.pth')


def test_refuses_outputs_that_fit_no_class_count(tmp_path, source):
    anchors = [[(10, 10)] * 7] * 3
    line = refusal(source, tmp_path / 'out.pth', cfg_options={'model.bbox_head.anchors': anchors})
    assert 'channels do not fit the [7, 7, 7] anchors' in line


def test_refuses_a_count_beyond_the_limit_in_the_file(tmp_path, monkeypatch, source):
    monkeypatch.setattr(conversion, 'MAX_CLASSES', 3)
    assert 'class count from 1 to 3' in refusal(source, tmp_path / 'out.pth', classes=2)


@pytest.mark.parametrize('options, cause', [
    (dict(classes='0'), '--classes 0'),
    (dict(classes='absent.txt'), 'neither a number of classes, a file nor'),
    (dict(classes=3, part='backbone'), 'a backbone has no classes'),
    (dict(part='neck'), "got 'neck'"),
    (dict(config='absent.py'), 'config absent.py does not exist'),
    (dict(cfg_options={'model.backbone.depth': 50}), 'depth must be one of (53,), got 50'),
    (dict(cfg_options={'model.backbone.type': 'Foo'}), 'cannot be built'),
    (dict(cfg_options={'model.bbox_head.anchors': 3}), 'no model.bbox_head.anchors'),
    (dict(cfg_options={'model.bbox_head.num_classes': 'many'}), 'cannot be built'),
    (dict(cfg_options={'model.backbone': None}), 'cannot be built'),
    (dict(cfg_options={'model': 3}), 'has no model.backbone'),
])
def test_refuses_bad_options(tmp_path, source, options, cause):
    assert cause in refusal(source, tmp_path / 'out.pth', **options)


@pytest.mark.parametrize('text, cause', [('raise RuntimeError("no")', 'RuntimeError: no'), ('a = (', 'SyntaxError'),
                                         ('a = 1', 'no model.backbone')])
def test_refuses_broken_configs(tmp_path, source, text, cause):
    (tmp_path / 'c.py').write_text(text)
    with pytest.raises(UserError, match=cause):
        import_keras(source, tmp_path / 'out.pth', config=tmp_path / 'c.py')


def spoil(name: str, value: float) -> Callable[[h5py.File], None]:
    def change(h5: h5py.File) -> None:
        h5[f'model_weights/{name}'][-1] = value
    return change


@pytest.mark.parametrize('change, cause', [
    (spoil('conv2d_9/conv2d_9/kernel', np.nan), "conv2d_9/kernel' holds NaN"),
    (spoil('predict_conv_1/predict_conv_1/bias', np.inf), "predict_conv_1/bias' holds NaN or infinite"),
    (spoil('batch_normalization_9/batch_normalization_9/moving_variance', -1e-6), 'negative variance (-1e-06)'),
])
def test_refuses_numbers_no_network_has(tmp_path, source, change, cause):
    with h5py.File(source, 'r+') as h5:
        change(h5)
    assert cause in refusal(source, tmp_path / 'out.pth')


def test_refuses_a_small_file_that_declares_much(tmp_path, monkeypatch, source):
    monkeypatch.setattr(conversion, 'MAX_EXPANSION', 0.1)
    assert 'bytes cannot hold the' in refusal(source, tmp_path / 'out.pth')


def test_refuses_a_model_with_tensors_no_layer_fills(tmp_path, source, monkeypatch):
    """The other side of the cover: all of the model is set, or nothing is written."""
    full = conversion.describe_network(load_config(None, TINY_OPTIONS), 'model')
    full.shapes['bbox_head.scale'] = (3,)
    monkeypatch.setattr(conversion, 'describe_network', lambda *_: full)
    assert 'nothing in the file fills bbox_head.scale of the model' in refusal(source, tmp_path / 'out.pth')
    del full.shapes['bbox_head.scale'], full.shapes['neck.blocks.0.conv1.conv.weight']
    assert 'no tensor neck.blocks.0.conv1.conv.weight' in refusal(source, tmp_path / 'out.pth')


def test_refuses_destinations_that_cannot_be_written(tmp_path, source):
    assert 'there is no folder' in refusal(source, tmp_path / 'absent' / 'out.pth')
    assert 'it is a folder' in refusal(source, tmp_path)
    assert 'the file to read from' in refusal(source, source)
    assert 'there is no folder' in refusal(source, tmp_path / 'out.pth', report=tmp_path / 'absent' / 'r.json')
    assert '--report' in refusal(source, tmp_path / 'out.pth', report=tmp_path / 'out.pth')


def test_refuses_a_closed_folder(tmp_path, source, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(files, 'TemporaryFile', refuse)
    assert 'no permission to write in' in refusal(source, tmp_path / 'out.pth')


def test_a_failed_write_leaves_an_earlier_checkpoint_whole(tmp_path, source, monkeypatch):
    folder = tmp_path / 'weights'
    folder.mkdir()
    (folder / 'out.pth').write_bytes(b'earlier')
    (folder / 'r.json').write_bytes(b'earlier')

    def full_disk(_: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full_disk)
    assert 'No space left on device' in refusal(source, folder / 'out.pth', report=folder / 'r.json')
    assert (folder / 'out.pth').read_bytes() == (folder / 'r.json').read_bytes() == b'earlier'


def test_an_interrupted_write_leaves_nothing(tmp_path, source, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / 'out.pth', report=tmp_path / 'r.json')
    assert sorted(tmp_path.iterdir()) == before

"""Verification sees every difference there can be, and tells what it could not see."""
from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.import_report import BY_FORMAT, BY_NAMES, BY_ORDER
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.verify import describe_difference, verify_import, verify_summary
from tests.support.checkpoints import save, tiny_state
from tests.support.keras_files import (
    BACKBONE_TREES,
    MODEL_TREES,
    NAMED_TREES,
    TINY_OPTIONS,
    shifted,
    tiny,
    with_optimizer,
    write,
    write_tiny,
)

KERNEL = 'backbone.conv_res_block3.res2.conv1.conv.weight'
HEAD = 'bbox_head.predict_convs.1'
BASE = 5 + 3  # rows of box, objectness and anchors
PICKED = [None, 2, 0]  # new class -> class of the file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny('keras3_model5_full.h5', tmp_path / 'model.h5')


def account(picked: list[int | None], in_file: int = 4) -> dict[str, Any]:
    """The meta of an import that kept these class rows."""
    rows = [dict(name=None, source=None, source_row=row) for row in picked]
    return dict(keras_import=dict(classes=dict(file=in_file, written=len(picked), rows=rows)))


def with_classes(picked: list[int | None]) -> dict[str, Tensor]:
    """The small model with other classes: rows kept, or filled with 9."""
    state = tiny_state()
    for scale in range(3):
        for name in ('weight', 'bias'):
            old = state[f'bbox_head.predict_convs.{scale}.{name}']
            rows = [old[BASE + row] if row is not None else torch.full_like(old[0], 9) for row in picked]
            state[f'bbox_head.predict_convs.{scale}.{name}'] = torch.cat((old[:BASE], torch.stack(rows)))
    return state


def check(source: Path, state: dict[str, Tensor], folder: Path, **meta: Any) -> dict[str, Any]:
    """Verify a state dict against a file."""
    return verify_import(source, save(state, folder / 'a.pth', meta=meta))


def differing(report: dict[str, Any]) -> list[str]:
    return [item['tensor'] for item in report['differing']]


@pytest.mark.parametrize('name', MODEL_TREES)
def test_every_layout_agrees(tmp_path, name):
    src = write(with_optimizer(shifted(tiny(name), 66, 67)), tmp_path / name)
    report = check(src, tiny_state(), tmp_path)
    assert report['agrees'] and report['differing'] == [] and report['rows'] is None
    assert {part: counts['equal'] for part, counts in report['parts'].items()} == dict(
        backbone=260, neck=55, bbox_head=21)
    assert report['source']['pairing'] == (BY_NAMES if name in NAMED_TREES else BY_ORDER)


@pytest.mark.parametrize('name', [*BACKBONE_TREES, *MODEL_TREES])
def test_backbone_checkpoints_agree(tmp_path, name):
    report = check(write_tiny(name, tmp_path / name), tiny_state('backbone'), tmp_path)
    assert report['agrees'] and list(report['parts']) == ['backbone'] and report['parts']['backbone']['equal'] == 260


@pytest.mark.parametrize('name', [NAMED_TREES[0], 'keras2_model5.weights.h5'])
def test_what_the_importer_writes_agrees(tmp_path, name):
    import_keras(write_tiny(name, tmp_path / name), tmp_path / 'out.pth', cfg_options=TINY_OPTIONS)
    assert verify_import(tmp_path / name, tmp_path / 'out.pth')['agrees']


def test_new_classes_as_the_importer_writes_them_agree(tmp_path, source):
    (tmp_path / 'old.txt').write_text('cat\ndog\nbird\ncow\n')
    (tmp_path / 'new.txt').write_text('horse\nbird\ncat\n')
    import_keras(source, tmp_path / 'out.pth', cfg_options=TINY_OPTIONS, classes=tmp_path / 'new.txt',
                 source_classes=tmp_path / 'old.txt')
    report = verify_import(source, tmp_path / 'out.pth')
    assert report['agrees'] and report['rows'] == dict(kept=10, new=1)


@pytest.mark.parametrize('key', [KERNEL, 'backbone.conv1.bn.running_var', 'neck.up_convs.1.bn.bias',
                                 'bbox_head.bridges.2.conv.weight', f'{HEAD}.bias'])
def test_one_bit_is_seen(tmp_path, source, key):
    state = tiny_state()
    state[key].view(-1).view(torch.int32)[1] ^= 1
    report = check(source, state, tmp_path)
    assert not report['agrees'] and differing(report) == [key]
    assert report['differing'][0]['difference'].startswith('1 of ')
    table = verify_summary(report)
    assert f'differs   {key} and /model_weights/' in table and 'does NOT agree' in table


def test_nan_and_the_sign_of_zero_are_seen(tmp_path, source):
    state = tiny_state()
    state['backbone.conv1.bn.bias'][0] = float('nan')
    assert differing(check(source, state, tmp_path)) == ['backbone.conv1.bn.bias']
    assert describe_difference(np.float32([0, 1]), np.float32([-0., 1]))[0] == '1 of 2 numbers differ, by 0 at most'
    assert describe_difference(np.float32([np.nan, 1]), np.float32([np.nan, 1])) == (None, 0)


@pytest.mark.parametrize('name', [NAMED_TREES[0], 'keras3_model5.weights.h5', 'keras2_model5.weights.h5'])
def test_two_blocks_of_equal_shape_exchanged_are_seen(tmp_path, name):
    """What an importer that follows the wrong order would write."""
    state = tiny_state()
    one, other = ('backbone.conv_res_block4.res3', 'backbone.conv_res_block4.res5')
    for key in [key for key in state if key.startswith(one)]:
        twin = key.replace(one, other)
        state[key], state[twin] = state[twin], state[key]
    report = check(write_tiny(name, tmp_path / name), state, tmp_path)
    assert len(report['differing']) == 2 * 2 * 5 and report['parts']['neck']['equal'] == 55


def test_mean_and_variance_exchanged_are_seen(tmp_path, source):
    state = tiny_state()
    prefix = 'neck.blocks.0.conv2.bn'
    state[f'{prefix}.running_mean'], state[f'{prefix}.running_var'] = (
        state[f'{prefix}.running_var'], state[f'{prefix}.running_mean'])
    assert differing(check(source, state, tmp_path)) == [f'{prefix}.running_mean', f'{prefix}.running_var']


def test_kept_rows_are_compared_and_new_ones_counted(tmp_path, source):
    state = with_classes(PICKED)
    report = check(source, state, tmp_path, **account(PICKED))
    assert report['agrees'] and report['rows'] == dict(kept=BASE + 2, new=1)
    assert '10 of every prediction kept and compared, 1 drawn anew' in verify_summary(report)
    state[f'{HEAD}.weight'][BASE] += 1  # new
    assert check(source, state, tmp_path, **account(PICKED))['agrees']
    for row in (0, 4, BASE - 1, BASE + 1, BASE + 2):  # box, objectness, anchor, kept classes
        broken = with_classes(PICKED)
        broken[f'{HEAD}.weight'][row] += 1
        assert differing(check(source, broken, tmp_path, **account(PICKED))) == [f'{HEAD}.weight']


def test_rows_of_the_wrong_classes_are_seen(tmp_path, source):
    report = check(source, with_classes([None, 0, 2]), tmp_path, **account(PICKED))
    assert len(report['differing']) == 6 and report['parts']['neck']['equal'] == 55


def test_imports_without_a_record_of_rows(tmp_path, source):
    """Earlier imports recorded only which classes were new: all of them or none."""
    old = dict(keras_import=dict(classes=dict(file=4, written=4, new=[])))
    assert check(source, tiny_state(), tmp_path, **old)['agrees']
    anew = dict(keras_import=dict(classes=dict(file=4, written=3, new=[0, 1, 2])))
    report = check(source, with_classes([None] * 3), tmp_path, **anew)
    assert report['agrees'] and report['rows'] == dict(kept=BASE, new=3)


def test_without_meta_all_rows_must_be_equal(tmp_path, source):
    torch.save(tiny_state(), tmp_path / 'bare.pth')
    assert verify_import(source, tmp_path / 'bare.pth')['agrees']
    report = check(source, with_classes([0, 1]), tmp_path)
    assert len(report['differing']) == 6 and 'where the file has' in report['differing'][0]['difference']
    assert any('no record of an import' in note for note in report['notes'])


@pytest.mark.parametrize('classes', [
    dict(file=4, written=3), dict(file='4', rows=[]), dict(file=4, rows=[]), dict(file=4, rows=[dict(source_row=4)]),
    dict(file=4, rows=[dict(source_row=-1)]), dict(file=4, rows=[dict(source_row=True)]), dict(file=4, rows=[None]),
    dict(file=4, rows=[dict(name='a')]), dict(file=4, rows=[dict(source_row=None)] * 7),
    dict(file=4, written=10 ** 12, new=[1]),
])
def test_account_of_rows_is_not_trusted(tmp_path, source, classes):
    with pytest.raises(UserError, match='import the file again'):
        check(source, tiny_state(), tmp_path, keras_import=dict(classes=classes))


def test_account_of_another_file_is_seen(tmp_path, source):
    """A checkpoint of a file with other classes: its rows cannot be those of this one."""
    report = check(source, with_classes([0, 1, 2]), tmp_path, **account([0, 1, 2], in_file=7))
    assert len(report['differing']) == 6


def test_trained_checkpoint_is_told(tmp_path, source):
    state = tiny_state()
    for key, value in state.items():
        if key.startswith(('neck.', 'bbox_head.')):
            value += 1
    record = dict(source=dict(file='other.h5', sha256='0' * 64), classes=None)
    report = check(source, state, tmp_path, keras_import=record)
    table = verify_summary(report)
    for text in ('backbone  260 tensors, all bit-equal', 'neck      55 tensors, 55 differ, by 1 at most',
                 'was trained (1 batches by its counters)', 'and 71 more', "imported from another file: 'other.h5'"):
        assert text in table


def test_backbone_file_is_not_the_source_of_a_model(tmp_path):
    with pytest.raises(UserError, match='is a backbone file, and the checkpoint holds a whole model'):
        check(write_tiny(BACKBONE_TREES[0], tmp_path / 'a.h5'), tiny_state(), tmp_path)


def test_other_networks_are_refused(tmp_path):
    other = tiny(NAMED_TREES[0])
    del other['datasets']['/conv2d_3/conv2d_3/kernel:0']
    with pytest.raises(UserError, match=r"'conv2d_3' lists the weight 'conv2d_3/kernel:0', which is missing"):
        check(write(other, tmp_path / 'a.h5'), tiny_state(), tmp_path)


def test_darknet_files_are_verified(tmp_path):
    """Header, then bias, gamma, mean, variance and kernel of every convolution in order of creation."""
    state, src = tiny_state('backbone'), tmp_path / 'darknet53.conv.74'
    blocks = [key.removesuffix('.conv.weight') for key in state if key.endswith('.conv.weight')]
    content = [struct.pack('<3iq', 0, 2, 0, 7)]
    for prefix in blocks:
        content += [state[f'{prefix}.bn.{name}'].numpy().tobytes() for name in ('bias', 'weight', 'running_mean',
                                                                                'running_var')]
        content.append(state[f'{prefix}.conv.weight'].numpy().tobytes())
    src.write_bytes(b''.join(content))
    report = check(src, state, tmp_path)
    assert report['agrees'] and report['source']['pairing'] == BY_FORMAT
    state['backbone.conv1.bn.bias'][0] += 1
    assert differing(check(src, state, tmp_path)) == ['backbone.conv1.bn.bias']


def test_json_holds_the_report(tmp_path, source):
    ckpt = save(tiny_state(), tmp_path / 'a.pth')
    report = verify_import(source, ckpt, report=tmp_path / 'v.json')
    assert json.loads((tmp_path / 'v.json').read_text()) == report
    for path in (source, ckpt, tmp_path / 'none' / 'v.json'):
        with pytest.raises(UserError, match='cannot write'):
            verify_import(source, ckpt, report=path)

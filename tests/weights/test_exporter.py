"""Export: the files Keras itself would write, or one line and nothing."""
from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights import exporter
from mgdet_plugin.weights.exporter import export_keras, export_summary
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.mapping.keras_layouts import LEGACY_INPUT, model_layers
from tests.support.checkpoints import listing, save, tiny_state
from tests.support.keras_files import TINY_OPTIONS, tree, write_tiny

GOLDEN = {'model.h5': 'keras2_model5_legacy.h5', 'model.weights.h5': 'keras3_model5.weights.h5',
          'darknet53.h5': 'keras2_darknet53.h5'}
KERNEL = 'backbone.conv_res_block3.res2.conv1.conv.weight'
VARIANCE = 'neck.blocks.1.conv2.bn.running_var'
MEAN = 'neck.blocks.1.conv2.bn.running_mean'


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tiny_state(), tmp_path / 'model.pth')


def refusal(ckpt: Path, out: Path, **options: Any) -> str:
    """The line with which an export is refused, having checked that it left nothing."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    with pytest.raises(UserError) as caught:
        export_keras(ckpt, out, **options)
    assert before == (sorted(out.parent.iterdir()) if out.parent.is_dir() else None)
    return ' '.join(str(caught.value).split())


def reimported(path: Path, folder: Path) -> dict[str, Tensor]:
    """State dict of an exported model."""
    import_keras(path, folder / 'again.pth', cfg_options=TINY_OPTIONS)
    state: dict[str, Tensor] = torch.load(folder / 'again.pth')['state_dict']
    return state


@pytest.mark.parametrize('name', GOLDEN)
def test_file_is_the_one_keras_writes(tmp_path, checkpoint, name):
    """Every group, attribute and array of a recorded file of Keras, and not one more."""
    export_keras(checkpoint, tmp_path / name, part='backbone' if name == 'darknet53.h5' else 'model')
    got, expected = listing(tmp_path / name), listing(write_tiny(GOLDEN[name], tmp_path / 'golden.h5'))
    assert unpacked(got) == unpacked(expected)
    assert got[1].keys() == expected[1].keys()
    assert [path for path in got[1] if got[1][path].tobytes() != expected[1][path].tobytes()
            or got[1][path].shape != expected[1][path].shape or got[1][path].dtype != np.float32] == []


def unpacked(found: tuple[dict[str, dict[str, Any]], Any]) -> dict[str, dict[str, Any]]:
    """Groups of a listing with the values of their attributes as text, whichever type of text they are."""
    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(each) for each in value]
        return value.decode() if isinstance(value, bytes) else value

    return {group: {key: text(value) for key, (_, value) in attrs.items()} for group, attrs in found[0].items()}


def test_layer_order_is_the_one_keras_states():
    for part, name in (('model', 'keras2_model5_legacy.h5'), ('backbone', 'keras2_darknet53.h5')):
        names = [LEGACY_INPUT if layer.base == 'input_layer' else layer.name for layer in model_layers(part)]
        assert names == tree(name)['groups']['/']['layer_names']


@pytest.mark.parametrize('name', ['model.h5', 'model.weights.h5'])
def test_import_of_an_export_is_bit_equal(tmp_path, name):
    state = tiny_state()
    state['neck.up_convs.0.bn.bias'][0] = -0.
    state['neck.up_convs.0.bn.bias'][1] = 1e-41  # below the normal numbers of float32
    export_keras(save(state, tmp_path / 'model.pth'), tmp_path / name)
    again = reimported(tmp_path / name, tmp_path)
    assert again.keys() == state.keys()
    assert [key for key in state if again[key].numpy().tobytes() != state[key].numpy().tobytes()] == []


@pytest.mark.parametrize('name', ['keras2_model5_legacy.h5', 'keras3_model5.weights.h5'])
def test_export_of_an_import_has_the_arrays_of_the_file(tmp_path, name):
    src = write_tiny(name, tmp_path / name)
    import_keras(src, tmp_path / 'model.pth', cfg_options=TINY_OPTIONS)
    out = tmp_path / f'out{name[name.index("."):]}'
    export_keras(tmp_path / 'model.pth', out)
    got, expected = listing(out)[1], listing(src)[1]
    assert got.keys() == expected.keys()
    assert [path for path in got if got[path].tobytes() != expected[path].tobytes()] == []


def test_same_checkpoint_gives_the_same_bytes(tmp_path, checkpoint):
    first = export_keras(checkpoint, tmp_path / 'a.weights.h5')
    assert export_keras(checkpoint, tmp_path / 'a.weights.h5')['written'] == first['written']


def test_report_says_what_was_written(tmp_path):
    meta = dict(dataset_meta=dict(classes=('red', 'white', 'platelet\n', 'fourth')))
    ckpt = save(tiny_state(), tmp_path / 'best.pth', meta=meta)
    report = export_keras(ckpt, tmp_path / 'model.h5')
    assert len(report['tensors']) == 336 and report['layers'] == 234 and report['layers_with_weights'] == 135
    assert report['tensors'][0] == dict(source='backbone.conv1.conv.weight', layer='conv2d', weight='kernel',
                                        shape=[2, 3, 3, 3])
    table = export_summary(report)
    for text in (report['written']['sha256'], 'bridges   [44, 22, 11] channels', "red, white, 'platelet\\n', fourth",
                 'bridges of [44, 22, 11] channels: its own default for predictions of [12, 12, 12] channels is '
                 '[96, 48, 24]', 'weights .h5 (layer_names)', '234 layers'):
        assert text in table
    assert (tmp_path / 'model.h5').stat().st_size == report['written']['bytes']


def test_names_that_do_not_fit_are_pointed_out(tmp_path):
    meta = dict(dataset_meta=dict(classes=[f'class {index}' for index in range(7)]))
    report = export_keras(save(tiny_state(), tmp_path / 'a.pth', meta=meta), tmp_path / 'a.h5')
    assert any('names 7 classes, which do not fit predictions of [12, 12, 12]' in note for note in report['notes'])


@pytest.mark.parametrize(('text', 'note'), [
    ("head = dict(xy_scale=1.0, bbox_coder=dict(anchor_use='expected'))", "anchor_use='expected', xy_scale=1.0"),
    ("{'xy_scale': 0.3, 'anchor_use': 'likely'}", 'xy_scale=0.3'), ("dict(xy_scale=0.15, anchor_use='likely')", None),
    ('', None)])
def test_another_decoding_is_pointed_out(tmp_path, text, note):
    report = export_keras(save(tiny_state(), tmp_path / 'a.pth', meta=dict(cfg=text)), tmp_path / 'a.h5')
    found = [each for each in report['notes'] if 'gives other boxes' in each]
    assert found == ([] if note is None else found) and len(found) == (note is not None)
    assert note is None or f'trained with {note}: decoding as model5' in found[0]


def test_own_default_bridges_need_no_note(tmp_path):
    state = tiny_state()
    for scale, width in enumerate((96, 48, 24)):
        prefix, inner = f'bbox_head.bridges.{scale}', state[f'bbox_head.bridges.{scale}.conv.weight'].shape[1]
        state[f'{prefix}.conv.weight'] = torch.rand(width, inner, 3, 3)
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            state[f'{prefix}.bn.{name}'] = torch.rand(width)
        state[f'bbox_head.predict_convs.{scale}.weight'] = torch.rand(12, width, 1, 1)
    assert export_keras(save(state, tmp_path / 'a.pth'), tmp_path / 'a.h5')['notes'] == []


def test_anchors_may_differ_by_scale(tmp_path):
    state = tiny_state()
    state['bbox_head.predict_convs.1.weight'] = torch.rand(14, 22, 1, 1)
    state['bbox_head.predict_convs.1.bias'] = torch.rand(14)
    assert export_keras(save(state, tmp_path / 'a.pth'), tmp_path / 'a.h5')['outputs'] == [12, 14, 12]


def test_training_checkpoint_with_average_and_wrapper(tmp_path):
    """What mmengine writes beside the weights is left alone, and said where it matters."""
    wrapped = {f'module.{key}': value for key, value in tiny_state().items()}
    ckpt = save(wrapped, tmp_path / 'epoch_3.pth', meta=dict(epoch=3, cfg='raise SystemExit'), optimizer={},
                ema_state_dict={key: value + 1 for key, value in wrapped.items()}, message_hub={})
    report = export_keras(ckpt, tmp_path / 'a.h5')
    assert "every key began with 'module.'" in report['notes'][0] and 'moving average' in report['notes'][1]
    assert torch.equal(reimported(tmp_path / 'a.h5', tmp_path)[KERNEL], tiny_state()[KERNEL])


def test_bare_state_dict_and_channels_last(tmp_path):
    state = {key: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
             for key, value in tiny_state().items()}
    torch.save(state, tmp_path / 'a.pth')
    export_keras(tmp_path / 'a.pth', tmp_path / 'a.h5')
    assert torch.equal(reimported(tmp_path / 'a.h5', tmp_path)[KERNEL], tiny_state()[KERNEL])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tiny_state().items()}
    report = export_keras(save(state, tmp_path / 'a.pth'), tmp_path / 'a.h5')
    assert str(dtype).removeprefix('torch.') in report['notes'][0]
    again = reimported(tmp_path / 'a.h5', tmp_path)
    assert again[KERNEL].dtype == torch.float32 and torch.equal(again[KERNEL], state[KERNEL].float())


@pytest.mark.parametrize('name', ['a.h5', 'a.weights.h5'])
def test_float16_storage(tmp_path, checkpoint, name):
    state = tiny_state()
    state[MEAN][0] = 1e-9
    report = export_keras(save(state, tmp_path / 'b.pth'), tmp_path / name, dtype='float16')
    arrays = listing(tmp_path / name)[1]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    again = reimported(tmp_path / name, tmp_path)
    assert torch.equal(again[KERNEL], state[KERNEL].half().float())
    largest = max(float((value.half().float() - value).abs().max()) for key, value in state.items()
                  if not key.endswith('num_batches_tracked'))
    assert f'by {largest:.2g} at most, and 1 to zero' in report['notes'][0]
    assert report['written']['bytes'] < export_keras(checkpoint, tmp_path / 'full.h5')['written']['bytes']


def test_backbone_of_a_model_and_of_a_backbone(tmp_path, checkpoint):
    alone = save(tiny_state('backbone'), tmp_path / 'backbone.pth')
    for source in (checkpoint, alone):
        report = export_keras(source, tmp_path / 'darknet53.weights.h5', part='backbone')
        assert report['outputs'] == [] and len(report['tensors']) == 260
        import_keras(tmp_path / 'darknet53.weights.h5', tmp_path / 'again.pth', part='backbone',
                     cfg_options=TINY_OPTIONS)
        again = torch.load(tmp_path / 'again.pth')['state_dict']
        assert [key for key, value in tiny_state('backbone').items() if not torch.equal(value, again[key])] == []
    assert 'holds a backbone alone; export it with --part backbone' in refusal(alone, tmp_path / 'x.h5')


def changed(key: str, value: Tensor | None) -> dict[str, Tensor]:
    """The state dict with one tensor replaced, or left out."""
    state = tiny_state()
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


def with_value(key: str, value: float) -> dict[str, Tensor]:
    """The state dict with one number replaced."""
    state = tiny_state()
    state[key].view(-1)[1] = value
    return state


@pytest.mark.parametrize('state, cause', [
    (changed(VARIANCE, None), f'1 missing ({VARIANCE})'),
    (changed('neck.blocks.1.conv2.bn.num_batches_tracked', None), '1 missing'),
    (changed('module.extra', torch.zeros(1)), '1 unexpected (module.extra)'),
    ({f'model.{key}': value for key, value in tiny_state().items()}, '402 missing'),
    (changed(KERNEL, torch.zeros(8, 17, 1, 1)), f'{KERNEL} takes 17 channels'),
    (changed(KERNEL, torch.zeros(8, 16)), 'a kernel has four sides'),
    (changed(KERNEL, torch.zeros(8, 16, 3, 3)), 'is 3x3 where 1x1 belongs'),
    (changed(VARIANCE, torch.zeros(7)), f'{VARIANCE} has the shape (7,)'),
    (changed(VARIANCE, torch.zeros(16, dtype=torch.int32)), f'{VARIANCE} is a tensor of int32'),
    (changed(VARIANCE, torch.zeros(16).to_sparse()), f"{VARIANCE} is 'a tensor sparse_coo on cpu', expected a dense"),
    (changed('bbox_head.predict_convs.2.bias', torch.zeros(11)), 'has the shape (11,)'),
    (with_value(KERNEL, float('nan')), f'{KERNEL} holds NaN'),
    (with_value(KERNEL, float('inf')), f'{KERNEL} holds NaN or infinite'),
    (with_value(VARIANCE, -1e-3), f'{VARIANCE} holds a negative variance (-0.001)'),
    (changed(KERNEL, torch.zeros(1, 1, 1, 1).expand(8, 10 ** 12, 1, 1)), 'expected a tensor that has its numbers'),
])
def test_wrong_state_is_refused(tmp_path, state, cause):
    assert cause in refusal(save(state, tmp_path / 'a.pth'), tmp_path / 'a.h5')


def test_float16_overflow_is_refused_by_name(tmp_path):
    ckpt = save(with_value(MEAN, 65_505.), tmp_path / 'a.pth')
    assert f'{MEAN} holds 65505; float16 ends at 65,504' in refusal(ckpt, tmp_path / 'a.h5', dtype='float16')
    export_keras(save(with_value(MEAN, 65_504.), tmp_path / 'b.pth'), tmp_path / 'b.h5', dtype='float16')


class Sprung:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_other_files_are_refused_and_nothing_is_executed(tmp_path):
    trap = tmp_path / 'sprung'
    torch.save(dict(state_dict=tiny_state(), meta=Sprung(trap)), tmp_path / 'a.pth')
    assert 'no checkpoint that torch can load safely' in refusal(tmp_path / 'a.pth', tmp_path / 'a.h5')
    (tmp_path / 'b.pth').write_bytes(pickle.dumps(Sprung(trap), protocol=2))
    assert 'load safely' in refusal(tmp_path / 'b.pth', tmp_path / 'a.h5')
    assert not trap.exists()
    (tmp_path / 'c.pth').write_text('not found')
    assert 'load safely' in refusal(tmp_path / 'c.pth', tmp_path / 'a.h5')
    save(tiny_state(), tmp_path / 'd.pth')
    (tmp_path / 'd.pth').write_bytes((tmp_path / 'd.pth').read_bytes()[:-200])
    assert 'load safely' in refusal(tmp_path / 'd.pth', tmp_path / 'a.h5')
    torch.save([1, 2], tmp_path / 'e.pth')
    assert 'no state_dict of tensors' in refusal(tmp_path / 'e.pth', tmp_path / 'a.h5')
    assert 'is not there' in refusal(tmp_path / 'absent.pth', tmp_path / 'a.h5')


def test_destination_is_checked_first(tmp_path, checkpoint):
    for name, cause in (('a.hdf5', 'must end in .h5, .weights.h5 or .keras'), ('none/a.h5', 'there is no folder')):
        assert cause in refusal(checkpoint, tmp_path / name)
    assert 'is for .h5 and .weights.h5' in refusal(checkpoint, tmp_path / 'a.keras', dtype='float16')
    same = save(tiny_state(), tmp_path / 'same.h5')
    assert 'it is the file' in refusal(same, same)
    with pytest.raises(UserError, match="part must be model or backbone, got 'neck'"):
        export_keras(checkpoint, tmp_path / 'a.h5', part='neck')
    with pytest.raises(UserError, match="dtype must be float32 or float16, got 'int8'"):
        export_keras(checkpoint, tmp_path / 'a.h5', dtype='int8')


def test_failed_write_leaves_the_old_file(tmp_path, checkpoint, monkeypatch):
    out = tmp_path / 'a.h5'
    out.write_text('old')

    def full(_descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    assert 'No space left' in refusal(checkpoint, out)
    assert out.read_text() == 'old'


def test_archive_without_keras_is_refused(tmp_path, checkpoint, monkeypatch):
    def missing(_shapes: object) -> None:
        raise UserError('Keras cannot be imported')

    monkeypatch.setattr(exporter, 'build_keras_model', missing)
    assert 'Keras cannot be imported' in refusal(checkpoint, tmp_path / 'a.keras')

"""Checkpoints of mmengine: saved plain, resumed whole, with and without the plugin, and never run."""
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import _load_checkpoint, save_checkpoint

from mgdet_plugin.common.checkpoints import drop_code, to_plain
from mgdet_plugin.common.errors import UserError
from tests.conftest import ROOT
from tests.support import toy_run
from tests.support.toy_run import make_runner

LOSS = 'train/loss'


@pytest.fixture(scope='module')
def stock(tmp_path_factory) -> Path:
    """Return a checkpoint of epoch 2 of 4 that mmengine saved without the plugin, in a process of its own."""
    work_dir = tmp_path_factory.mktemp('stock')
    done = subprocess.run([sys.executable, '-W', 'ignore', toy_run.__file__, work_dir],
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return work_dir / 'epoch_2.pth'


@pytest.fixture(scope='module')
def plain(tmp_path_factory) -> Path:
    """Return a checkpoint of epoch 2 saved in this process. Beside it lies that of epoch 4, the last."""
    work_dir = tmp_path_factory.mktemp('plain')
    make_runner(work_dir).train()
    return work_dir / 'epoch_2.pth'


def leaf_types(value: object) -> set[type]:
    """Return the types of everything in a nested value."""
    if isinstance(value, dict):
        return {type(value)}.union(*(leaf_types(item) for pair in value.items() for item in pair))
    if isinstance(value, (list, tuple, set)):
        return {type(value)}.union(*map(leaf_types, value))
    return {type(value)}


def loads_without_the_plugin(path: Path) -> bool:
    """Tell whether torch reads the file by its own list of names, which the plugin adds to."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.load(path)
    except pickle.UnpicklingError:
        return False
    finally:
        torch.serialization.add_safe_globals(allowed)
    return True


def test_a_saved_checkpoint_is_plain(plain):
    types = leaf_types(torch.load(plain))
    assert types <= {dict, OrderedDict, Counter, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    assert loads_without_the_plugin(plain)


def test_a_stock_checkpoint_is_what_torch_refuses(stock):
    """Or the fixture would prove nothing."""
    assert b'HistoryBuffer' in stock.read_bytes()
    assert not loads_without_the_plugin(stock)


def test_importing_the_plugin_after_mmengine_is_enough(stock):
    assert loads_without_the_plugin(stock.parent / 'late' / 'epoch_2.pth')


def test_a_stock_checkpoint_loads(stock):
    checkpoint = torch.load(stock)
    history = checkpoint['message_hub']['log_scalars'][LOSS]
    assert type(history) is HistoryBuffer
    assert type(history.data[0]) is np.ndarray
    assert history.data[0].shape == (4, ) and history.data[0].dtype == np.float64
    assert history.statistics('max') == history.data[0].max()
    assert checkpoint['message_hub']['runtime_info']['best_score'] == 0.5
    per_class = checkpoint['message_hub']['runtime_info']['per_class']
    assert per_class.dtype == np.float32 and per_class.tolist() == [0.25, 0.75]
    assert checkpoint['meta']['dataset_meta']['palette'].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize('origin', ['plain', 'stock'])
def test_resume_continues_an_interrupted_run(origin, plain, tmp_path, request):
    runner = make_runner(tmp_path, resume_from=request.getfixturevalue(origin))
    runner.train()
    resumed, whole = torch.load(tmp_path / 'epoch_4.pth'), torch.load(plain.with_name('epoch_4.pth'))
    assert torch.equal(resumed['state_dict']['weight'], whole['state_dict']['weight'])
    assert resumed['param_schedulers'] == whole['param_schedulers']
    for name in (LOSS, 'train/lr'):
        history, expected = (each['message_hub']['log_scalars'][name] for each in (resumed, whole))
        assert len(expected['log_history']) == 8
        assert torch.equal(history['log_history'], expected['log_history'])
        assert torch.equal(history['count_history'], expected['count_history'])
    assert isinstance(runner.message_hub.get_scalar(LOSS), HistoryBuffer)


def test_message_hub_loads_both_forms():
    buffer = HistoryBuffer([1.5, 2.5, 4.0], [1, 2, 1], max_length=2)
    state = {'log_scalars': {'loss': buffer}, 'runtime_info': {'iter': 3}, 'resumed_keys': {'loss': True, 'iter': True}}
    for name, form in (('plain', to_plain(state)), ('stock', state)):
        hub = MessageHub.get_instance(f'both forms, {name}')
        hub.load_state_dict(form)
        log_history, count_history = hub.get_scalar('loss').data
        assert log_history.tolist() == [2.5, 4.0] and count_history.tolist() == [2, 1]
        assert hub.get_scalar('loss').max_length == 2
        assert hub.get_info('iter') == 3


class Stage(IntEnum):
    NECK = 2


def test_to_plain_worked():
    ordered = OrderedDict(weight=torch.ones(1))
    ordered._metadata = {'': {'version': np.int64(1)}}
    found = to_plain({
        'number': np.float64(0.1), 'flag': np.bool_(True), np.str_('name'): np.str_('text'), 'stage': Stage.NECK,
        'path': Path('a/b'), 'array': np.array([[1, 2]], dtype='>i4'), 'names': np.array(['a', 'b']),
        'nested': [(np.int32(3), {'deep': np.float32(0.5)})], 'milestones': Counter([1, 1, 3]), 'model': ordered,
        'frozen': frozenset([1]), 'nothing': None, 'bytes': b'a', 'no bytes': b'',
    })
    array = found.pop('array')
    assert array.dtype == torch.int32 and array.tolist() == [[1, 2]]
    assert found == {
        'number': 0.1, 'flag': True, 'name': 'text', 'stage': 2, 'path': str(Path('a/b')), 'names': ['a', 'b'],
        'nested': [(3, {'deep': 0.5})], 'milestones': Counter({1: 2, 3: 1}), 'model': {'weight': torch.ones(1)},
        'frozen': {1}, 'nothing': None, 'bytes': b'a', 'no bytes': b'',
    }
    assert type(found['model']) is OrderedDict and found['model']._metadata == {'': {'version': 1}}
    assert leaf_types(found) == {
        dict, OrderedDict, Counter, list, tuple, set, str, int, float, bool, bytes, bytearray, type(None), torch.Tensor}


def test_to_plain_leaves_out_what_has_no_plain_form():
    with pytest.warns(UserWarning, match=r"checkpoint\['hooks'\]\['call'\] is a builtin_function_or_method"):
        found = to_plain({'hooks': {'call': len, 'kept': 1}})
    assert found == {'hooks': {'kept': 1}}
    with pytest.warns(UserWarning, match=r"checkpoint\['list'\]\[1\] is a object"):
        assert to_plain({'list': [1, object(), 3]}) == {'list': [1, None, 3]}


def test_saving_leaves_the_value_in_memory_alone(tmp_path):
    checkpoint = {'message_hub': {'log_scalars': {'loss': HistoryBuffer([1.0], [1])}}, 'state_dict': {}}
    save_checkpoint(checkpoint, str(tmp_path / 'saved.pth'))
    assert isinstance(checkpoint['message_hub']['log_scalars']['loss'], HistoryBuffer)
    assert isinstance(torch.load(tmp_path / 'saved.pth')['message_hub']['log_scalars']['loss'], dict)


@pytest.mark.parametrize('value', [
    np.arange(6, dtype='>i2').reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([True, False]), np.array(2.5), np.zeros((0, 3), dtype=np.float32), np.array([1 + 2j]),
    np.float32(0.1), np.int64(-3), np.bool_(True)
], ids=repr)
def test_stock_numpy_values_load_exactly(value, tmp_path):
    torch.save({'value': value}, tmp_path / 'numpy.pth')
    found = torch.load(tmp_path / 'numpy.pth')['value']
    assert isinstance(found, type(value))
    assert found.dtype == value.dtype.newbyteorder('=') and found.shape == value.shape
    np.testing.assert_array_equal(found, value)
    torch.save({'value': found}, tmp_path / 'again.pth')
    assert (tmp_path / 'again.pth').read_bytes().count(b'mgdet_plugin') == 0


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Forged:
    """Pickled as a call whose result is given a state."""

    def __init__(self, function, arguments, state):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def forged_array() -> Forged:
    """Return an array whose object type, flags cleared, would take bytes of the file for pointers."""
    dtype = Forged(np.dtype, ('O', False, True), (3, '|', None, None, None, -1, -1, 0))
    return Forged(np._core.multiarray._reconstruct, (np.ndarray, (0, ), b'b'), (1, (1, ), dtype, False, b'\0' * 8))


MALICIOUS = {
    'os.system': lambda mark: Calls(os.system, f'touch {mark}'),
    'getattr of an allowed class': lambda mark: Calls(getattr, torch.Tensor, 'share_memory_'),
    'getattr of HistoryBuffer': lambda mark: Calls(getattr, HistoryBuffer, '__init__'),
    'eval': lambda mark: Calls(eval, f'open({str(mark)!r}, "w")'),
    'forged array': lambda mark: forged_array(),
    'object scalar': lambda mark: Calls(np._core.multiarray.scalar, np.dtype('O'), b'\0' * 8),
}


@pytest.mark.parametrize('name', list(MALICIOUS))
def test_a_malicious_checkpoint_is_refused(name, tmp_path):
    mark, path = tmp_path / 'mark', tmp_path / 'bad.pth'
    torch.save({'state_dict': {}, 'value': MALICIOUS[name](mark)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(str(path))
    with pytest.raises(UserError, match='no checkpoint that torch can load safely') as refused:
        _load_checkpoint(str(path))
    assert 'weights_only' not in str(refused.value)
    assert not mark.exists()


def test_a_stored_array_size_without_data_takes_no_memory(tmp_path):
    torch.save(Calls(np._core.multiarray._reconstruct, np.ndarray, (2**50, ), b'b'), tmp_path / 'huge.pth')
    assert torch.load(tmp_path / 'huge.pth').shape == (0, )


def test_the_allow_list_holds_nothing_that_calls_code():
    allowed = torch.serialization.get_safe_globals()
    bare = {entry[0] if isinstance(entry, tuple) else entry for entry in allowed}
    assert not bare & {getattr, eval, exec, __import__, np.dtype, np.ndarray}


def test_a_stored_history_brings_no_functions(tmp_path):
    buffer = HistoryBuffer([1.0], [1])  # the first one of a process registers the methods
    before = dict(HistoryBuffer._statistics_methods)
    assert before
    buffer.statistics_methods = {'mean': 3}
    state = {**vars(buffer), 'mean': 4}
    torch.save(Forged(HistoryBuffer, (), state), tmp_path / 'history.pth')
    assert torch.load(tmp_path / 'history.pth').mean() == 1.0
    assert HistoryBuffer._statistics_methods == before


def test_resume_runs_no_code_of_the_checkpoint(plain, tmp_path):
    mark = tmp_path / 'mark'
    checkpoint = torch.load(plain)
    checkpoint['meta']['config'] = f'open({str(mark)!r}, "w").close()\n'
    torch.save(checkpoint, tmp_path / 'code.pth')
    runner = make_runner(tmp_path / 'run', resume_from=tmp_path / 'code.pth')
    runner.train()
    assert runner.epoch == 4
    assert not mark.exists()


def test_an_inferencer_runs_no_code_of_the_checkpoint(tmp_path):
    from mmdet.apis import DetInferencer
    mark = tmp_path / 'mark'
    code = f'open({str(mark)!r}, "w").close()\n'
    torch.save({'state_dict': {}, 'meta': {'cfg': code}, 'message_hub': {'runtime_info': {'cfg': code}}},
               tmp_path / 'code.pth')
    with pytest.warns(UserWarning, match='holds code'), pytest.raises(ValueError, match='Cannot find the config'):
        DetInferencer(weights=str(tmp_path / 'code.pth'), device='cpu')
    assert not mark.exists()


@pytest.mark.parametrize(('source', 'kept'), [
    ("lr = -1e-4\nmodel = dict(type='A', sizes=[(1, 2)], names={'a': None})\n", True),
    ('', True),
    ("_base_ = ['other.py']", False),
    ('import os', False),
    ("model = dict(type=__import__('os'))", False),
    ("model = dict(**open('f'))", False),
    ("model = dict(open('f'))", False),
    ('model = [x for x in ()]', False),
    ("model.type = 'A'", False),
    ("model = f'{open(1)}'", False),
    ('not python', False),
    (b'lr = 1', False),
    (None, False),
])
def test_a_stored_config_stays_only_if_it_is_literal(source, kept):
    checkpoint = {'meta': {'cfg': source}, 'message_hub': {'runtime_info': {'cfg': source}}}
    drop_code(checkpoint)
    assert ('cfg' in checkpoint['meta'], 'cfg' in checkpoint['message_hub']['runtime_info']) == (kept, kept)


def test_a_config_as_mmengine_stores_it_stays():
    import mmdet
    from mmengine.config import Config
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    for name in ('yolo/yolov3_d53_8xb8-320-273e_coco.py', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py'):
        text = Config.fromfile(folder / name).pretty_text
        checkpoint = {'meta': {'cfg': text}}
        drop_code(checkpoint)
        assert checkpoint['meta']['cfg'] == text

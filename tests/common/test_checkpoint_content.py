"""What a checkpoint says is held against what it may say; what may not be is one line that names its place."""
from __future__ import annotations

import math
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

import mgdet_plugin.engine
import mgdet_plugin.guard  # noqa: F401  who writes an entry checks it
from mgdet_plugin.common.checkpoint_content import check_content, check_finite
from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import GuardRecord
from mgdet_plugin.engine.hooks.random_state_hook import random_state
from mgdet_plugin.guard.loss_watch import LossWatch
from mgdet_plugin.plan.progress import Progress
from tests.compat.test_checkpoint_compat import Calls
from tests.support.fuzz.mutations import doubled, holds_itself, nested

WEIGHT = {'w': torch.ones(2)}


def content(**entries):
    """A sound checkpoint with other entries."""
    history = dict(log_history=torch.ones(2), count_history=torch.ones(2), max_length=9)
    return {
        'state_dict': WEIGHT, 'meta': dict(epoch=1, iter=2, seed=3, dataset_meta=dict(classes=('a', 'b'))),
        'message_hub': dict(log_scalars={'train/loss': history}, runtime_info={}, resumed_keys={'train/loss': True}),
        'optimizer': dict(state={0: dict(exp_avg=torch.ones(2), step=torch.tensor(2.))},
                          param_groups=[dict(params=[0], lr=1e-3, betas=(.9, .99), foreach=None, name='head')]),
        'param_schedulers': [dict(last_step=2, base_values=[.1])], 'ema_state_dict': {'module.w': torch.ones(2)},
        'mgdet': dict(Progress(best=math.inf).to_plain(), entry=dict(name='a', trained_parts=['neck'])),
        'guard': dict(record=GuardRecord().to_plain(), watch=LossWatch().to_plain()), 'random_state': [random_state()],
        'results': dict(rows=[dict(epoch='1', iter='2', stage='a', loss='0.5')], sums={}, count=0),
        'keep': dict(new_classes=['a']), **entries}


def test_a_sound_one_passes():
    check_content(content(), 'a.pth')
    check_content({'state_dict': WEIGHT}, 'a.pth')
    check_content(WEIGHT, 'a.pth')
    check_finite(content(), 'a.pth')


def hub(**parts):
    return {**content()['message_hub'], **parts}


def state(**parts):
    return {**random_state(), **parts}


@pytest.mark.parametrize(('entries', 'message'), [
    (dict(meta=3), 'meta is 3, expected an object'),
    (dict(meta=dict(epoch=-1)), 'meta.epoch is -1, expected a whole number from 0'),
    (dict(meta=dict(epoch=True)), 'meta.epoch is True'),
    (dict(meta=dict(iter=10**400)), 'meta.iter is a whole number of 1329 bits'),
    (dict(meta=dict(seed=2**32)), 'meta.seed'),
    (dict(meta=dict(dataset_meta=['a'])), r"meta.dataset_meta is \['a'\], expected an object"),
    (dict(meta=dict(dataset_meta=dict(classes='ab'))), 'meta.dataset_meta.classes'),
    (dict(meta=dict(dataset_meta=dict(classes=[1]))), 'a name in meta.dataset_meta.classes is 1'),
    (dict(meta=dict(dataset_meta=dict(classes=['\x1b[2J']))), 'expected a text'),
    (dict(meta=dict(keras_import=dict(anchors=[[1]]))), 'meta.keras_import.anchors'),
    (dict(meta=dict(new_classes=[[1]])), 'meta.new_classes: class names must be a list of texts'),
    (dict(meta=dict(new_classes=torch.ones(2))), 'meta.new_classes: class names'),
    (dict(meta=dict(deep=nested(300))), 'at most 40 deep'),
    (dict(meta=dict(wide=doubled(60))), r'entries|deep'),
    (dict(meta=dict(wide=doubled(30))), 'at most 5,000,000 entries'),
    (dict(meta=dict(round=holds_itself())), 'entries'),
    (dict(message_hub=[]), 'message_hub is'),
    (dict(message_hub=hub(log_scalars={'a': dict(log_history=3)})), 'a log history'),
    (dict(message_hub=hub(log_scalars={'a': dict(log_history=torch.ones(2), count_history=torch.ones(3),
                                                 max_length=9)})), 'values and as many counts'),
    (dict(message_hub=hub(resumed_keys={'a': 'yes'})), 'message_hub.resumed_keys.a'),
    (dict(message_hub=hub(log_scalars={'a': dict(log_history=torch.ones(2), count_history=torch.ones(2),
                                                 max_length=1e8)})), 'a.max_length is 100000000.0, expected a whole'),
    (dict(optimizer=dict(state=[], param_groups=[])), 'optimizer.state'),
    (dict(optimizer=dict(param_groups=[])), 'optimizer.state is None'),
    (dict(optimizer=dict(state={0: dict(step=10**30)}, param_groups=[])), 'state.0.step is a whole number of 100 bits'),
    (dict(optimizer=dict(state={}, param_groups=[dict(params=[0, [1]])])), r'param_groups\[0\].params is \[0, \[1\]\]'),
    (dict(optimizer=dict(state={}, param_groups=[dict(params=[0], weight_decay=math.nan)])), 'weight_decay is nan'),
    (dict(optimizer=dict(state={}, param_groups=[dict(params=[0], weight_decay=-1)])), 'weight_decay is -1'),
    (dict(param_schedulers=[dict(last_step='x')]), 'param_schedulers.last_step'),
    (dict(ema_state_dict={'a': 1}), 'ema_state_dict'),
    (dict(mgdet=dict(stage=-1)), 'mgdet.stage is -1'),
    (dict(mgdet=dict(damping=1e6)), 'mgdet.damping is 1000000.0'),
    (dict(mgdet=dict(history=[3])), r'mgdet.history\[0\] is 3, expected an object'),
    (dict(mgdet=dict(entry=dict(trained_parts='neck'))), 'mgdet.entry.trained_parts'),
    (dict(guard=dict(record=dict(start='all'), watch={})), "guard.record.start is 'all'"),
    (dict(guard=dict(record=dict(good=[1]), watch={})), 'guard.record.good'),
    (dict(mgdet=dict(entry=torch.zeros(0))), r'mgdet.entry is tensor\(\[\]\)'),
    (dict(guard=dict(record={})), 'guard.watch is None'),
    (dict(guard=dict(record={}, watch={}, block=torch.zeros(0))), r'guard.block is tensor\(\[\]\), expected an object'),
    (dict(guard=dict(record=dict(validations=[dict(epoch=1, iter=2, stage='a', metrics=dict(a='b'))]), watch={})),
     r'guard.record.validations\[0\].metrics.a'),
    (dict(results=dict(rows=[dict(iter='2', loss='=1+1')], sums={}, count=0)), 'the figures of a validation'),
    (dict(random_state=[3]), r'random_state\[0\] is 3'),
    (dict(random_state=[state(torch=torch.zeros(3))]), 'the state of random generators'),
    (dict(random_state=[state(numpy=state()['numpy'][:3])]), 'the state of random generators'),
    (dict(keep=dict(new_classes=[1.5])), 'new_classes'),
    (dict(gradients=[{'w': 'x'}]), 'gradients.w'),
    (dict(other=torch.zeros(1).expand(2**40)), 'a tensor of 4,398,046,511,104 bytes with 4 of them'),
    (dict(other=torch.zeros(1, device='meta')), 'a dense tensor'),
    (dict(other=torch.zeros(2).to_sparse()), 'a dense tensor'),
    (dict(other=OrderedDict), 'expected plain values')])
def test_what_may_not_be_is_one_line(entries, message):
    with pytest.raises(UserError, match=message) as refused:
        check_content(content(**entries), 'a.pth')
    assert str(refused.value).startswith('a.pth: ') and '\n' not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_attributes_of_a_dict_would_hide_its_methods():
    hidden = OrderedDict(WEIGHT)
    hidden.items = OrderedDict  # which gives nothing
    with pytest.raises(UserError, match='no attributes'):
        check_content({'state_dict': hidden}, 'a.pth')


@pytest.mark.parametrize('place', ['ema_state_dict', 'optimizer'])
def test_a_state_that_is_not_finite_is_not_gone_on_from(place):
    broken = content()
    target = broken['optimizer']['state'][0] if place == 'optimizer' else broken['ema_state_dict']
    target[next(iter(target))][0] = math.nan
    with pytest.raises(UserError, match=rf'{place}.*not finite'):
        check_finite(broken, 'a.pth')


@pytest.mark.parametrize('size', [2**45, 2**62])
def test_a_pickle_that_asks_for_all_memory_is_one_line(size, tmp_path):
    for number, call in enumerate((Calls(bytearray, size), Calls(bytes, size), Calls(torch.FloatTensor, size))):
        torch.save({'state_dict': WEIGHT, 'x': call}, tmp_path / f'{number}.pth')
        with pytest.raises(UserError, match='no checkpoint that torch can load safely') as refused:
            load_checkpoint(tmp_path / f'{number}.pth')
        assert '\n' not in str(refused.value)


def test_a_packed_member_is_refused_before_it_is_read(tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(10**6)}}, tmp_path / 'plain.pth')
    with zipfile.ZipFile(tmp_path / 'plain.pth') as plain, zipfile.ZipFile(
            tmp_path / 'packed.pth', 'w', zipfile.ZIP_DEFLATED) as packed:
        for each in plain.infolist():
            packed.writestr(each.filename, plain.read(each))
    with pytest.raises(UserError, match='compressed, which torch never writes'):
        load_checkpoint(tmp_path / 'packed.pth')


def test_a_stock_history_of_other_shapes_is_refused(tmp_path):
    from mmengine.logging import HistoryBuffer
    buffer = HistoryBuffer([1.0], [1])
    buffer._count_history = np.ones((2, 2))
    torch.save({'state_dict': WEIGHT, 'history': buffer}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='values and as many counts'):
        load_checkpoint(tmp_path / 'a.pth')

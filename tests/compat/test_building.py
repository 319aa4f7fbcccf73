"""What fails amid a run for a mistake in its config is one line, too."""
from __future__ import annotations

import os
import signal

import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

from mgdet_plugin.common.errors import UserError, user_errors_to_exit
from mgdet_plugin.compat.exhaustion import exhaustion_told
from mgdet_plugin.datasets import Letterbox


def test_a_pipeline_names_the_step_that_fails():
    with pytest.raises(UserError, match=r"step 0 of a pipeline, Letterbox, cannot take a\.jpg: KeyError: 'img'"):
        Compose([Letterbox((64, 64))])(dict(img_path='a.jpg'))
    assert Compose([lambda data: None, Letterbox((64, 64))])({}) is None  # as a filter does


def test_a_named_pipe_in_a_picture_s_place_is_not_waited_for(tmp_path):
    def over(*_: object) -> None:
        raise TimeoutError

    os.mkfifo(tmp_path / 'a.jpg')
    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(20)
    try:
        with pytest.raises(UserError, match=r'a\.jpg is no file'):
            Compose([LoadImageFromFile()])(dict(img_path=str(tmp_path / 'a.jpg')))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_metrics_that_cannot_measure():
    with pytest.raises(UserError, match='CocoMetric cannot measure what the detector found: TypeError'):
        Evaluator(CocoMetric(metric='segm')).process([object()])


def test_an_error_of_a_loader_s_process_is_its_line(capsys):
    with pytest.raises(SystemExit, match='2'), user_errors_to_exit():
        raise UserError('Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  File\n'
                        'mgdet_plugin.common.errors.UserError: the picture is gone\n')
    assert capsys.readouterr().err == 'error: the picture is gone\n'


@pytest.mark.parametrize('say, told', [
    ('DataLoader worker (pid 7) is killed by signal: Killed.', 'a process that loads images was killed'),
    ("[enforce fail] . DefaultCPUAllocator: can't allocate memory", 'memory ran out'),
    ('the shape is another', 'step 0 of a pipeline, .*, cannot take a.jpg: RuntimeError: the shape is another')])
def test_what_the_machine_did_amid_a_step_is_no_fault_of_its_picture(say, told):
    """torch raises that a loader was killed wherever the process is."""
    def step(data):
        raise RuntimeError(say)

    with pytest.raises(UserError, match=told), exhaustion_told():
        Compose([step])(dict(img_path='a.jpg'))


def test_none_switches_any_default_hook_off():
    hooks: dict[str, object] = {}
    runner = Runner.__new__(Runner)
    runner.register_hook = lambda hook, **options: hooks.update({hook['type']: options})  # type: ignore[method-assign]
    runner.register_default_hooks(dict(drift_guard=None, timer=None, random_state=dict(type='RandomStateHook')))
    assert 'RandomStateHook' in hooks and 'IterTimerHook' not in hooks and 'LoggerHook' in hooks


@pytest.mark.parametrize(('key', 'value', 'said'), [
    ('log_level', 'VERBOSE', 'log_level'), ('randomness', dict(seed='abc'), 'randomness'),
    ('env_cfg', dict(mp_cfg=dict(mp_start_method='spwan')), 'env_cfg')])
def test_a_run_that_cannot_begin_names_the_key(key, value, said, tmp_path):
    cfg = Config({'model': dict(type='ToyModel'), 'work_dir': str(tmp_path), key: value})
    with pytest.raises(UserError, match=f'a run of this config cannot begin: {said}: '):
        Runner.from_cfg(cfg)

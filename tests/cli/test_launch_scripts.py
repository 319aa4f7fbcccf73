"""The launch scripts: what they call, and two processes that train through them. Slurm itself is not here."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgdet_plugin.compat.launch import has_accelerator
from tests.compat.test_launch_compat import free_port
from tests.conftest import ROOT
from tests.support.small_run import make_dataset, run_tool, write_config

TOOLS = ROOT / 'tools'
STUB = '#!/bin/sh\nprintf "%s\\n" "$0" "$@" > "$STUB_OUT"\necho "$PYTHONPATH|$MASTER_PORT" >> "$STUB_OUT"\n'


def call(script: str, *arguments: str | Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of tools/ with variables added to the environment."""
    clean = {key: value for key, value in os.environ.items() if key not in ('PORT', 'GPUS', 'PYTHON', 'MASTER_PORT')}
    return subprocess.run([TOOLS / script, *map(str, arguments)], capture_output=True, text=True, check=False,
                          env={**clean, **{k: str(v) for k, v in environment.items()}}, timeout=200)


@pytest.fixture
def stubs(tmp_path):
    """Put a python and an srun on the path that note their arguments; return what reads them."""
    for name in ('python', 'srun'):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def called(script: str, *arguments: str, **environment: str) -> list[str]:
        out = tmp_path / 'out'
        done = call(script, *arguments, PATH=f'{tmp_path}:{os.environ["PATH"]}', STUB_OUT=out, **environment)
        assert done.returncode == 0, done.stderr
        program, *rest = out.read_text().splitlines()
        return [Path(program).name, *rest]

    return called


@pytest.mark.parametrize(('script', 'count'), [('dist_train.sh', 2), ('dist_test.sh', 3), ('slurm_train.sh', 3)])
def test_a_missing_argument_is_answered_with_the_usage(script, count):
    done = call(script, *['a'] * (count - 1))
    assert done.returncode == 2
    assert re.match(r'usage: \S+ .*ARGS', done.stderr) and done.stderr.count('\n') == 1
    assert subprocess.run(['bash', '-n', TOOLS / script], check=False).returncode == 0
    assert os.access(TOOLS / script, os.X_OK)


def test_dist_train_calls_torchrun(stubs):
    called = stubs('dist_train.sh', 'my config.py', '4', '--resume', '--cfg-options', 'a=[1, 2]')
    assert called[:-1] == [
        'python', '-m', 'torch.distributed.run', '--nnodes=1', '--node_rank=0', '--nproc_per_node=4',
        '--master_addr=127.0.0.1', '--master_port=29500', f'{TOOLS}/train.py', 'my config.py', '--resume',
        '--cfg-options', 'a=[1, 2]', '--launcher', 'pytorch']
    assert called[-1].split('|')[0].split(':')[0] == str(ROOT)
    called = stubs('dist_train.sh', 'c.py', '8', NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    assert called[3:8] == ['--nnodes=2', '--node_rank=1', '--nproc_per_node=8', '--master_addr=10.0.0.1',
                           '--master_port=1234']


def test_dist_test_calls_torchrun(stubs):
    called = stubs('dist_test.sh', 'c.py', 'w.pth', '2', '--out', 'f.pkl')
    assert called[8:-1] == [f'{TOOLS}/test.py', 'c.py', 'w.pth', '--out', 'f.pkl', '--launcher', 'pytorch']


def test_slurm_train_calls_srun(stubs):
    called = stubs('slurm_train.sh', 'gpu', 'my job', 'c.py', '--resume', '--work-dir', 'a b')
    assert called[:-1] == [
        'srun', '--partition=gpu', '--job-name=my job', '--ntasks=8', '--ntasks-per-node=8', '--gres=gpu:8',
        '--cpus-per-task=5', '--kill-on-bad-exit=1', 'python', '-u', f'{TOOLS}/train.py', 'c.py', '--resume',
        '--work-dir', 'a b', '--launcher', 'slurm']
    assert called[-1].endswith('|29500')
    called = stubs('slurm_train.sh', 'gpu', 'job', 'c.py', GPUS='4', CPUS_PER_TASK='2', PORT='1234',
                   SRUN_ARGS='--time=1:00 --qos=low', PYTHON='python3.11')
    assert called[3:11] == ['--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4', '--cpus-per-task=2',
                            '--kill-on-bad-exit=1', '--time=1:00', '--qos=low', 'python3.11']
    assert called[-1].endswith('|1234')
    called = stubs('slurm_train.sh', 'cpu', 'job', 'c.py', GPUS='2', GPUS_PER_NODE='0')
    assert called[3:5] == ['--ntasks=2', '--nodes=1'] and not [each for each in called if 'gres' in each]


@pytest.mark.skipif(has_accelerator(), reason='for machines without a GPU')
def test_two_processes_train_and_a_kill_in_between_costs_an_epoch(tmp_path):
    data = make_dataset(tmp_path / 'data')
    config = write_config(tmp_path / 'small.py', data, load_from=None)
    arguments = [config, '2', '--work-dir', tmp_path / 'run', '--resume']
    environment = {'PYTHON': sys.executable, 'PORT': str(free_port()), 'OMP_NUM_THREADS': '1'}
    done = call('dist_train.sh', *arguments, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count('no checkpoint in') == 1 and done.stderr.count('by gloo instead of nccl') == 1
    first = tmp_path / 'run' / 'epoch_1.pth'
    assert torch.load(first)['meta']['iter'] == 1, 'eight images, two processes, four images each'

    (tmp_path / 'run' / 'epoch_2.pth').write_bytes(first.read_bytes()[:1000])
    (tmp_path / 'run' / 'last_checkpoint').write_text(f'{tmp_path}/run/epoch_2.pth')
    done = run_tool('train', *arguments[:1], *arguments[2:], '--cfg-options', 'train_cfg.max_epochs=2', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    line, = [line for line in done.stderr.splitlines() if 'resuming from' in line]
    assert 'epoch_2.pth' in line and line.endswith(f': resuming from {first}')
    assert 'going on from run/epoch_1.pth, 1 epoch done' in done.stdout
    assert torch.load(tmp_path / 'run' / 'epoch_2.pth')['meta']['epoch'] == 2

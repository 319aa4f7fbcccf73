"""tools/plan.py: the plan of a config without training."""
import json

import pytest
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.report import plan_report, plan_text, report_without_stages
from tests.conftest import ROOT
from tests.support.small_run import run_tool
from tests.support.write_plans import plans

STAGED = ROOT / 'configs/mgdet_nano_staged.py'


def test_the_docs_show_what_the_tool_prints():
    """Mended by ``python tests/support/write_plans.py``."""
    assert (ROOT / 'docs' / 'plans.md').read_text() == plans()


def test_text_and_json_say_the_same():
    as_json = run_tool('plan', STAGED, '--json', cwd=ROOT)
    assert as_json.returncode == 0, as_json.stderr
    report = json.loads(as_json.stdout)
    head, neck, full = report['stages']
    assert [stage['first_epoch'] for stage in report['stages']] == [1, 6, 11] and report['epochs'] == 20
    assert head['trained_parameters'] == 18 * (144 + 72 + 36) + 3 * 18  # the three predict convolutions of 18 channels
    assert head['parts']['backbone']['norms_held'] == 52 and neck['parts']['neck']['norms_learning'] == 11
    rates = {group['name']: (group['trains'], group['peak'], group['last']) for group in neck['groups']}
    assert rates == dict(backbone=(False, 5e-5, pytest.approx(1e-7)), neck=(True, 5e-5, pytest.approx(1e-7)),
                         bbox_head=(True, 5e-5, pytest.approx(1e-7)))
    assert full['augmentation']['mosaic'] == 0.3 and head['augmentation']['mixup'] == 0
    text = plan_text(plan_report(Config.fromfile(STAGED))[0])
    assert "stage 2 'neck': epochs 6 to 10, freeze level 1, batch 4 a process" in text


def test_a_config_without_stages_says_what_it_trains():
    cfg = Config.fromfile('configs/scratch/multigrid_nano_bccd.py')
    report = report_without_stages(cfg)
    assert plan_text(report) == (
        f'{cfg.filename}: no stages; EpochBasedTrainLoop trains 3,426,777 of 3,426,777 parameters for 40 epochs, '
        'start: nothing, AdamW at 0.008, LinearLR, CosineAnnealingLR')
    cfg.merge_from_dict({'load_from': 'some.pth', 'train_cfg': dict(
        _delete_=True, type='IterBasedTrainLoop', max_iters=9)})
    assert 'for 9 iterations, start: full (some.pth)' in plan_text(report_without_stages(cfg))
    cfg.optim_wrapper = None
    with pytest.raises(UserError, match='neither stages nor optim_wrapper'):
        report_without_stages(cfg)


def test_broken_rules_are_lines_and_exit_2():
    done = run_tool('plan', STAGED, '--cfg-options', 'stages.2.lr=1e-3', 'stages.0.mosaic_prob=0.2',
                    'train_cfg.max_epochs=3', cwd=ROOT)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith(('error: ', 'warning: '))]
    assert [line.split('[rule ')[1].split(';')[0] for line in lines if line.startswith('error')] == [
        'rate', 'mixing-while-frozen']
    assert any('cut-short' in line for line in lines if line.startswith('warning'))
    assert 'Traceback' not in done.stderr and "stage 3 'full'" in done.stdout


def test_scaled_rates_obey_the_limit():
    """Batch 48 in eight processes is eight times the batch the rates are for: 8e-4, held to 1e-4 with full weights."""
    cfg = Config.fromfile(ROOT / 'configs/mgdet_model5_staged.py')
    cfg.auto_scale_lr.enable = True
    report, _ = plan_report(cfg, processes=8)
    assert report['rate_scale'] == 8
    assert [max(group['peak'] for group in stage['groups']) for stage in report['stages']] == pytest.approx(
        [1e-4, 1e-4, 1e-4])
    backbone = Config.fromfile(ROOT / 'configs/mgdet_backbone_staged.py')
    backbone.auto_scale_lr.enable = True
    assert plan_report(backbone, processes=2)[0]['stages'][0]['groups'][1]['peak'] == pytest.approx(2e-4)


def test_accumulation_counts_as_batch():
    cfg = Config.fromfile(ROOT / 'configs/mgdet_backbone_staged.py')
    cfg.merge_from_dict({'auto_scale_lr.enable': True, 'train_dataloader.batch_size': 8,
                         'optim_wrapper.accumulative_counts': 6})
    assert plan_report(cfg)[0]['rate_scale'] == pytest.approx(1)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['configs/nothing.py'], 'configs/nothing.py is not there'),
    (['configs/_base_/schedules/staged.py'], 'has no stages'),
    (['configs/mgdet_nano_staged.py', '--cfg-options', 'stages.1.freeze_level=7'], 'freeze_level must be one of'),
    (['configs/mgdet_nano_staged.py', '--colour'], 'unrecognized arguments: --colour')])
def test_bad_input(arguments, message):
    done = run_tool('plan', *arguments, cwd=ROOT)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith('error: ')]) == 1

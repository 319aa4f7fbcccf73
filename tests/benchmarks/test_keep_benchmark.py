"""What holding on costs: rows of sides measured in turns, and the config of each side."""
import pytest
from mmengine.config import Config

from benchmarks import keep_benchmark
from benchmarks.keep_benchmark import CONFIG, NEW, ROOT, SIDES, keep_rows, run_side
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Plan


@pytest.mark.parametrize(('side', 'old'), [('without', 0), ('nothing_of_six', 0), ('third', 2), ('third_cached', 2),
                                           ('half', 4), ('half_cached', 4)])
def test_each_side_takes_its_new_images_and_its_old_ones(side, old):
    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.merge_from_dict(dict(SIDES[side]))
    plan = Plan.from_cfg(cfg)
    assert cfg.train_dataloader.batch_size == (6 if side == 'nothing_of_six' else NEW) and plan.epochs == 2
    assert (plan.keep.beside(NEW) if plan.keep else 0) == old
    assert bool(plan.keep and plan.keep.cache) is side.endswith('cached')


def test_rows_are_medians_over_turns(monkeypatch):
    order = []

    def measured(options, folder):
        order.append(folder.name)
        number = len(order)
        return (2.0 if options['keep'] is None else 3.0 + number, 100.0) if 'keep' in options else (3.0, 150.0)

    monkeypatch.setattr(keep_benchmark, 'run_side', measured)
    rows = {row['suite']: row for row in keep_rows(repeats=2)}
    assert order == [f'{side}_{turn}' for turn in range(2) for side in SIDES]
    assert rows['keep_third_step']['ratio'] == 1.5 and rows['keep_half_memory']['ratio'] == 1.5
    assert len(rows) == 10 and {row['unit'] for row in rows.values()} == {'s', 'MB'}


def test_a_run_that_fails_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r'a run of the benchmark ended with exit 2: .*keep.share must be'):
        run_side({'keep.share': 5}, tmp_path / 'run')

"""What keeping the frozen part's outputs is worth: the config that is trained, and the rows of two sides in turns."""
import pytest
import torch

from benchmarks.training import trunk_cache
from benchmarks.training.trunk_cache import SIDE, TRAINED, largest_difference, stage1_cache_rows, stage_config
from mgdet_plugin.plan.plan import Plan


def test_it_is_the_full_size_first_stage_without_augmentation():
    cfg = stage_config()
    [stage] = Plan.from_cfg(cfg).stages
    assert (stage.epochs, stage.freeze_level, stage.clean) == (5, 2, True)
    assert cfg.model.backbone.type == 'Darknet' and cfg.model.bbox_head.bridge_channels == (704, 352, 176)
    scales = [step.scale for split in ('train', 'val') for step in cfg[f'{split}_dataloader'].dataset.pipeline
              if step.type == 'Letterbox']
    assert scales == [(SIDE, SIDE)] * 2 and cfg.train_dataloader.dataset.indices == TRAINED


def test_rows_are_medians_over_turns(monkeypatch):
    """A run with a cache takes 1 s and leaves 0.5, one without takes 4 s and leaves 2, both from 0."""
    order, clock = [], [0.0]

    class Runner:
        def __init__(self, cfg):
            self.cached, self.model = cfg.trunk_cache is not None, self

        from_cfg = classmethod(lambda cls, cfg: order.append(cfg.experiment_name) or cls(cfg))

        def train(self):
            clock[0] += 1.0 if self.cached else 4.0

        def state_dict(self):
            return dict(weight=torch.full((2, ), 0.5 if self.cached else 2.0))

    monkeypatch.setattr(trunk_cache, 'Runner', Runner)
    monkeypatch.setattr(trunk_cache, 'save_weights', lambda cfg, path: dict(weight=torch.zeros(2)))
    monkeypatch.setattr(trunk_cache.time, 'perf_counter', lambda: clock[0])
    seconds, apart = stage1_cache_rows(repeats=2)
    assert order == ['ours_0', 'peer_0', 'ours_1', 'peer_1'] and seconds['ratio'] == 0.25
    assert (apart['ours_s'], apart['peer_s'], apart['ratio']) == (1.5, 2.0, 0.75)


def test_the_largest_difference_is_of_any_number():
    one, other = (dict(a=torch.tensor([1.0, 2.0]), b=torch.tensor([each])) for each in (0, 3))
    assert largest_difference(one, other) == pytest.approx(3)

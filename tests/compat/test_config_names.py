"""``_base_`` names configs of the package."""
import pytest
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS


@pytest.mark.parametrize('prefix', ['mgdet_plugin::', 'mgdet::'])
def test_a_base_of_the_package(prefix, tmp_path):
    (tmp_path / 'mine.py').write_text(f"_base_ = ['{prefix}mgdet_nano_staged.py']\ntrain_cfg = dict(val_interval=7)\n")
    mine, base = Config.fromfile(tmp_path / 'mine.py'), Config.fromfile(CONFIGS / 'mgdet_nano_staged.py')
    assert mine.train_cfg.val_interval == 7
    base.train_cfg.val_interval = 7
    assert mine.to_dict() == base.to_dict()


def test_other_bases_are_mmengine_s(tmp_path):
    (tmp_path / 'one.py').write_text("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'\n")
    assert Config.fromfile(tmp_path / 'one.py').train_cfg.max_epochs == 12
    (tmp_path / 'two.py').write_text("_base_ = 'one.py'\n")
    assert Config.fromfile(tmp_path / 'two.py').train_cfg.max_epochs == 12
    (tmp_path / 'three.py').write_text("_base_ = 'mgdet_plugin::mgdet_nano_stagd.py'\n")
    with pytest.raises(UserError, match=r'stagd\.py is not there; the nearest name is mgdet_nano_staged\.py'):
        Config.fromfile(tmp_path / 'three.py')

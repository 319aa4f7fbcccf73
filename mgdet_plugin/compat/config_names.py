"""Names of this package's configs for mmengine, which knows those of OpenMMLab's packages alone."""
from __future__ import annotations

from types import ModuleType

from mgdet_plugin.common.resources import PREFIXES, config_path


def patch_config(module: ModuleType) -> None:
    """Let ``_base_`` name a config as ``mgdet_plugin::mgdet_nano_staged.py``, wherever the package lies."""
    find = module.Config._get_cfg_path

    def find_with_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        return (str(config_path(cfg_path)), None) if cfg_path.startswith(PREFIXES) else find(cfg_path, filename)

    module.Config._get_cfg_path = staticmethod(find_with_ours)

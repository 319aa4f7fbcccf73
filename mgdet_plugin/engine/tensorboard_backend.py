"""TensorBoard where it is installed."""
from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from mmdet.registry import VISBACKENDS
from mmengine.visualization import TensorboardVisBackend


@VISBACKENDS.register_module()
class OptionalTensorboardVisBackend(TensorboardVisBackend):
    """mmengine's ``TensorboardVisBackend``; where tensorboard is not installed it writes nothing.

    So a config can name it that is read on any machine. Arguments are those of ``TensorboardVisBackend``.
    """

    def _init_env(self) -> None:
        if find_spec('tensorboard') is not None:
            super()._init_env()
        else:
            self._tensorboard = _Nowhere()


class _Nowhere:
    """A writer of which every method does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

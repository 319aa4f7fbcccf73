"""mgdet: MultiGridDet as a plugin for MMDetection 3.x.

Importing this package is light: it only arranges that ``mmdet`` can be imported where mmcv has no compiled
operations (see :mod:`mgdet_plugin.compat`); a name of its public face is loaded when it is first used. The registered
classes live in ``mgdet_plugin.models``, ``.datasets``, ``.engine`` and ``.guard``; configs name them in
``custom_imports``.
"""
from importlib import import_module
from typing import Any

from mgdet_plugin import compat

__version__ = '0.1.0'

_FACE = dict(
    import_keras='weights.importer',
    export_keras='weights.exporter',
    verify_import='weights.verify',
    Plan='plan.plan',
    check_run='runs.run_checks',
    blend_weights='runs.blends',
    detect='deploy.predictor',
    UserError='common.errors',
)
"""Public name -> the module that has it."""

compat.install()


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_FACE[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})

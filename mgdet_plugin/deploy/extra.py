"""Libraries of the extra ``deploy``, which an installation may lack. Imports none of them."""
from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from mgdet_plugin.common.errors import UserError


def needed(module: str, what: str) -> Any:
    """A library of the extra.

    Args:
        module: Its name.
        what: What it is needed for.

    Raises:
        UserError: It is not installed.
    """
    if module in ('nncf', 'openvino'):  # these report their use over the network where this package can be imported
        sys.modules.setdefault('openvino_telemetry', ModuleType('openvino_telemetry'))
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs {module.partition('.')[0]} ({error}); install it with "
                        "pip install 'mgdet[deploy]'") from error

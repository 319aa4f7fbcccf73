"""What one process of several does for all."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import broadcast_object_list, get_rank

from mgdet_plugin.common.errors import UserError


def on_first_rank(action: Callable[[], Any]) -> Any:
    """What an action gives in the first process, in every process: it may read a disk that only the first one has.

    Raises:
        UserError: In every process, if the action raises it.
    """
    outcome: list[Any] = [None, None]
    if get_rank() == 0:
        try:
            outcome[0] = action()
        except UserError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]

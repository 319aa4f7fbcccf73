"""What an exported file says of itself, so that it needs no config: written into it as JSON, read without trust."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mgdet_plugin.common.errors import UserError, is_whole
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.common.records import known_fields

KEY = 'mgdet'
"""Where it lies in ``metadata_props`` of ONNX, ``rt_info`` of OpenVINO and the meta of a checkpoint."""
FORMAT = 1
_MAX_SIDE = 8192  # pixels


@dataclass(frozen=True)
class Description:
    """What is known of an exported model.

    Attributes:
        classes: Names of the classes.
        palette: (red, green, blue) of each.
        input_size: (height, width) in pixels a picture is letterboxed to; the file takes other multiples of 32, too.
        pad_val: Grey level around the picture.
        test_cfg: Thresholds and suppression as in the head's config.
        nms: Whether the graph suppresses duplicates itself.
        precision: fp32, fp16, bf16 or int8.
        mgdet_version: Of the package that wrote it.
        format: Of this description.
    """

    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]
    input_size: tuple[int, int]
    pad_val: int
    test_cfg: dict[str, Any] = field(default_factory=dict)
    nms: bool = False
    precision: str = 'fp32'
    mgdet_version: str = ''
    format: int = FORMAT

    def to_text(self) -> str:
        """JSON of it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str | None, name: str) -> Description:
        """Read what :meth:`to_text` wrote.

        Args:
            text: The JSON; None where a file has none.
            name: The file's path, for messages.

        Raises:
            UserError: There is none, or it is not as it must be.
        """
        if text is None:
            raise UserError(f'{name} says nothing of its classes and input: mgdet did not export it; write one with '
                            'mgdet export CKPT OUT')
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f'{name}: its description cannot be read ({error}); export it again') from None
        fields = found if isinstance(found, Mapping) else {}
        if fields.get('format') != FORMAT:
            raise UserError(f'{name}: its description is of format {fields.get("format")!r}, this version reads '
                            f'{FORMAT}; export it again')
        try:
            self = cls(**{**known_fields(cls, fields), 'classes': checked_names(fields.get('classes'), name)})
            size, palette = tuple(self.input_size), [tuple(colour) for colour in self.palette]
        except TypeError as error:
            raise UserError(f'{name}: its description is damaged ({error}); export it again') from None
        if len(size) != 2 or not all(is_whole(side, 32) and side <= _MAX_SIDE and not side % 32 for side in size):
            raise UserError(f'{name}: an input must be (height, width), multiples of 32 up to {_MAX_SIDE}, got {size}; '
                            'export it again')
        if len(palette) != len(self.classes) or not is_whole(self.pad_val, 0) or not isinstance(self.test_cfg, dict) \
                or not all(len(colour) == 3 and all(is_whole(level, 0) for level in colour) for colour in palette):
            raise UserError(f'{name}: colours, grey level or thresholds of its description are damaged; export it '
                            'again')
        return cls(**{**vars(self), 'input_size': size, 'palette': palette})

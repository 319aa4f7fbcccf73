"""Whether a path can be that of weights, and what to do where it is not: before anything is read. Nothing heavy."""
from __future__ import annotations

import re
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import WRITTEN_BY
from mgdet_plugin.common.resources import CONFIGS, command, shown_config

SAVE_WEIGHTS = "load it in Keras and save one file with model.save_weights('NAME.weights.h5')"
SAVED_MODEL = f'TensorFlow SavedModel; {SAVE_WEIGHTS}'
SAVED_MODEL_FILES = ('saved_model.pb', 'keras_metadata.pb')
KERAS_SUFFIXES = ('.h5', '.hdf5', '.keras')


def check_weights_path(path: str, config: str, part: str = 'model') -> None:
    """Refuse a path of weights that is no file, or that of a file to import first.

    What to do about it names the config they are for, and depends on the part they should hold.

    Raises:
        UserError: If it is missing, a Keras file or no checkpoint.
    """
    option = ['--config', shown_config(config), *(['--part', 'backbone'] if part == 'backbone' else [])]
    if path.endswith(KERAS_SUFFIXES):
        output = re.sub(r'(\.weights)?\.\w+$', '.pth', path)
        key = 'load_from' if part == 'model' else 'model.backbone.init_cfg.checkpoint'
        raise UserError(f'{path} is a Keras file; import it first: {command("import_keras", path, output, *option)}, '
                        f'then set {key}={output}')
    if Path(path).is_dir():
        is_tf = any((Path(path) / name).is_file() for name in SAVED_MODEL_FILES)
        raise UserError(f'{path} is a {SAVED_MODEL if is_tf else "folder; give the path of a .pth file"}')
    if not Path(path).is_file():
        saved = [each for pattern in ('epoch_*.pth', 'iter_*.pth') for each in Path(path).parent.glob(pattern)]
        if saved:  # of a run, which keeps no best.pth without validation
            last = max(saved, key=lambda each: each.stat().st_mtime)
            raise UserError(f'the weights {path} are not there; the last that the run in that folder saved are {last}')
        beside = (Path(path).with_suffix(suffix) for suffix in KERAS_SUFFIXES)
        source = next(filter(Path.is_file, beside), 'model5.h5' if part == 'model' else 'darknet53.h5')
        before = re.search(r'work_dirs/([^/]+)/best\.pth$', path)  # of a run
        stage = f'{before[1]}.py' if before else ''
        first = (f'run the stage before first: {command("train", shown_config(CONFIGS / stage))}, or '
                 if stage and (CONFIGS / stage).is_file() else '')
        raise UserError(f'the weights {path} are not there; {first}import your Keras file: '
                        f'{command("import_keras", source, path, *option)}, or try it on embedded data: '
                        f'{command("train", shown_config(config), "--demo")}')
    with Path(path).open('rb') as stream:
        check_checkpoint_start(path, stream.read(2))


def check_checkpoint_start(path: str, start: bytes) -> None:
    """Refuse a file whose first bytes are neither a pickle's nor a zip archive's.

    Raises:
        UserError: With the bytes seen.
    """
    if start[:1] != b'\x80' and start != b'PK':
        seen = f'it begins with the bytes {start.hex(" ")}' if start else 'it is empty'
        raise UserError(f'{path} is no checkpoint that torch can load safely ({seen}); '
                        f'{WRITTEN_BY}')

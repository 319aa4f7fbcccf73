"""``--demo``: the small model on embedded data in place of a config's, with weights that come with the repository."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS, DEMO_WEIGHTS, command
from mgdet_plugin.engine.mmdet_scripts import parse_like_mmdet
from mgdet_plugin.engine.resume_choice import Resumer
from mgdet_plugin.weights.importer import import_keras

DEMO_FLAG = '--demo'
SOURCE_CONFIG = CONFIGS / 'mgdet_nano_source.py'  # names the classes of the weights that come with the repository


def use_demo(arguments: Sequence[str], train: bool) -> list[str]:
    """Take ``--demo`` out of a command line and, where it stood, put the small model's config in the config's place.

    The weights it starts from are made where they are not there yet: those of the source domain are imported from the
    Keras file in ``weights/``, a stage's are trained by the stages before it.

    Args:
        arguments: The command line without the program's name.
        train: Whether weights are needed to start from.

    Returns:
        The command line for the small model.

    Raises:
        UserError: If the config has no small sibling.
    """
    rest = [argument for argument in arguments if argument != DEMO_FLAG]
    if len(rest) == len(arguments):
        return rest
    index = next((i for i, argument in enumerate(rest) if argument.endswith('.py')), None)
    if index is None:
        raise UserError(f'{DEMO_FLAG} needs a config, for example configs/mgdet_model5_stage1.py')
    config = Path(rest[index])
    demo = config.with_name(config.name.replace('mgdet_model5', 'mgdet_nano').replace('mgdet_backbone',
                                                                                   'mgdet_nano_backbone'))
    if not demo.is_file() or 'mgdet_nano' not in demo.name:
        there = sorted(each.name for each in SOURCE_CONFIG.parent.glob('mgdet_nano_*.py'))
        raise UserError(f'{config} has no small model to demonstrate it with; in configs/ there is '
                        f'{", ".join(there)}')
    rest[index] = str(demo)
    if train:
        _make_weights(demo, rest)
    return rest


def _make_weights(demo: Path, arguments: Sequence[str]) -> None:
    """Make the weights a small model starts from, unless they are there or it starts from others."""
    args, cfg = parse_like_mmdet('train', arguments)
    goes_on = args.resume and (args.resume != 'auto' or Resumer(cfg).candidates(Path(cfg.work_dir)))
    for weights in _weights_of(Config.fromfile(demo)):
        if os.path.exists(weights) or weights not in _weights_of(cfg) or goes_on:
            continue
        alone = args.launcher == 'none'
        if Path(weights).stem == DEMO_WEIGHTS.stem:
            _import_weights(weights, demo, alone)
        else:
            _train_weights(weights, demo, alone)


def _import_weights(weights: str, demo: Path, alone: bool) -> None:
    """Import the weights of the source domain; the names of their classes are stored with them."""
    if not alone:
        raise _not_alone(weights, 'import_keras', DEMO_WEIGHTS, weights, '--config', demo, '--classes', demo,
                         '--source-classes', SOURCE_CONFIG)
    print(f'{weights} is not there yet: importing it from {DEMO_WEIGHTS}', file=sys.stderr)
    Path(weights).parent.mkdir(parents=True, exist_ok=True)
    import_keras(DEMO_WEIGHTS, weights, config=demo, classes=demo, source_classes=SOURCE_CONFIG)


def _train_weights(weights: str, demo: Path, alone: bool) -> None:
    """Train the weights by the stage in whose folder they lie."""
    stage = demo.with_name(f'{Path(weights).parent.name}.py')
    if not stage.is_file():
        raise UserError(f'{weights} is not there, and no config makes it')
    words = [str(stage), '--work-dir', os.path.dirname(weights)]
    if not alone:
        raise _not_alone(weights, 'train', *words, DEMO_FLAG)
    _make_weights(stage, words)
    print(f'{weights} is not there yet: training it first, with {stage}', file=sys.stderr)
    subprocess.run([sys.executable, sys.argv[0], *words], check=True)


def _not_alone(weights: str, name: str, *words: object) -> UserError:
    return UserError(f'{weights} is not there yet, and is made by one process: first run '
                     f'{command(name, *words)}')


def _weights_of(cfg: Config) -> list[str]:
    """Paths of the weights a config starts from."""
    init = (cfg.model.get('backbone') or {}).get('init_cfg') or {}
    return [str(path) for path in (cfg.get('load_from'), init.get('checkpoint')) if path]

"""Check datasets and weights, then train by mmdet's own script; options and their meanings are mmdet's."""
from __future__ import annotations

import time
from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.errors import require
from mgdet_plugin.common.folder_lock import let_go
from mgdet_plugin.common.resources import config_path


def train_parser() -> Parser:
    """The options of mmdet's train script, and ours."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='its path, or the name of a config of the package')
    parser.add_launch_options()
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale rates with the images a step')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CKPT',
                        help='go on from a checkpoint (default: from the newest good one of the work folder)')
    parser.add_argument('--demo', action='store_true',
                        help="the small model on embedded data in place of the config's; makes the weights it needs")
    parser.add_argument('--more-epochs', metavar='N', help='go on with the last stage of a run that has ended')
    parser.add_argument('--batch', metavar='N|auto[:SHARE]',
                        help='images a step, the rates following; auto: the largest number that fits, measured')
    parser.add_argument('--hours', metavar='H',
                        help='fit the lengths of the stages to a time, measured; a resumed run keeps them')
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument('--quiet', action='store_true',
                       help='print a line a stage, a line a validation and warnings; the log file has all')
    shown.add_argument('--verbose', action='store_true', help='print all that the log file has')
    return parser


def train_command(arguments: Sequence[str]) -> int:
    """Check, then train."""
    parser = train_parser()
    args = parser.parse_args(arguments)
    args.config = config_path(args.config)
    cfg_options(args.cfg_options)  # refuses what mmdet's parser would fail on
    more, begun = args.more_epochs, time.monotonic()
    require(more is None or (more.isdecimal() and int(more) > 0), '--more-epochs takes a whole number of at least 1',
            more)
    import mgdet_plugin.guard  # noqa: F401  configs of earlier versions do not name it in custom_imports
    from mgdet_plugin.cli.training.demo import use_demo
    from mgdet_plugin.compat.console import PROGRESS, QUIET, SHORT, VERBOSE, show
    from mgdet_plugin.compat.exhaustion import exhaustion_told
    from mgdet_plugin.engine.fit.fitting import Batch, Wish, parse_hours
    from mgdet_plugin.engine.mmdet_scripts import run_mmdet_script
    from mgdet_plugin.engine.preflight import prepare_train
    from mgdet_plugin.engine.run_folder import hold_folder
    show(QUIET if args.quiet else VERBOSE if args.verbose else SHORT)
    wish = Wish(None if args.batch is None else Batch.parse(args.batch),
                None if args.hours is None else parse_hours(args.hours), begun)
    args.quiet, args.verbose = False, False  # these and the next three mmdet's script does not know
    args.more_epochs = args.batch = args.hours = None
    given = use_demo(parser.command_line(args), train=True)
    words = prepare_train(given, None if more is None else int(more), wish, hold_folder)
    try:
        if words is not None:
            with exhaustion_told():
                run_mmdet_script('train', words)
        PROGRESS.clear()
        from mgdet_plugin.runs.analysis.evaluate import evaluate_run
        evaluate_run(words or given, renew=words is not None)
    finally:
        PROGRESS.clear()
        let_go()
    return 0


def goes_on(arguments: Sequence[str]) -> list[str]:
    """The arguments that go on with a run that these began."""
    parser = train_parser()
    args = parser.parse_args(arguments)
    args.resume = args.more_epochs = None
    return [*parser.command_line(args), '--resume']

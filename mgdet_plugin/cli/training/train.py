"""Check datasets and weights, then train by mmdet's own script; options and their meanings are mmdet's."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.resources import config_path


def train_parser() -> Parser:
    """The options of mmdet's train script, ``--demo`` and ``--quiet``."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='its path, or the name of a config of the package')
    parser.add_launch_options()
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale rates with the images a step')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CKPT',
                        help='go on from a checkpoint (default: from the newest good one of the work folder)')
    parser.add_argument('--demo', action='store_true',
                        help="the small model on embedded data in place of the config's; makes the weights it needs")
    parser.add_argument('--quiet', action='store_true',
                        help='print a line a stage, a line a validation and warnings; the log file has all')
    return parser


def train_command(arguments: Sequence[str]) -> int:
    """Check, then train."""
    parser = train_parser()
    args = parser.parse_args(arguments)
    args.config = config_path(args.config)
    cfg_options(args.cfg_options)  # refuses what mmdet's parser would fail on
    import mgdet_plugin.guard  # noqa: F401  configs of earlier versions do not name it in custom_imports
    from mgdet_plugin.cli.training.demo import use_demo
    from mgdet_plugin.compat.console import be_quiet
    from mgdet_plugin.engine.preflight import prepare_train, run_mmdet_script
    if args.quiet:
        be_quiet()
        args.quiet = False  # mmdet's script does not know it
    words = prepare_train(use_demo(parser.command_line(args), train=True))
    if words is not None:
        run_mmdet_script('train', words)
        from mgdet_plugin.runs.analysis.evaluate import evaluate_run
        evaluate_run(words)
    return 0


def goes_on(arguments: Sequence[str]) -> list[str]:
    """The arguments that go on with a run that these began."""
    parser = train_parser()
    args = parser.parse_args(arguments)
    args.resume = None
    return [*parser.command_line(args), '--resume']

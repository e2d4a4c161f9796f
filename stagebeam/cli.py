"""The command line: the top layer, which may import everything below it.

stdout is the result, stderr the log. A fault of the user's is one line and exit status 2.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from stagebeam import __version__
from stagebeam.benchmarks.accuracy.command import add_evaluate_parser
from stagebeam.benchmarks.speed.bench_command import add_bench_parser
from stagebeam.benchmarks.speed.profile_command import add_profile_parser
from stagebeam.bindings.locations import CMAKE_DIR, PKG_CONFIG_DIR
from stagebeam.engine.cli.answer import add_answer_parser
from stagebeam.engine.cli.doctor import add_doctor_parser
from stagebeam.engine.cli.serve import add_serve_parser
from stagebeam.training.annotate_command import add_annotate_parser
from stagebeam.training.cli import add_train_parser


class _PrintPath(argparse.Action):
    """Print `const` on one line and exit; argparse's own "version" would wrap it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(self.const)
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        return options.run(options)
    except ValueError as error:
        if options.verbose:
            raise
        print(f"stagebeam {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog="stagebeam",
        description="A decoding engine for vision-language models that reason in stages.",
    )
    parser.add_argument("--version", action="version", version=f"stagebeam {__version__}")
    for flag, folder in (("--cmake-dir", CMAKE_DIR), ("--pkg-config-dir", PKG_CONFIG_DIR)):
        what = f"print where the {flag[2:-4]} files for C and C++ programs are"
        parser.add_argument(flag, action=_PrintPath, const=folder, nargs=0, help=what)
    parser.add_argument("-v", "--verbose", action="store_true", help="log details to stderr")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_answer_parser(commands)
    add_annotate_parser(commands)
    add_serve_parser(commands)
    add_train_parser(commands)
    add_evaluate_parser(commands)
    add_bench_parser(commands)
    add_profile_parser(commands)
    add_doctor_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`stagebeam serve`: the OpenAI-compatible server and its page."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stagebeam.engine.async_engine import AsyncEngine
from stagebeam.engine.checkpoints import find_checkpoint
from stagebeam.engine.cli.options import add_model_options, engine_options, make_engine
from stagebeam.engine.cli.ray_options import add_ray_options, cluster, worker_resources
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeMode, JudgeParams, SearchParams, Strategy

if TYPE_CHECKING:
    from stagebeam.engine.server.settings import ServerSettings

API_KEY_VARIABLE = "STAGEBEAM_API_KEY"


def add_serve_parser(commands: Any) -> None:
    """`stagebeam serve`."""
    parser = commands.add_parser("serve", help="serve an OpenAI-compatible API and a page")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--served-model-name", help="default: the checkpoint's folder name")
    parser.add_argument("--api-key", help=f"wanted by /v1 (default: ${API_KEY_VARIABLE})")
    add_model_options(parser)
    parser.add_argument("--max-branches", type=int, default=64, help="rows of a decode step")
    search = parser.add_argument_group("search, where a request does not say")
    strategies = [s for s in get_args(Strategy) if s != "swires"]
    search.add_argument("--strategy", choices=strategies, default=SearchParams().strategy)
    search.add_argument("--beam-size", type=int, default=SearchParams().beam_size)
    search.add_argument("--judge", choices=get_args(JudgeMode), default=JudgeParams().mode)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-questions", type=int, default=128, help="in flight; more get 429")
    limits.add_argument("--max-body-mib", type=int, default=32, help="of a request; more get 413")
    limits.add_argument("--max-image-mib", type=int, default=20, help="of one encoded image")
    limits.add_argument("--deadline-seconds", type=float, default=600.0, help="of a request")
    limits.add_argument(
        "--drain-seconds", type=int, default=60, help="for running requests after SIGTERM"
    )
    images = parser.add_argument_group("images beside data: URLs")
    images.add_argument(
        "--allow-remote-images", action="store_true", help="fetch http(s) URLs of public hosts"
    )
    images.add_argument("--image-folder", type=Path, help="file: URLs may name files in it")
    replicas = parser.add_argument_group("many engines, as a Ray Serve application")
    replicas.add_argument("--ray", action="store_true", help="serve replicas on Ray")
    add_ray_options(replicas, name="replicas")
    parser.set_defaults(run=run_serve)


def run_serve(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, then let running requests end."""
    try:
        from stagebeam.engine.server.app import create_app
        from stagebeam.engine.server.settings import MIB, ServerSettings
    except ImportError as error:
        raise InvalidInputError(
            f"the server needs the package {error.name!r}: pip install 'stagebeam[serve]'"
        ) from error
    settings = ServerSettings(
        model_name=options.served_model_name or find_checkpoint(options.model).name,
        api_key=options.api_key or os.environ.get(API_KEY_VARIABLE),
        search=SearchParams(strategy=options.strategy, beam_size=options.beam_size),
        judge=JudgeParams(mode=options.judge),
        max_body_bytes=options.max_body_mib * MIB,
        max_image_bytes=options.max_image_mib * MIB,
        max_questions=options.max_questions,
        deadline_seconds=options.deadline_seconds,
        allow_remote_images=options.allow_remote_images,
        image_folder=options.image_folder,
    )
    if options.ray:
        return _serve_replicas(options, settings)
    with make_engine(options, max_branches=options.max_branches) as engine:
        return _listen(create_app(AsyncEngine(engine), settings), options)


def _serve_replicas(options: argparse.Namespace, settings: ServerSettings) -> int:
    from stagebeam.engine.server.front import Front
    from stagebeam.engine.server.guards import Guards
    from stagebeam.engine.server.replicas import start_replicas

    with cluster(options.ray_address):
        replicas = start_replicas(
            engine_options(options, max_branches=options.max_branches),
            replace(settings, api_key=None),  # the front asks for it
            num_replicas=options.replicas,
            **worker_resources(options),
        )
        return _listen(Guards(Front(replicas), settings.api_key, settings.max_body_bytes), options)


def _listen(app: Any, options: argparse.Namespace) -> int:
    """Serve `app` until a signal, then let running requests end."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=options.verbose,
        timeout_graceful_shutdown=options.drain_seconds,
    )
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    # uvicorn drains at a signal and then raises it again: an asked-for end is a good one
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server.run()
    if not server.started:
        print(f"cannot listen at {options.host}:{options.port}", file=sys.stderr)
        return 1
    return 0

"""The served OpenAPI document against the server: every answer is one that the document allows."""

from __future__ import annotations

import json
import urllib.request

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
)


@pytest.fixture(scope="module")
def api(serve):
    served = serve(max_body_bytes=100_000, deadline_seconds=60.0)
    with urllib.request.urlopen(f"{served.url}/openapi.json", timeout=30) as response:
        document = json.load(response)
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)
    yield schema
    served.assert_idle()


CHAT = "POST /v1/chat/completions"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (CHAT, GenerationMode.POSITIVE),
        (CHAT, GenerationMode.NEGATIVE),
        ("GET /v1/models", GenerationMode.POSITIVE),
        ("GET /health", GenerationMode.POSITIVE),
        ("GET /metrics", GenerationMode.POSITIVE),
    ],
)
def test_every_answer_is_in_the_document(api, name: str, mode: GenerationMode) -> None:
    operations = {op.ok().label: op.ok() for op in api.get_all_operations()}
    assert name in operations
    assert len(operations) == 4
    strategy = operations[name].as_strategy(generation_mode=mode)

    @settings(
        max_examples=40 if name == CHAT else 5,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def ask(case) -> None:
        if mode == GenerationMode.POSITIVE and isinstance(case.body, dict):
            keep_short(case.body)
        case.call_and_validate(checks=CHECKS, timeout=120)

    ask()


def keep_short(body: dict) -> None:
    """A well-formed request may be an expensive one: bound what it samples, not what it says."""
    body.pop("max_completion_tokens", None)
    body |= {"max_tokens": 4, "max_rounds": 2}
    body |= {name: min(body[name], 3) for name in ("n", "beam_size") if body.get(name)}

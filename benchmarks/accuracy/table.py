"""An evaluation's document as Markdown: the analogue of the paper's Tables 5 and 6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stagebeam.benchmarks.accuracy.summary import STAGE_BEAM_1

_HEADINGS = (
    "search",
    "N",
    "right % (95 %)",
    "valid %",
    "tokens",
    "judge tokens",
    "judge calls",
    "s",
    "against its N=1",
    f"against {STAGE_BEAM_1}",
)


def to_markdown(document: dict[str, Any]) -> str:
    """The whole report."""
    title = f"# Accuracy against beam size: {document['data']}, {document['split']} split"
    parts = [title, _intro(document)]
    if not document["is_complete"]:
        parts.append("**Not complete: the run has not ended yet, or was stopped.**")
    for temperature in dict.fromkeys(row["temperature"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["temperature"] == temperature]
        heading = "greedy" if temperature is None else f"temperature {temperature:g}"
        parts += [
            f"## {heading[0].upper()}{heading[1:]}",
            rows_table(rows),
            kinds_table(rows, document["majority"]),
        ]
    if document["comparisons"]:
        parts += ["## Paired comparisons", _comparisons(document["comparisons"])]
    if document["temperature_search"]:
        parts += ["## Choice of the temperature", _temperature(document["temperature_search"])]
    if document["judge_pairs"]:
        parts += ["## The judge alone", judge_table(document["judge_pairs"])]
    return "\n\n".join(part for part in [*parts, _source(document)] if part) + "\n"


def _intro(document: dict[str, Any]) -> str:
    sampling = ", ".join(f"{name} {value}" for name, value in document["sampling"].items())
    return (
        f"{document['num_questions']} questions, seed {document['seed']}; {sampling}; judge mode "
        f"{document['judge']['mode']}. Tokens, judge calls and seconds are per question; all "
        "questions of a row run as one stream of batches. A search and what it is compared with "
        "draw from the same seeds, so comparisons are paired: questions won and lost, and the p of "
        "McNemar's exact test."
    )


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a search: share right, format, costs, paired tests."""
    body = []
    for row in rows:
        count = row["num_questions"]
        low, high = row["interval"]
        judge_tokens = row["judge_prompt_tokens"] + row["judge_completion_tokens"]
        own = next((k for k in row["versus"] if k.startswith(f"{row['strategy']}:")), "")
        body.append(
            (
                row["strategy"],
                row["beam_size"],
                f"{percent(row['accuracy'])} ({percent(low)}-{percent(high)})",
                percent(row["format_valid"]),
                f"{row['tokens_per_question']:.0f}",
                f"{judge_tokens / count:.0f}",
                f"{row['judge_calls'] / count:.1f}",
                f"{row['seconds_per_question']:.3f}",
                _versus(row["versus"].get(own)),
                _versus(row["versus"].get(STAGE_BEAM_1)),
            )
        )
    return markdown_table(_HEADINGS, body)


def kinds_table(rows: Sequence[dict[str, Any]], majority: dict[str, Any]) -> str:
    """Accuracy by kind of question, beside each kind's most common answer; "" without kinds."""
    kinds = rows[0]["by_kind"]
    if not kinds:
        return ""
    body = [
        [
            row["label"],
            percent(row["accuracy"]),
            *(percent(row["by_kind"][kind]["accuracy"]) for kind in kinds),
        ]
        for row in rows
    ]
    constant = [majority["by_kind"][kind] for kind in kinds]
    body.append(
        [
            "each kind's most common answer",
            percent(majority["accuracy"]),
            *(f"{percent(one['accuracy'])} ({one['answer']})" for one in constant),
        ]
    )
    counts = [f"{kind} ({part['num_questions']})" for kind, part in kinds.items()]
    return markdown_table(["right %", f"all ({rows[0]['num_questions']})", *counts], body)


def _comparisons(comparisons: Sequence[dict[str, Any]]) -> str:
    body = [
        (
            "" if c["temperature"] is None else f"{c['temperature']:g}",
            c["this"],
            c["that"],
            c["only_this_right"],
            c["only_that_right"],
            "" if c["errors_removed"] is None else percent(c["errors_removed"]),
            p_value(c["p"]),
        )
        for c in comparisons
    ]
    headings = ("temperature", "this", "that", "only this right", "only that right")
    return markdown_table((*headings, "% of that's errors removed", "p"), body)


def _temperature(search: dict[str, Any]) -> str:
    low, high = (percent(end) for end in search["wanted"])
    tried = ", ".join(f"{t:g} ({percent(error)} %)" for t, error in search["trials"])
    found = search["temperature"]
    outcome = "none was found" if found is None else f"taken: {found:g}"
    return (
        f"Wanted on validation questions: {STAGE_BEAM_1} wrong on {low} to {high} %. Tried (share "
        f"wrong): {tried}; {outcome}."
    )


def judge_table(report: dict[str, Any]) -> str:
    """The judge alone, over all pairs, by text and by error."""
    body = [_judge_line("all", report)]
    for name in ("target", "error"):
        for value, part in report[f"by_{name}"].items():
            body.append(_judge_line(f"{'text' if name == 'target' else name}: {value}", part))
    headings = ("pairs", "number", "right % (95 %)", "right % in one order", "consistent %")
    return (
        "Held-out pairs of texts with a single error, judged in both orders by one forward pass; "
        "right by the mean of both, as a search takes it; consistent where both orders pick the same "
        "text.\n\n" + markdown_table((*headings, "first chosen %"), body)
    )


def _judge_line(name: str, part: dict[str, Any]) -> Sequence[object]:
    low, high = part["interval"]
    return (
        name,
        part["num_pairs"],
        f"{percent(part['accuracy'])} ({percent(low)}-{percent(high)})",
        percent(part["single_order_accuracy"]),
        percent(part["order_consistency"]),
        percent(part["first_chosen"]),
    )


def _source(document: dict[str, Any]) -> str:
    machine, model = document["machine"], document["model"]
    packages = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    return (
        f"`{document['command']}`\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} threads; "
        f"{document['engine']['device']}, {document['engine']['dtype']}; {packages}; commit "
        f"{document['commit'] or 'unknown'}; {document['date']}. Model {model['path']}, sha256 "
        f"{model['sha256'][:16]}."
    )


def _versus(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return ""
    won, lost = comparison["only_this_right"], comparison["only_that_right"]
    return f"+{won} -{lost}, p {p_value(comparison['p'])}"


def percent(value: float) -> str:
    """A share as percent, without the sign."""
    return f"{100 * value:.1f}"


def p_value(value: float) -> str:
    """A p, short."""
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def markdown_table(headings: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """A Markdown table of any values."""
    lines = [headings, ["---"] * len(headings), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

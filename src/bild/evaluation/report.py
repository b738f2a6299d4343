"""The summary as one HTML page that needs no other file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from bild.data.examples import Example
from bild.data.json_text import to_json
from bild.data.quality import LABELS, TASKS
from bild.evaluation import plots
from bild.evaluation.cells import quality_rows, speed_rows
from bild.evaluation.figures import ALL
from bild.evaluation.journal import Journal, Record
from bild.evaluation.summary import DEFINITIONS, Summary

NUM_DIFFERING = 20
NUM_FAILURES = 50
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .7em 0 1.5em; font-size: 13px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: left; vertical-align: top }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
th { background: #f5f5f5 } mark { background: #ffe08a } img { max-width: 100%; display: block }
pre { background: #f7f7f7; padding: 1em; overflow-x: auto; font-size: 12px } .note { color: #666 }
"""
Members = Mapping[str, Sequence[Example]]


def render(summary: Summary, sets: Members, journal: Journal) -> str:
    """The page.

    Args:
        summary: of the run.
        sets: its examples.
        journal: what each method made of them.
    """
    parts = [
        "<h1>bild evaluate</h1>",
        f'<p class="note">{escape(_machine_line(summary))}</p>',
        *_not_run(summary),
        *(part for name in summary.sets for part in _set(summary, name, sets, journal)),
        *_differing(summary, sets, journal),
        *_failures(summary),
        *_definitions(summary),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>bild evaluate</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _machine_line(summary: Summary) -> str:
    machine = summary.machine
    versions = ", ".join(f"{name} {value}" for name, value in machine.get("versions", {}).items() if value)
    return (
        f"{machine.get('gpu') or machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('threads')} threads; "
        f"{versions}; commit {machine.get('commit')}; {machine.get('date')}"
    )


def _not_run(summary: Summary) -> list[str]:
    lines = [f"{name}: no figures: {why}" for name, why in summary.failed.items()] + summary.notes
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return [f"<ul>{items}</ul>"] if items else []


def _set(summary: Summary, name: str, sets: Members, journal: Journal) -> list[str]:
    figures = summary.sets[name]
    parts = [f"<h2>{escape(name)}</h2>", f"<p>{escape(_set_line(summary, name))}</p>"]
    parts += [
        _table(rows) for rows in (quality_rows(summary, name, everything=True), speed_rows(summary, name)) if rows
    ]
    if figures.num_with_references:
        metric = TASKS[summary.task][0]
        scatter = plots.quality_and_speed(figures, metric, summary.baseline)
        parts.append(_image(scatter, f"{LABELS[metric]} over speedup, with 95 % intervals"))
    parts.append(_image(plots.latency(_seconds(summary, name, sets, journal)), "time a text: quartiles, 5 % and 95 %"))
    return parts


def _set_line(summary: Summary, name: str) -> str:
    figures = summary.sets[name]
    left_out = f"; {figures.num_left_out} left out because a method failed on them" if figures.num_left_out else ""
    return (
        f"{figures.num_examples} texts, {figures.num_with_references} with references{left_out}. "
        f"Speedup, differences and agreement are against {summary.baseline}; 95 % intervals in brackets, "
        f"paired bootstrap, {summary.bootstrap.get('resamples')} resamples."
    )


def _seconds(summary: Summary, name: str, sets: Members, journal: Journal) -> dict[str, list[float]]:
    rows = [records for _, records in _complete(summary, sets, journal, name)]
    return {
        method: [record.total_s for records in rows if (record := records[method]).total_s is not None]
        for method in summary.methods
    }


def _complete(
    summary: Summary, sets: Members, journal: Journal, name: str = ALL
) -> Iterator[tuple[Example, dict[str, Record]]]:
    """Examples of a set, or of all, that every method decoded."""
    for own, members in sets.items():
        for example in members if name in (own, ALL) else ():
            records = journal.records[own, example.id]
            if all(records[method].error is None for method in summary.methods):
                yield example, records


def _differing(summary: Summary, sets: Members, journal: Journal) -> list[str]:
    """The first texts on which the methods do not agree."""
    rows = [_outputs(summary, example, records) for example, records in _complete(summary, sets, journal)
            if len({records[method].text for method in summary.methods}) > 1]  # fmt: skip
    if not rows:
        return ["<h2>Outputs</h2>", "<p>All methods wrote the same texts.</p>"]
    heading = "".join(f"<th>{escape(name)}</th>" for name in ("source", "reference", *summary.methods))
    return [
        f"<h2>Outputs that differ</h2><p>The first {min(NUM_DIFFERING, len(rows))} of {len(rows)}; "
        f"marked: words that differ from {escape(summary.baseline)}.</p>",
        f"<table><tr>{heading}</tr>{''.join(rows[:NUM_DIFFERING])}</table>",
    ]


def _outputs(summary: Summary, example: Example, records: Mapping[str, Record]) -> str:
    base = records[summary.baseline].text
    texts = [escape(example.source), escape(" / ".join(example.references))]
    texts += [marked(records[method].text, base) for method in summary.methods]
    return "<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>"


def marked(text: str, base: str) -> str:
    """A text as HTML, with the words marked that ``base`` does not have there."""
    words = text.split()
    match = difflib.SequenceMatcher(None, base.split(), words, autojunk=False)
    parts = []
    for kind, _, _, start, end in match.get_opcodes():
        piece = escape(" ".join(words[start:end]))
        if piece:
            parts.append(piece if kind == "equal" else f"<mark>{piece}</mark>")
    return " ".join(parts)


def _failures(summary: Summary) -> list[str]:
    if not summary.failures:
        return []
    rows = [["set", "text", "method", "error"]]
    rows += [[one.set, one.id, one.method, one.error] for one in summary.failures[:NUM_FAILURES]]
    shown = f"The first {NUM_FAILURES} of {len(summary.failures)}." if len(summary.failures) > NUM_FAILURES else ""
    return ["<h2>Failures</h2>", f"<p>{shown}</p>", _table(rows, numbers=False)]


def _definitions(summary: Summary) -> list[str]:
    signatures = next(iter(summary.sets.values())).signatures
    rows = [["metric", "signature"], *([LABELS[name], text] for name, text in signatures.items())]
    meanings = [["figure", "meaning"], *([name, text] for name, text in DEFINITIONS.items())]
    asked = {**summary.configuration, "methods": summary.details}
    return [
        *(["<h2>Signatures</h2>", _table(rows, numbers=False)] if signatures else []),
        "<h2>Definitions</h2>",
        _table(meanings, numbers=False),
        "<h2>Configuration</h2>",
        f"<pre>{escape(to_json(asked, indent=2))}</pre>",
    ]


def _table(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(_cell(cell, numbers and at > 0) for at, cell in enumerate(row))}</tr>" for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(text: str, number: bool) -> str:
    return f'<td class="number">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"


def _image(data: str, caption: str) -> str:
    text = escape(caption)
    return f'<figure><img src="{data}" alt="{text}"><figcaption class="note">{text}</figcaption></figure>'

"""What ``contrastneg analyze`` says on the terminal."""

from contrastneg.analyze.record import Analysis
from contrastneg.analyze.results import PAGE, SUMMARY
from contrastneg.analyze.run import analyze
from contrastneg.analyze.settings import Analyze
from contrastneg.console import Output, shown


def analyze_and_tell(config: Analyze) -> None:
    """Analyse, with a line for each step on the way, and answer the four questions."""
    output = Output()
    folder, found = analyze(config, say=lambda line: output.print(f"[dim]{shown(line)}[/]"))
    tell(output, found)
    output.print(shown(f"tables {folder / SUMMARY}"))
    output.print(shown(f"page {folder / PAGE}"))


def tell(output: Output, found: Analysis) -> None:
    """The answers, what was left out, and the notes."""
    context = found.context
    output.print(
        f"\n[bold]{shown(context['encoder'])}[/] ({context['layer']}, {context['width']:,} numbers) on {shown(context['data'])}: "
        f"{context['images']:,} images, at most {context['queries']:,} of them queries"
    )
    for answer in found.answers:
        output.print(f"\n[bold]{answer.question}[/]")
        for sentence in answer.sentences:
            output.print(f"  {shown(sentence)}")
    output.print("")
    for name, reason in found.left_out.items():
        output.print(f"[yellow]left out[/] {name}: {shown(reason)}")
    for note in found.notes:
        output.print(f"[yellow]note[/] {shown(note)}")

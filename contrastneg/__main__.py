"""The command table: ``contrastneg VERB ...``.

Bad input gets one line on standard error and exit status 2: what is wrong, what was met, what to do.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence

from contrastneg.writing import printable

VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {}


def verb(name: str, line: str) -> Callable[[Callable[[list[str]], int]], Callable[[list[str]], int]]:
    """Enter a function into the command table with its line of help."""

    def enter(function: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
        VERBS[name] = (function, line)
        return function

    return enter


@verb("pretrain", "train an encoder on images without labels, then score it")
def run_pretrain(arguments: list[str]) -> int:
    """``pretrain [DATA] [--config FILE] [--NAME VALUE ...]`` or ``pretrain --resume RUN``."""
    from contrastneg.commandline import parse_pretrain
    from contrastneg.distributed import is_first_process
    from contrastneg.divergence import Diverged
    from contrastneg.memory import OutOfMemory
    from contrastneg.pretrain import pretrain
    from contrastneg.signals import Interrupted, ignore_signals

    config, resume = parse_pretrain(arguments)
    try:
        pretrain(config, resume=resume)
    except Interrupted as stop:  # it has said so itself
        ignore_signals()
        return 128 + stop.signum
    except OutOfMemory as stop:  # of any process, perhaps of this one alone
        print(f"contrastneg: {stop}", file=sys.stderr)
        return 1
    except Diverged as stop:
        if is_first_process():
            print(f"contrastneg: {stop}", file=sys.stderr)
        return 1
    return 0


@verb("evaluate", "score an encoder by the field's protocols, or compare runs")
def run_evaluate(arguments: list[str]) -> int:
    """``evaluate ENCODER [DATA] [--NAME VALUE ...]`` or ``evaluate --compare RUN RUN ... [--out FILE]``."""
    from contrastneg.evaluate.telling import compare_runs, evaluate_and_tell
    from contrastneg.options import Compare, parse_evaluate

    asked = parse_evaluate(arguments)
    if isinstance(asked, Compare):
        compare_runs(asked.runs, asked.out)
    else:
        evaluate_and_tell(asked)
    return 0


@verb("analyze", "say what the negatives of an encoder are: tables, answers, a page with a gallery")
def run_analyze(arguments: list[str]) -> int:
    """``analyze ENCODER [DATA] [--sections NAME,NAME] [--NAME VALUE ...]``."""
    from contrastneg.analyze.telling import analyze_and_tell
    from contrastneg.options import parse_analyze

    analyze_and_tell(parse_analyze(arguments))
    return 0


@verb("check", "say what a data address holds, what is wrong with it and what is in it twice")
def run_check(arguments: list[str]) -> int:
    """``check DATA``: exit status 1 where images cannot be read."""
    from contrastneg.inspection import inspect_data
    from contrastneg.options import parse_check

    return inspect_data(parse_check(arguments))


@verb("embed", "write the embeddings of images to a Parquet or NPZ file")
def run_embed(arguments: list[str]) -> int:
    """``embed RUN DATA --to FILE``."""
    from contrastneg.embed import embed
    from contrastneg.options import parse_embed, subject_of

    options = parse_embed(arguments)
    subject = subject_of(options)
    written = embed(
        subject,
        options.data,
        options.to,
        layer=options.layer,
        split=options.split,
        root=options.root,
        unlabelled=options.unlabelled,
        limit=options.limit_images,
        dtype=options.dtype,
        on_bad_image=options.on_bad_image,
        workers=options.workers,
        seed=options.seed,
    )
    left_out = [f"{written.left_out:,} images could not be read and are left out"] if written.left_out else []
    lines = [f"{options.to}: {written.rows:,} embeddings of {written.width:,} numbers each"]
    print(printable("\n".join([*lines, *(f"note: {note}" for note in [*subject.notes, *left_out])])))
    return 0


@verb("export", "write an encoder for timm, torchvision, ONNX or the Hugging Face hub, checked there")
def run_export(arguments: list[str]) -> int:
    """``export RUN --to TARGET ...``."""
    from contrastneg.export import export
    from contrastneg.options import parse_export, subject_of

    options = parse_export(arguments)
    subject = subject_of(options)
    lines = [line for done in export(subject, options.to, options.out) for line in done.lines()]
    print(printable("\n".join([*lines, *(f"note: {note}" for note in subject.notes)])))
    return 0


@verb("report", "write a run's page anew from its records, or one page of several runs")
def run_report(arguments: list[str]) -> int:
    """``report RUN [RUN ...] [--out FILE]``."""
    from contrastneg.options import parse_report
    from contrastneg.report.page import write_report
    from contrastneg.report.runs import write_runs

    asked = parse_report(arguments)
    page = write_runs(asked.runs, asked.out) if len(asked.runs) > 1 else write_report(asked.runs[0])
    print(printable(str(page)))
    return 0


@verb("catalogue", "list the methods of negative sampling: what each is here, its cost, its recipe")
def run_catalogue(arguments: list[str]) -> int:
    """``catalogue [WORD] [--kind KIND] [--format FORMAT]``."""
    from rich.console import Console

    from contrastneg.listing import show
    from contrastneg.options import parse_catalogue

    options = parse_catalogue(arguments)
    show(options.word, options.kind, options.format, Console())
    return 0


def usage() -> str:
    """The command table in words."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in VERBS.items()]
    return "usage: contrastneg VERB [ARGUMENTS]\n\n" + "\n".join(lines) + "\n\ncontrastneg VERB --help tells more."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    if arguments is None and not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as ``python -m`` does: stages of one's own are named by import path
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] == "--version":
        from importlib.metadata import version

        print(version("contrastneg"))
        return 0
    if given[0] not in VERBS:
        near = difflib.get_close_matches(given[0], VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(VERBS)}"
        return refuse(f"there is no verb {given[0]!r}: {hint}")
    try:
        status = VERBS[given[0]][0](given[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader went away, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered would fail again at the end
        return 141  # what a shell says of a process ended by SIGPIPE
    except ValueError as error:
        if os.environ.get("CONTRASTNEG_DEBUG"):
            raise
        return refuse(str(error))
    except OSError as error:
        if os.environ.get("CONTRASTNEG_DEBUG") or error.filename is None:
            raise
        return refuse(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("contrastneg: stopped by SIGINT", file=sys.stderr)
        return 130


def refuse(reason: str) -> int:
    """One line on standard error, exit status 2."""
    if speaks():
        print("contrastneg:", printable(re.sub(r"\s+", " ", reason).strip()), file=sys.stderr)
    return 2


def speaks() -> bool:
    """Whether this process says why it refuses. Before the processes of a launch have met, all of a machine find the same,
    and its first one says so; later one may fail alone."""
    place = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    distributed = sys.modules.get("contrastneg.distributed")  # not imported for this: it brings torch with it
    return place == "0" or (distributed is not None and distributed.world_size() > 1)


if __name__ == "__main__":
    sys.exit(main())

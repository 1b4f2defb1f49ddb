"""What an evaluation says on the way."""

import io

from rich.console import Console


def test_a_long_step_has_a_bar_that_counts_and_goes_when_it_ends():
    from contrastneg.evaluate.telling import Meter

    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    meter = Meter(console)
    meter.update(30, 120)
    assert meter.bar.live.is_started
    meter.update(90, 120)
    meter.bar.refresh()
    assert "90/120" in console.file.getvalue()
    meter.update(120, 120)
    assert not meter.bar.live.is_started
    assert not meter.bar.task_ids
    meter.update(1, 5)  # the next step has its own
    meter.bar.refresh()
    assert "1/5" in console.file.getvalue()
    meter.end()
    shown = console.file.getvalue()
    meter.end()
    assert console.file.getvalue() == shown


def test_no_bar_is_shown_where_there_is_no_terminal():
    from contrastneg.evaluate.telling import Meter

    console = Console(file=io.StringIO(), force_terminal=False)
    meter = Meter(console)
    meter.end()
    assert console.file.getvalue() == ""

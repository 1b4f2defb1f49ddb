"""Working settings of every stage for a few images and a tiny encoder, from those of scripts/try_all.py."""

import dataclasses

from try_all import BEFORE, STAGES

from contrastneg import negatives

MOST = {"count": 3, "pool": 8, "size": 8, "neighbours": 4, "explore": 4, "clusters": 4}


def smaller(settings):
    """Settings of large runs with all counts cut down."""
    if isinstance(settings, list):
        return [min(MOST["clusters"], entry) if isinstance(entry, int) else smaller(entry) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        name: min(setting, MOST[name]) if name in MOST and isinstance(setting, int) else smaller(setting)
        for name, setting in settings.items()
    }


def small(name):
    """Settings of one stage, those among them that the script leaves to their defaults."""
    own = {field.name for field in dataclasses.fields(getattr(negatives, name)) if field.init}
    counts = {key: most for key, most in MOST.items() if key in own and key != "clusters"}
    return counts | smaller(STAGES[name])


def with_those_before(name):
    """Names and settings of a stage and of those that it builds on."""
    return [(part, small(part)) for part in [*BEFORE.get(name, []), name]]

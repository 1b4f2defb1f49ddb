"""What sections measure, made of a small cloud."""

from clouds import cloud


def material(**parts):
    """Forty images of four classes; any part may be another."""
    from contrastneg.analyze.material import Material

    x, label, positive = cloud()
    usual = {"labels": label, "names": list("abcd"), "clusters": 4, "queries": 2048, "temperature": 0.2, "seed": 0}
    return Material(x, positive, **{**usual, **parts})

"""Small sets as ``pretrain`` opens them."""

from PIL import Image


def paint(folder, count, level=100, side=12):
    """A folder of pictures, each of its own colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (side, side), (level, i, 0)).save(folder / f"{i:02}.png")


def opened(*arguments):
    """What pretraining with these arguments opens."""
    from contrastneg.commandline import parse_pretrain
    from contrastneg.data.opening import open_data

    small = ["--method.backbone.name", "resnet9", "--method.backbone.width", "0.125"]
    return open_data(parse_pretrain([*map(str, arguments), *small])[0])

"""Every mode of picture becomes the levels a user would expect."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data, **options):
    from contrastneg.data.decode import decode_image

    return decode_image(data, **options)


def test_sixteen_bit_scans_keep_their_ramp():
    ramp = np.arange(0, 65536, 4096, dtype=np.uint16)[None].repeat(2, 0)
    pixels = decode(encoded(Image.fromarray(ramp)))
    assert pixels.shape == (3, 2, 16)
    assert pixels[0, 0].tolist() == list(range(0, 256, 16))


def test_transparency_is_blended_on_white():
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (decode(encoded(red)) == 255).all()
    half = decode(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))).flatten().tolist()
    assert half == [255, 127, 127]
    assert (decode(encoded(Image.new("LA", (4, 4), (0, 0)))) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0] + [0] * 765)
    assert (decode(encoded(palette, transparency=0)) == 255).all()
    assert (decode(encoded(red), background=0) == 0).all()


def test_grey_bilevel_palette_and_colour_pictures_have_three_channels():
    for mode, colour, expected in (
        ("L", 77, [77] * 3),
        ("1", 1, [255] * 3),
        ("RGB", (1, 2, 3), [1, 2, 3]),
    ):
        assert decode(encoded(Image.new(mode, (5, 3), colour)))[:, 2, 4].tolist() == expected
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert decode(encoded(palette))[:, 0, 0].tolist() == [10, 20, 30]


def test_cmyk_white_stays_white():
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert (decode(encoded(white, "JPEG")) >= 254).all()


def test_the_cameras_orientation_is_applied():
    from contrastneg.data.decode import image_header

    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (0, 0, 20, 20))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture, "JPEG", exif=exif)
    pixels = decode(data)
    assert pixels.shape == (3, 40, 20)
    assert pixels[:, :15].float().mean() > 250  # turned right, left becomes top
    assert pixels[:, 25:].float().mean() < 5
    assert image_header(io.BytesIO(data), len(data))[:2] == (40, 20)


def test_floating_point_pictures_are_scaled_from_0_to_1_or_refused_by_name():
    from contrastneg.data.decode import UnreadableImage

    levels = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode(encoded(Image.fromarray(levels), "TIFF"))[0, 0].tolist() == [0, 128, 255]
    with pytest.raises(UnreadableImage, match=r"scan\.tif"):
        decode(encoded(Image.fromarray(levels * 7), "TIFF"), name="scan.tif")


@pytest.mark.parametrize(
    ("image", "kind", "mode"),
    [
        (Image.new("RGB", (2, 3)), "JPEG", "RGB"),
        (Image.new("L", (2, 3)), "JPEG", "grey"),
        (Image.new("CMYK", (2, 3)), "JPEG", "CMYK"),
        (Image.new("1", (2, 3)), "PNG", "bilevel"),
        (Image.new("P", (2, 3)), "PNG", "palette"),
        (Image.new("LA", (2, 3)), "PNG", "grey with transparency"),
        (Image.new("RGBA", (2, 3)), "WEBP", "RGB with transparency"),
        (Image.new("I;16", (2, 3)), "PNG", "16-bit grey"),
        (Image.new("I;16", (2, 3)), "TIFF", "16-bit grey"),
        (Image.new("I", (2, 3)), "TIFF", "32-bit grey"),
        (Image.new("F", (2, 3)), "TIFF", "floating point grey"),
    ],
)
def test_the_header_tells_size_and_mode(image, kind, mode):
    from contrastneg.data.decode import image_header

    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind, **options)
    assert image_header(io.BytesIO(data), len(data)) == (3, 2, mode)


def test_transparent_colours_of_a_palette_are_told():
    from contrastneg.data.decode import image_header

    data = encoded(Image.new("P", (2, 3)), "PNG", transparency=0)
    assert image_header(io.BytesIO(data), len(data)).mode == "palette with transparency"


def test_one_channel_is_the_luminance():
    pixels = decode(encoded(Image.new("RGB", (2, 2), (255, 0, 0))), channels=1)
    assert pixels.shape == (1, 2, 2)
    assert int(pixels[0, 0, 0]) == 76  # ITU-R 601-2: 0.299 of red


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_ordinary_pictures_decode_as_pillow_does(kind):
    noise = np.random.default_rng(0).integers(0, 256, (17, 23, 3)).astype(np.uint8)
    smooth = Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
    data = encoded(smooth, kind)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(decode(data), expected)


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "empty"), (b"<html></html>", "not a picture"), (b"\xff\xd8\xff\xe0 broken", "")]
)
def test_what_is_no_picture_is_refused_by_name(data, why):
    from contrastneg.data.decode import UnreadableImage

    with pytest.raises(UnreadableImage, match=rf"holiday\.jpg.*{why}"):
        decode(data, name="holiday.jpg")


def test_a_cut_picture_is_refused_and_pillows_global_switch_is_left_alone():
    from contrastneg.data.decode import UnreadableImage

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    for kind in ("JPEG", "PNG"):
        data = encoded(noise, kind)
        with pytest.raises(UnreadableImage):
            decode(data[: len(data) // 2], name="x")
    assert before == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow_has_the_channels_asked_for(mode, channels):
    pixels = decode(Image.new(mode, (5, 4)), channels=channels)
    assert (pixels.shape, pixels.dtype) == ((channels, 4, 5), torch.uint8)


def test_sixteen_bit_tiffs_of_either_byte_order_keep_their_ramp():
    ramp = np.arange(0, 65536, 4096, dtype=np.uint16)
    for mode, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        data = encoded(Image.frombytes(mode, (16, 1), ramp.astype(order).tobytes()), "TIFF")
        assert decode(data)[2, 0].tolist() == list(range(0, 256, 16))


def test_levels_without_a_known_white_are_refused():
    from contrastneg.data.decode import UnreadableImage

    for levels, why in (
        (np.array([[0.5, np.nan]], np.float32), "floating point"),
        (np.array([[-0.1, 0.5]], np.float32), "from -0.1 to 0.5"),
        (np.array([[0, 70000]], np.int32), "32-bit"),
    ):
        with pytest.raises(UnreadableImage, match=rf"scan\.tif .*{why}"):
            decode(encoded(Image.fromarray(levels), "TIFF"), name="scan.tif")


@pytest.mark.parametrize("xmp", [False, True])
def test_a_turned_tiff_has_one_size_in_its_header_and_decoded(xmp):
    from contrastneg.data.decode import image_header

    tags = {0x0112: 6} | ({700: b"<x:xmpmeta/>"} if xmp else {})
    data = encoded(Image.new("RGB", (40, 20)), "TIFF", tiffinfo=tags)
    assert decode(data).shape == (3, 40, 20)
    assert image_header(io.BytesIO(data), len(data))[:2] == (40, 20)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_the_error_keeps_its_parts_between_processes():
    from contrastneg.data.decode import UnreadableImage

    copy = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "empty")))
    assert (copy.name, copy.why, str(copy)) == ("a.jpg", "empty", "a.jpg cannot be read as a picture: empty")

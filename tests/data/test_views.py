"""Two views: values against torchvision's operations, laws against its draws, and every size and recipe."""

import math
import pickle
from pathlib import Path

import jsonargparse
import pytest
import torch
import yaml
from scipy.stats import chisquare, ks_2samp
from torch.testing import assert_close
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from contrastneg.data import augment as ops
from contrastneg.data.draws import Augment, draw_colors, draw_crops
from contrastneg.data.views import Views, crop_batch, crop_pair, describe, eval_crop, eval_view, finish_views, two_views

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "views"
RECIPES = ["cifar_moco", "cifar_simclr", "moco_v1", "moco_v2", "moco_v3_resnet", "moco_v3_vit", "simclr"]
EVERYTHING = Augment(blur_prob=0.5, solarize_prob=0.3)
PLAIN = Augment(jitter_prob=0.0, gray_prob=0.0)
RAW = {"mean": (0.0,), "std": (1.0,)}  # normalisation that changes nothing


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=6, channels=3, height=32, width=32, seed=0):
    """Smooth coloured pictures with full contrast; the first is grey, the second has equal channel maxima."""
    noise = torch.rand(n, channels, max(2, height // 4), max(2, width // 4), generator=seeded(seed))
    images = tv.resize(noise, [height, width]).mul(255).round().to(torch.uint8)
    images[0] = images[0, :1]
    if channels == 3:
        images[1, 1] = images[1, 0]
    return images


def floats(**settings):
    return pictures(**settings).float() / 255


# ---- values, for given parameters ----


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (96, 64, 32), (9, 70, 32), (8, 8, 24), (1, 20, 8), (1, 1, 5)]
)
def test_crops_equal_torchvisions_antialiased_resized_crop_and_flip(height, width, size, interpolation):
    images = floats(n=12, height=height, width=width)
    box = draw_crops(12, height, width, Augment(crop_scale=(0.08, 1.0)), seeded())
    assert box.mirror.any()
    assert not box.mirror.all()
    ours = ops.crop_resize(
        images, box.top, box.left, box.height, box.width, box.mirror, size=size, interpolation=interpolation
    )
    for i, image in enumerate(images):
        corners = [int(side[i]) for side in (box.top, box.left, box.height, box.width)]
        theirs = tv.resized_crop(image, *corners, [size, size], InterpolationMode(interpolation), antialias=True)
        theirs = tv.horizontal_flip(theirs) if box.mirror[i] else theirs
        assert_close(ours[i], theirs.clamp(0, 1), rtol=0, atol=2e-6)


THEIR_JITTER = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", range(4))
def test_each_jitter_operation_equals_torchvisions(operation, channels):
    images = floats(n=8, channels=channels)
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(8, 1)
    values = torch.linspace(-0.5, 0.5, 8) if operation == ops.HUE else torch.linspace(0, 2, 8)
    factors[:, operation] = values
    ours = ops.color_jitter_(images.clone(), factors, torch.arange(4).repeat(8, 1))
    theirs = torch.stack([THEIR_JITTER[operation](x, float(v)) for x, v in zip(images, values, strict=True)])
    assert_close(ours, theirs, rtol=0, atol=3e-6)


def test_jitter_follows_each_pictures_own_order():
    images = floats(n=24)
    colors = draw_colors(24, Augment(jitter=(0.8, 0.8, 0.8, 0.2)), seeded())
    assert len(colors.order.unique(dim=0)) > 8
    ours = ops.color_jitter_(images.clone(), colors.factors, colors.order)
    for image, factors, order, result in zip(images, colors.factors, colors.order, ours, strict=True):
        for operation in order.tolist():
            image = THEIR_JITTER[operation](image, float(factors[operation]))
        assert_close(result, image, rtol=0, atol=1e-5)


def test_a_picture_spared_by_every_operation_is_bitwise_the_same():
    images = floats()
    colors = draw_colors(6, Augment(jitter_prob=0.0, gray_prob=0.0), seeded())
    ours = ops.solarize_(ops.blur_(images.clone(), colors.sigma), colors.solarize)
    ours = ops.grayscale_(ops.color_jitter_(ours, colors.factors, colors.order), colors.gray)
    assert torch.equal(ours, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_and_solarize_equal_torchvisions_and_meet_only_the_chosen(channels):
    images = floats(channels=channels)
    chosen = torch.tensor([True, False, True, False, False, True])
    for ours, theirs in [
        (ops.grayscale_, lambda x: tv.rgb_to_grayscale(x, channels)),
        (ops.solarize_, lambda x: tv.solarize(x, 0.5)),
    ]:
        expected = torch.where(chosen[:, None, None, None], theirs(images), images)
        assert_close(ours(images.clone(), chosen), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "taps"), [(1, 3), (2, 3), (32, 3), (64, 7), (96, 9), (224, 23)])
def test_blur_kernel_is_odd_and_about_a_tenth(size, taps):
    assert ops.blur_kernel_size(size) == taps


@pytest.mark.parametrize("size", [2, 32, 96])
def test_blur_equals_torchvisions_gaussian_blur(size):
    images = floats(height=size, width=size)
    sigma = torch.tensor([0.1, 0.5, 0.0, 1.0, 1.5, 2.0])
    ours = ops.blur_(images.clone(), sigma)
    for image, s, result in zip(images, sigma.tolist(), ours, strict=True):
        expected = tv.gaussian_blur(image, [ops.blur_kernel_size(size)] * 2, [s, s]) if s else image
        assert_close(result, expected, rtol=0, atol=2e-6)


def test_blur_of_a_single_pixel_leaves_it():
    images = floats(height=1, width=1)
    assert_close(ops.blur_(images.clone(), torch.full((6,), 2.0)), images)


# ---- laws, for drawn parameters (fixed seeds; a right law fails one seed in a thousand, and these do not) ----


@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 45), (375, 500), (20, 90)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0)])
def test_boxes_have_the_law_of_random_resized_crop(height, width, scale):
    n = 1500
    box = draw_crops(n, height, width, Augment(crop_scale=scale), seeded())
    torch.manual_seed(1)
    transform = v2.RandomResizedCrop(32, scale=scale)
    blank = [torch.empty(3, height, width)]
    theirs = [transform.make_params(blank) for _ in range(n)]
    theirs = {name: torch.tensor([float(p[name]) for p in theirs]) for name in ("top", "left", "height", "width")}
    ours = {name: getattr(box, name) for name in theirs}
    for of in (ours, theirs):
        of["area"] = of["height"] * of["width"]
        of["ratio"] = of["width"] / of["height"]
    for name in ours:
        assert ks_2samp(ours[name].numpy(), theirs[name].numpy()).pvalue > 1e-3, name
    assert abs(box.mirror.float().mean() - 0.5) < 0.05


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (200, 1), (8, 8), (31, 33)])
def test_boxes_lie_inside_the_picture(height, width):
    box = draw_crops(2000, height, width, Augment(crop_scale=(0.01, 1.0)), seeded())
    assert (box.top >= 0).all()
    assert (box.left >= 0).all()
    assert (box.height >= 1).all()
    assert (box.width >= 1).all()
    assert (box.top + box.height <= height).all()
    assert (box.left + box.width <= width).all()


def test_jitter_has_the_law_of_color_jitter():
    n, strengths = 1500, (0.4, 1.3, 0.2, 0.1)  # above 1: factors from 0, not from below
    colors = draw_colors(n, Augment(jitter=strengths, jitter_prob=1.0), seeded())
    torch.manual_seed(1)
    transform = v2.ColorJitter(*strengths)
    theirs = [transform.make_params([]) for _ in range(n)]
    names = ["brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"]
    for column, name in enumerate(names):
        assert ks_2samp(colors.factors[:, column].numpy(), [p[name] for p in theirs]).pvalue > 1e-3, name
    counts = (colors.order @ torch.tensor([64, 16, 4, 1])).unique(return_counts=True)[1]
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_shares_of_pictures_match_the_probabilities():
    settings = Augment(jitter_prob=0.8, gray_prob=0.2, blur_prob=0.5, solarize_prob=0.1)
    colors = draw_colors(20_000, settings, seeded())
    shares = [(colors.factors[:, 0] != 1), colors.gray, (colors.sigma > 0), colors.solarize]
    for share, prob in zip(shares, (0.8, 0.2, 0.5, 0.1), strict=True):
        assert abs(share.float().mean() - prob) < 4 * math.sqrt(prob * (1 - prob) / 20_000)
    together = (colors.gray & (colors.sigma > 0)).float().mean()
    assert abs(together - 0.2 * 0.5) < 0.01  # one does not bring the other
    blurred = colors.sigma[colors.sigma > 0]
    assert blurred.min() >= 0.1
    assert blurred.max() <= 2
    assert abs(blurred.mean() - 1.05) < 0.02


def test_views_in_memory_have_the_statistics_of_torchvisions_pipeline():
    images = pictures(n=3)[2:].repeat(800, 1, 1, 1)
    ours, _ = two_views(images, Views(**RAW), seeded())
    torch.manual_seed(1)
    pipeline = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    theirs = torch.stack([pipeline(image) for image in images])
    for statistic in [
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: x.diff(dim=3).abs().mean((1, 2, 3)),
        lambda x: (x.amax(1) - x.amin(1)).mean((1, 2)),
        lambda x: x[:, 0].mean((1, 2)),
    ]:
        assert ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 1e-3


# ---- the two ways in ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (8, 8), (31, 33)])
def test_pictures_of_any_size_give_finite_views_of_the_asked_size(height, width, size, channels):
    views = Views(size=size, view1=EVERYTHING)
    image = torch.randint(0, 256, (channels, height, width), generator=seeded(), dtype=torch.uint8)
    crops = torch.stack([crop_pair(image, views, seeded(i)) for i in range(50 if size == 32 else 4)])
    assert crops.shape[1:] == (2, channels, size, size)
    streamed = finish_views(crops, views, seeded())
    in_memory = two_views(image.repeat(len(crops), 1, 1, 1), views, seeded())
    for view in (*streamed, *in_memory):
        assert view.shape == (len(crops), channels, size, size)
        assert view.isfinite().all()
    assert eval_view(image[None], views).shape == (1, channels, size, size)
    assert eval_crop(image, views).shape == (channels, size, size)


def test_streamed_crops_have_the_boxes_of_the_draw():
    images, views = pictures(height=50, width=40), Views(size=32, view1=PLAIN, **RAW)
    for i, image in enumerate(images):
        crops = crop_pair(image, views, seeded(i))
        generator = seeded(i)
        for crop in crops:
            box = draw_crops(1, 50, 40, PLAIN, generator)
            sides = (box.top, box.left, box.height, box.width)
            expected = ops.crop_resize(image[None] / 255, *sides, box.mirror, size=32, interpolation="bilinear")[0]
            assert (crop / 255 - expected).abs().max() <= 1.01 / 255  # 8-bit rounding after each axis


def test_both_ways_meet_the_same_colours_in_the_same_order():
    views = Views(view1=EVERYTHING)
    crops = pictures(n=8).unflatten(0, (4, 2))
    first, second = finish_views(crops, views, seeded())
    generator = seeded()
    for view, pixels in ((first, crops[:, 0]), (second, crops[:, 1])):
        colors = draw_colors(4, EVERYTHING, generator)
        expected = ops.color_jitter_(pixels / 255, colors.factors, colors.order)
        expected = ops.solarize_(ops.blur_(ops.grayscale_(expected, colors.gray), colors.sigma), colors.solarize)
        assert_close(view, tv.normalize(expected, list(views.mean), list(views.std)), rtol=0, atol=1e-5)


OTHER = Augment(
    crop_scale=(0.5, 1.0), interpolation="bicubic", gray_first=True, gray_prob=0.5, jitter=(0.8, 0.1, 0.4, 0.3)
)


def by_hand(crops, colors, augment):
    """Everything after the crop, one operation after the other."""
    if augment.gray_first:
        crops = ops.grayscale_(crops, colors.gray)
    crops = ops.color_jitter_(crops, colors.factors, colors.order)
    if not augment.gray_first:
        crops = ops.grayscale_(crops, colors.gray)
    return ops.solarize_(ops.blur_(crops, colors.sigma), colors.solarize)


@pytest.mark.parametrize("view2", [None, OTHER])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_each_view_is_made_by_its_recipe_from_its_draws(monkeypatch, view2, chunk):
    monkeypatch.setattr("contrastneg.data.views._CHUNK_CPU", chunk * 3 * 32 * 32)
    images, views = pictures(n=7), Views(view1=EVERYTHING, view2=view2, **RAW)
    generator = seeded()
    for view, augment in zip(two_views(images, views, seeded()), views.both, strict=True):
        boxes, colors = draw_crops(7, 32, 32, augment, generator), draw_colors(7, augment, generator)
        sides = (boxes.top, boxes.left, boxes.height, boxes.width, boxes.mirror)
        crops = ops.crop_resize(images / 255, *sides, size=32, interpolation=augment.interpolation)
        assert_close(view, by_hand(crops, colors, augment), rtol=0, atol=1e-5)
    crops, generator = pictures(n=14).unflatten(0, (7, 2)), seeded()
    for place, (view, augment) in enumerate(zip(finish_views(crops, views, seeded()), views.both, strict=True)):
        colors = draw_colors(7, augment, generator)
        assert_close(view, by_hand(crops[:, place] / 255, colors, augment), rtol=0, atol=1e-5)


def test_the_crops_of_a_batch_do_not_depend_on_its_chunks(monkeypatch):
    images, views = pictures(n=7), Views(size=24)
    boxes = draw_crops(7, 32, 32, views.view1, seeded())
    whole = crop_batch(images, boxes, views)
    monkeypatch.setattr("contrastneg.data.views._CHUNK_CPU", 3 * 3 * 32 * 32)
    assert_close(crop_batch(images, boxes, views), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("view2", [None, OTHER])
def test_a_batch_of_no_pictures_has_no_views(view2):
    views = Views(size=24, view2=view2)
    made = [*two_views(pictures()[:0], views, seeded())]
    made += finish_views(pictures()[:0, None].expand(0, 2, 3, 32, 32), views, seeded())
    assert [tuple(view.shape[:2]) for view in made] == [(0, 3)] * 4


def test_gray_first_turns_grey_before_the_jitter():
    after = Augment(gray_prob=1.0, jitter_prob=1.0, jitter=(0.0, 0.0, 0.0, 0.4))
    before = Augment(gray_prob=1.0, jitter_prob=1.0, jitter=(0.0, 0.0, 0.0, 0.4), gray_first=True)
    crops = pictures(n=8)[2:].unflatten(0, (3, 2))
    grey = tv.rgb_to_grayscale(crops[:, 0] / 255, 3)
    assert_close(finish_views(crops, Views(view1=before, **RAW), seeded())[0], grey, rtol=0, atol=1e-6)
    assert (finish_views(crops, Views(view1=after, **RAW), seeded())[0] - grey).abs().max() > 0.01


def test_views_are_a_pure_function_of_the_generator():
    images, views = pictures(), Views(view1=EVERYTHING)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    runs = [two_views(images, views, seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(crop_pair(images[0], views, seeded(3)), crop_pair(images[0], views, seeded(3)))


def test_neither_chunks_nor_neighbours_change_a_picture(monkeypatch):
    images, views = pictures(n=20), Views(view1=EVERYTHING)
    whole = two_views(images, views, seeded())
    monkeypatch.setattr("contrastneg.data.views._CHUNK_CPU", 3 * 3 * 32 * 32)
    assert_close(two_views(images, views, seeded())[1], whole[1], rtol=0, atol=1e-5)
    others = images.clone()
    others[1:] = 255 - others[1:]
    assert_close(two_views(others, views, seeded())[0][0], whole[0][0], rtol=0, atol=1e-5)


def test_an_operation_switched_off_leaves_the_other_draws_alone():
    with_blur = draw_colors(50, Augment(blur_prob=0.9), seeded())
    without = draw_colors(50, Augment(blur_prob=0.0, jitter_prob=0.0), seeded())
    assert torch.equal(with_blur.gray, without.gray)
    assert torch.equal(with_blur.order, without.order)


def test_autocast_and_gradients_do_not_reach_the_views():
    images, views = pictures(height=40), Views(view1=EVERYTHING)
    crops = torch.stack([crop_pair(image, views, seeded()) for image in images])
    plain = [*two_views(images, views, seeded()), *finish_views(crops, views, seeded()), eval_view(images, views)]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [*two_views(images, views, seeded()), *finish_views(crops, views, seeded()), eval_view(images, views)]
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert not b.requires_grad
        assert torch.equal(a, b)


def test_no_parameter_is_float64():
    parameters = [
        *vars(draw_crops(4, 20, 30, EVERYTHING, seeded())).values(),
        *vars(draw_colors(4, EVERYTHING, seeded())).values(),
    ]
    assert not any(p.dtype == torch.float64 for p in parameters)


def test_the_input_is_not_changed():
    images = pictures()
    crops = images.unflatten(0, (3, 2))
    before = images.clone()
    two_views(images, Views(view1=EVERYTHING), seeded())
    finish_views(crops, Views(view1=EVERYTHING), seeded())
    eval_view(images, Views())
    assert torch.equal(images, before)


# ---- the evaluation view ----


def test_eval_view_of_a_small_square_is_the_picture_itself_normalised():
    images = pictures()
    expected = tv.normalize(images.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert_close(eval_view(images, Views(size=32)), expected, rtol=0, atol=1e-5)


def test_eval_view_at_224_is_resize_256_centre_crop_224():
    image = pictures(n=2, height=300, width=400)[1]
    expected = tv.center_crop(tv.resize(image, [256], antialias=True), [224, 224])
    assert torch.equal(eval_crop(image, Views(size=224)), expected)
    assert_close(eval_view(image[None], Views(size=224, **RAW))[0], expected / 255, rtol=0, atol=1e-6)


def test_eval_view_of_a_very_long_picture_shows_its_middle_and_stays_small(monkeypatch):
    sizes = []
    resize = tv.resize
    monkeypatch.setattr(tv, "resize", lambda *args, **kw: sizes.append((result := resize(*args, **kw)).shape) or result)
    strip = torch.zeros(3, 4, 2000, dtype=torch.uint8)
    strip[..., 990:1010] = 200
    assert (eval_crop(strip, Views(size=32)) == 200).all()
    assert sizes == [(3, 32, 128)]


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.2, 1.5)}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"interpolation": "nearest"}, "choose from bilinear, bicubic"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue"),
        ({"jitter": (-0.1, 0.4, 0.4, 0.1)}, "jitter"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma"),
        ({"blur_sigma": (0.1, math.nan)}, "blur_sigma"),
        ({"flip": 1.5}, "flip"),
        ({"solarize_prob": math.nan}, "solarize_prob"),
    ],
)
def test_impossible_augmentations_are_refused_in_one_line(settings, message):
    augment = object.__new__(
        Augment
    )  # past the type checker of these tests, which would be first to object to "nearest"
    vars(augment).update({**vars(Augment()), **settings})
    with pytest.raises(ValueError, match=message) as refusal:
        augment.__post_init__()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "at least 1"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "2 values"),
        ({"mean": (0.5,)}, "views.std 3"),
        ({"mean": (123.7, 116.3, 103.5)}, "divide 8-bit values by 255"),
        ({"std": (0.2, 0.0, 0.2)}, "views.std"),
    ],
)
def test_impossible_views_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        Views(**settings)
    assert "\n" not in str(refusal.value)


def test_pictures_with_four_channels_are_refused():
    with pytest.raises(ValueError, match="4 channels"):
        two_views(torch.zeros(2, 4, 8, 8, dtype=torch.uint8), Views(), seeded())


def test_settings_survive_pickling():
    views = Views(view2=EVERYTHING)
    assert pickle.loads(pickle.dumps(views)) == views


def load(name):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--views", type=Views, default=Views())
    mapping = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return parser.instantiate(parser.parse_object({"views": mapping})).views


def test_every_recipe_file_is_tested():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_files_are_what_views_accepts_and_make_views(name):
    views = load(name)
    assert isinstance(views, Views)
    assert "arXiv:" in (CONFIGS / f"{name}.yaml").read_text().splitlines()[0]
    for view in two_views(pictures(n=3), views, seeded()):
        assert view.shape == (3, 3, views.size, views.size)
    assert len(describe(views)) == (3 if "v3" in name else 2)


def test_recipes_hold_the_papers_numbers():
    simclr, v1, v2_, v3 = (load(name).view1 for name in ("simclr", "moco_v1", "moco_v2", "moco_v3_resnet"))
    assert (simclr.crop_scale, simclr.interpolation, simclr.jitter) == ((0.08, 1.0), "bicubic", (0.8, 0.8, 0.8, 0.2))
    assert (v1.jitter, v1.jitter_prob, v1.gray_first, v1.blur_prob) == ((0.4, 0.4, 0.4, 0.4), 1.0, True, 0.0)
    assert (v2_.crop_scale, v2_.jitter, v2_.blur_prob) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.5)
    assert (v3.blur_prob, v3.solarize_prob) == (1.0, 0.0)
    assert Augment().blur_prob == load("cifar_moco").view1.blur_prob == load("cifar_simclr").view1.blur_prob == 0
    second = load("moco_v3_vit").view2
    assert (second.crop_scale, second.blur_prob, second.solarize_prob) == ((0.08, 1.0), 0.1, 0.2)


def test_the_recipe_is_told_in_words():
    lines = describe(Views(view2=EVERYTHING))
    assert lines[0].startswith("32 x 32 pixels")
    assert lines[1].startswith("view 1: crop 20-100 % of the area (bilinear), flip p 0.5, jitter (brightness 0.4")
    assert lines[2].endswith("blur (sigma 0.1-2 px, 3 taps) p 0.5, solarize p 0.3")
    assert describe(Views())[1].startswith("both views:")

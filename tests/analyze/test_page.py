"""The page of an analysis in a browser: whole, escaped, its gallery by mouse and keys, its numbers those of the tables."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from browser import chromium, opened
from pictures import photograph
from small_runs import write_encoder

HOSTILE = "<script>alert(1)</script>"
FILE = """it's "quoted" 😀 <b>.png"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of an analysis of pictures in folders, one of whose classes is markup, as is a file's name."""
    from contrastneg.analyze import opening, run
    from contrastneg.analyze.settings import Analyze

    top = tmp_path_factory.mktemp("pictures")
    for number in range(90):
        folder = top / "data" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        photograph(number % 3 + 10 * (number % 7)).save(folder / (FILE if number == 0 else f"{number}.png"))
    patch = pytest.MonkeyPatch()

    def images_of(*arguments):
        source, notes = opening.images_of(*arguments)
        return replace(source, classes=[HOSTILE, "b & c", "ring"]), [*notes, f"a note {HOSTILE}"]

    patch.setattr(run, "images_of", images_of)
    encoder = write_encoder(top / "run", settings=f"data: {top / 'data'}\n")
    other = write_encoder(top / f"other {FILE}", seed=1)
    own = top / "own.yaml"
    own.write_text(json.dumps({HOSTILE: [{"class_path": "HardestSubset", "init_args": {"count": 5}}]}))
    several = {"checkpoints": (str(other),), "samplers": (own,)}
    folder, _ = run.analyze(Analyze(encoder=str(encoder), gallery=6, queries=90, clusters=3, **several))
    patch.undo()
    return folder / "analysis.html"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def table_of(page):
    return pd.read_csv(page.parent / "gallery.csv", keep_default_na=False)


def test_text_of_the_data_is_shown_as_text(page, browser):
    text = page.read_text()
    assert HOSTILE not in text
    assert text.count("<script") == 2  # the gallery's numbers and its script
    assert text.count("</script") == 2
    stored = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&") & set(stored)
    assert HOSTILE in {shown["class"] for query in json.loads(stored)["queries"] for shown in query}
    with opened(browser, page) as shown:
        options = shown.locator("#by-class option").all_inner_texts()
        assert sorted(options) == sorted(["all", HOSTILE, "b & c", "ring"])
        assert HOSTILE in shown.locator(".notes").inner_text()
        assert HOSTILE in shown.locator("#samplers th[scope=row]").all_inner_texts()
        assert "alert(1)" in shown.locator("#samplers svg").first.get_attribute("aria-label")
        table = table_of(page)
        named = table[table["name"] == f"a/{FILE}"]
        query, place = (int(named.iloc[0][name]) for name in ("query", "rank"))
        number = table["query"].drop_duplicates().tolist().index(query)
        for _ in range(number):
            shown.click("#next")
        shown.click(f".query:not([hidden]) li:has-text('rank {place}') >> nth=0")
        assert f"{HOSTILE} · a/{FILE} · " in shown.locator("#details").inner_text()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_and_is_readable(page, browser, width, scheme):
    with opened(browser, page, width, scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
        assert shown.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 40)")
        assert shown.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))")
        assert shown.evaluate(CONTRASTS) == []
        heights = "[...document.querySelectorAll('.shares td.number')].map(cell => cell.getBoundingClientRect().height)"
        assert max(shown.evaluate(heights)) < 60  # no number is broken over lines
        assert "classes: nan" not in shown.locator("main").inner_text()


# elements whose text has a contrast below 4.5 with the nearest background that is not transparent
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data; };
  const light = (color) => { const [r, g, b] = [...rgb(color)].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { while (e && rgb(getComputedStyle(e).backgroundColor)[3] < 255) e = e.parentElement;
    return e ? getComputedStyle(e).backgroundColor : getComputedStyle(document.body).backgroundColor; };
  const bad = [];
  for (const e of document.querySelectorAll("main *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("[hidden], svg, option") || e.matches(":disabled")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(e.outerHTML.slice(0, 80));
  }
  return bad;
}"""


def test_filters_leave_what_the_table_says(page, browser):
    table = table_of(page)
    with opened(browser, page) as shown:
        for name in ("b & c", HOSTILE):
            shown.select_option("#by-class", label=name)
            of_class = table[table["query_class"] == name]
            first = of_class[of_class["query"] == of_class["query"].iloc[0]]
            assert shown.locator("#shown").inner_text().startswith(f"query 1 of {of_class['query'].nunique()}, ")
            for kind in ("same", "other", ""):
                for place in ("0", "1", "2", ""):
                    for detector in ("own cluster", "top 1 %", ""):
                        shown.select_option("#by-kind", kind)
                        shown.select_option("#by-bin", place)
                        shown.select_option("#by-detector", label=detector or "any or none")
                        left = first[(first["kind"] == kind) | (kind == "")]
                        left = left[(left["bin"].astype(str) == place) | (place == "")]
                        left = left[left[f"removed: {detector}"].astype(bool)] if detector else left
                        seen = shown.locator(".query:not([hidden]) li:not([hidden])")
                        ranks = [
                            int(re.search(r"rank ([\d,]+)", t)[1].replace(",", "")) for t in seen.all_inner_texts()
                        ]
                        assert ranks == left["rank"].tolist(), (kind, place, detector)
                        assert shown.locator("#nothing").is_visible() == (len(left) == 0)


def test_the_record_names_samplers_and_encoders_that_were_given(page):
    context = json.loads((page.parent / "analysis.json").read_text())["context"]
    assert [name.rpartition("/")[2] for name in context["samplers"]] == ["own.yaml"]
    assert [name.rpartition("/")[2] for name in context["checkpoints"]] == [f"other {FILE}"]


def test_filters_that_leave_nothing_say_so_and_lead_back(page, browser):
    table = table_of(page)
    cut = [name.removeprefix("removed: ") for name in table if name.startswith("removed: ")]
    (kind, place, name), *_ = [
        (kind, place, name)
        for kind in ("same", "other")
        for place in (0, 1, 2)
        for name in cut
        if not ((table["kind"] == kind) & (table["bin"] == place) & table[f"removed: {name}"].astype(bool)).any()
    ]
    with opened(browser, page) as shown:
        whole = shown.locator("#shown").inner_text()
        shown.select_option("#by-kind", kind)
        shown.select_option("#by-bin", str(place))
        shown.select_option("#by-detector", label=name)
        assert "No query matches these filters." in shown.locator("#nothing").inner_text()
        assert shown.locator(".query:not([hidden])").count() == 0
        shown.locator("#clear").click()
        assert shown.locator("#shown").inner_text() == whole
        assert not shown.locator("#nothing").is_visible()


def test_keys_go_through_negatives_and_queries(page, browser):
    table = table_of(page)
    queries = [part for _, part in table.groupby("query", sort=False)]
    with opened(browser, page, 390) as shown:
        shown.locator(".query:not([hidden]) li button").first.focus()
        for place in (1, 2):
            shown.keyboard.press("ArrowRight")
            row = queries[0].iloc[place]
            details = shown.locator("#details")
            assert details.locator("h3").inner_text() == (
                f"rank {row['rank']} of 89, cosine {row['cosine']:.3f}: {'same' if row['kind'] == 'same' else 'other'} class"
            )
            told = dict(
                zip(details.locator("dt").all_inner_texts(), details.locator("dd").all_inner_texts(), strict=True)
            )
            assert told["InfoNCE"] == f"{100 * row['gradient_share']:.3g} % of the gradient"
            assert told["own cluster"] == ("removes it" if row["removed: own cluster"] else "keeps it")
            assert told["hard weights"] == f"weight {row['hard_weight']:.3g}"
            assert told["MoCHi"].startswith(f"parent of {row['mixes']} " if row["mixes"] else "in no mix")
            assert shown.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
            assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        shown.keyboard.press("PageDown")
        assert shown.locator(".query:not([hidden]) .asked p").inner_text() == queries[1]["query_name"].iloc[0]
        assert shown.evaluate("document.activeElement.dataset.query") == "1"
        shown.keyboard.press("End")
        assert f"rank {queries[1]['rank'].iloc[-1]} of" in shown.locator("#details").inner_text()
        shown.keyboard.press("PageUp")
        shown.keyboard.press("PageUp")
        assert shown.locator("#shown").inner_text().startswith(f"query 1 of {len(queries)}, ")
        assert shown.locator("#previous").is_disabled()


def test_whether_a_negative_is_false_is_told_by_word_and_sign_too(page, browser):
    with opened(browser, page) as shown:
        for kind, sign in (("same", "="), ("other", "≠")):
            item = shown.locator(f".query:not([hidden]) li.{kind}").first
            assert item.locator(".verdict b").inner_text() == sign
            assert f"{kind} class: " in item.locator("img").get_attribute("alt")
        styles = [
            shown.locator(f".query:not([hidden]) li.{kind} button").last.evaluate(
                "e => getComputedStyle(e).borderStyle"
            )
            for kind in ("same", "other")
        ]
        assert styles == ["double", "solid"]


def test_numbers_of_the_page_are_those_of_the_tables(page, browser):
    bins = pd.read_csv(page.parent / "hardness_bins.csv")
    with opened(browser, page) as shown:
        told = shown.locator("#answer2").inner_text()
        assert f"{100 * bins['rate'][0]:.3g} %" in told
        assert f"{100 * bins['base_rate'][0]:.3g} % of all candidates" in told
        grid = shown.locator("#confusion .shares tbody tr").first.locator("td").all_inner_texts()
        confusion = pd.read_csv(page.parent / "hard_confusion.csv")
        first = confusion[confusion["query_class"] == 0]["rate"]
        cards = pd.read_csv(page.parent / "sampler_cards.csv")
        rows = shown.locator("#samplers .listing tbody tr").all_inner_texts()
        assert [row.split("\t")[0].removesuffix(" *") for row in rows] == cards["sampler"].tolist()
        assert [row.split("\t")[1] for row in rows] == [f"{round(kept, 2):.4g}" for kept in cards["kept"]]
        assert grid == [f"{100 * rate:.1f}" for rate in first]
        label = shown.locator("#hardness svg").first.get_attribute("aria-label")
        assert f"hardest 0.1 %: {100 * bins['rate'][0]:.4g}" in label


def test_every_query_is_printed_and_no_control(page, browser):
    with opened(browser, page) as shown:
        shown.emulate_media(media="print")
        assert shown.evaluate(
            "[...document.querySelectorAll('.query')].every(q => q.getBoundingClientRect().height > 50)"
        )
        assert not shown.locator(".filters").is_visible()


def test_thumbnails_of_a_full_gallery_of_large_noisy_pictures_stay_below_5_mb():
    from contrastneg.analyze.gallery import FURTHER, HARDEST, encoded
    from contrastneg.analyze.settings import Analyze

    noise = np.random.default_rng(0).integers(0, 256, (3, 300, 400), dtype=np.uint8)
    shown = encoded(noise, "noise")
    assert (shown.side, shown.small) == (64, False)
    assert Analyze(encoder="x").gallery * (2 + HARDEST + FURTHER) * (len(shown.uri) + 900) < 5_000_000
